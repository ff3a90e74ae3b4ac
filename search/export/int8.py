"""An int8 graph: the ONNX file in 8 bits, quantised by ONNX Runtime."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from kdcore.data.split import Split
from search.errors import SearchError

INT8 = "student.int8.onnx"
"""The file."""

MAX_LOSS = 1.0
"""The most percentage points of held-out accuracy that it may cost, unless one says otherwise."""

CALIBRATION_IMAGES = 256
"""At most so many held-out images tell the ranges of the activations."""

# What multiplies by weights, and the activations that the range of a layer's output replaces. The
# rest stays in float32: normalisations, softmax, sums, products of activations. They take little
# time, and in 8 bits they would cost accuracy.
_QUANTISED = ["Conv", "Gemm", "MatMul", "Relu", "Clip"]
_PRODUCTS = ["Gemm", "MatMul"]

# EfficientNet-Lite0 with ImageNet's features says of 350 openclipart pictures what it says in
# float32: 94 % with these settings, 87 % with 7 bits, as processors without VNNI are advised to
# have, 75 % without Relu and Clip above, and 67 % with one scale for all channels.


def write_int8(source: Path, split: Split, path: Path) -> None:
    """Writes an ONNX file with int8 weights, one scale a channel, and uint8 activations.

    Batch norms are folded into convolutions. The ranges of the activations are their smallest and
    largest values; logits stay in float32. The same file comes out each time.

    Args:
        source: an ONNX file with the input `images`, uint8.
        split: of whose images some are taken, whose labels are not looked at.
        path: the file to write.

    Raises:
        SearchError: ONNX Runtime cannot quantise the network.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        try:
            # PyTorch's exporter has written the shapes, so none are to be inferred from symbols.
            quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                str(path),
                _CalibrationImages(split),
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": _PRODUCTS,
                },
            )
        except Exception as error:  # ONNX Runtime's errors have no common base class
            reason = (str(error) or repr(error)).splitlines()[0]
            raise SearchError(f"the network cannot be quantised: {reason}") from None


class _CalibrationImages:
    """Some images of a split, in batches, as ONNX Runtime asks for them."""

    def __init__(self, split: Split) -> None:
        shuffled = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
        chosen = torch.zeros(len(split), dtype=torch.bool)
        chosen[shuffled[:CALIBRATION_IMAGES]] = True
        size = split.batch_without_gradients()
        batches = zip(split.batches(size), torch.split(chosen, size), strict=True)
        self._batches = (images[those] for images, those in batches if those.any())

    def get_next(self) -> dict[str, object] | None:
        images: Tensor | None = next(self._batches, None)
        return None if images is None else {"images": images.numpy()}
