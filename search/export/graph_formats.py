"""A student as a graph that runs without its Python code: ONNX, and PyTorch's own export.

Both take uint8 images [B, C, H, W] for any B >= 1, normalise them, and give logits [B, K].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcore.data.split import Split
from kdcore.networks.classifier import Classifier

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GraphFormat:
    """A form of graphs.

    Args:
        file: the name of its file.
        write: a classifier, two images that show what it takes, and the path.
        load: from a path, what classifies images.
    """

    file: str
    write: Callable[[Classifier, Tensor, Path], None]
    load: Callable[[Path], Predict]


def _shapes() -> tuple[dict[int, object]]:
    return ({0: torch.export.Dim("batch", min=1)},)


def write_onnx(classifier: Classifier, images: Tensor, path: Path) -> None:
    """Writes an ONNX file by PyTorch's exporter.

    Raises:
        ValueError: the packages are missing, or the network cannot be exported.
    """
    _check_packages()
    try:
        program = torch.onnx.export(
            classifier,
            (images,),
            dynamo=True,
            dynamic_shapes=_shapes(),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    except RuntimeError as error:
        raise _not_exported("ONNX", error) from None
    assert program is not None
    program.save(path)


def load_onnx(path: Path) -> Predict:
    """Loads an ONNX file into ONNX Runtime, on the CPU.

    Raises:
        ValueError: the packages are missing, or the file is damaged.
    """
    _check_packages()
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common ancestor
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from None

    def predict(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return predict


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--format onnx needs {error.name}, which is not installed; "
            f"pip install 'kdsearch[export]'"
        ) from None


def write_torch_export(classifier: Classifier, images: Tensor, path: Path) -> None:
    """Writes what `torch.export` gives.

    Raises:
        ValueError: the network cannot be exported.
    """
    try:
        program = torch.export.export(classifier, (images,), dynamic_shapes=_shapes())
    except RuntimeError as error:
        raise _not_exported("torch.export", error) from None
    torch.export.save(program, path)


def load_torch_export(path: Path) -> Predict:
    """Loads what `torch.export` wrote; only a file that one trusts, as PyTorch may unpickle it.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # of its archive's readers, which have no common ancestor
        raise ValueError(
            f"{path} is damaged: {(str(error) or repr(error)).splitlines()[0]}"
        ) from None

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = module(images)
        return logits

    return predict


def _not_exported(form: str, error: Exception) -> ValueError:
    reason = (str(error) or repr(error)).splitlines()[0]
    return ValueError(f"the network cannot be exported as {form}: {reason}")


GRAPHS: Mapping[str, GraphFormat] = {
    "onnx": GraphFormat("student.onnx", write_onnx, load_onnx),
    "torch_export": GraphFormat("student.pt2", write_torch_export, load_torch_export),
}


@torch.no_grad()
def measure_graph(predict: Predict, classifier: Classifier, split: Split) -> tuple[float, float]:
    """A graph's accuracy, and how far it is from the classifier.

    Args:
        predict: the graph.
        classifier: in evaluation mode, on the CPU.
        split: at least one image.

    Returns:
        The share of right answers, and the largest difference of a logit, in units of the largest
        logit.
    """
    right, difference, largest = 0, 0.0, 0.0
    size = split.batch_without_gradients()
    for images, labels in zip(split.batches(size), torch.split(split.labels, size), strict=True):
        logits, expected = predict(images), classifier(images)
        right += int((logits.argmax(1) == labels).sum())
        difference = max(difference, (logits - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return right / len(split), difference / max(largest, torch.finfo(torch.float32).tiny)
