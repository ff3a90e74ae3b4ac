"""Graphs that run without this package's code: ONNX and torch.export.

Both take uint8 images [B, C, H, W] for any B >= 1, normalise them, and return logits [B, K].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcore.data.split import Split
from kdcore.networks.classifier import Classifier
from search.errors import SearchError

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GraphFormat:
    """A file format of graphs.

    Args:
        file: the name of the file.
        write: writes a classifier to a path, given two example images.
        load: loads a path as a function from images to logits.
    """

    file: str
    write: Callable[[Classifier, Tensor, Path], None]
    load: Callable[[Path], Predict]


def _shapes() -> tuple[dict[int, object]]:
    return ({0: torch.export.Dim("batch", min=1)},)


def write_onnx(classifier: Classifier, images: Tensor, path: Path) -> None:
    """Writes an ONNX file with PyTorch's exporter.

    Raises:
        SearchError: the packages are missing, or the network cannot be exported.
    """
    _check_packages()
    try:
        program = torch.onnx.export(
            classifier,
            (images,),
            dynamo=True,
            dynamic_shapes=_shapes(),
            input_names=["images"],
            output_names=["logits" if classifier.has_head else "features"],
            verbose=False,
        )
    except RuntimeError as error:
        raise _not_exported("ONNX", error) from None
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # lines of this machine's sources, with their paths
    program.save(path)


def load_onnx(path: Path) -> Predict:
    """Loads an ONNX file into ONNX Runtime, on the CPU, with as many threads as PyTorch has.

    Raises:
        SearchError: the packages are missing, or the file is damaged.
    """
    _check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if not _has_vnni():  # an option of x86-64 alone, which costs time
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise SearchError(f"{path} is damaged: {str(error).splitlines()[0]}") from None

    def predict(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return predict


def _has_vnni() -> bool:
    """Whether the processor has instructions that sum products of 8 bits without overflow."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_vnni" in words or "avx_vnni" in words


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SearchError(
            f"--format onnx needs {error.name}, which is not installed; "
            f"pip install 'kdsearch[export]'"
        ) from None


def write_torch_export(classifier: Classifier, images: Tensor, path: Path) -> None:
    """Writes a program of `torch.export`.

    Raises:
        SearchError: the network cannot be exported.
    """
    try:
        program = torch.export.export(classifier, (images,), dynamic_shapes=_shapes())
    except RuntimeError as error:
        raise _not_exported("torch.export", error) from None
    torch.export.save(program, path)


def load_torch_export(path: Path) -> Predict:
    """Loads a program of `torch.export`; only from files one trusts, as PyTorch may unpickle them.

    Raises:
        SearchError: the file is damaged.
    """
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # the errors of its readers have no common base class
        raise SearchError(
            f"{path} is damaged: {(str(error) or repr(error)).splitlines()[0]}"
        ) from None

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = module(images)
        return logits

    return predict


def _not_exported(form: str, error: Exception) -> SearchError:
    reason = (str(error) or repr(error)).splitlines()[0]
    return SearchError(f"the network cannot be exported as {form}: {reason}")


GRAPHS: Mapping[str, GraphFormat] = {
    "onnx": GraphFormat("student.onnx", write_onnx, load_onnx),
    "torch_export": GraphFormat("student.pt2", write_torch_export, load_torch_export),
}


@torch.no_grad()
def measure_graph(predict: Predict, classifier: Classifier, split: Split) -> tuple[float, float]:
    """Compares a graph with its classifier.

    Args:
        predict: the graph.
        classifier: in evaluation mode, on the CPU.
        split: at least one image.

    Returns:
        The graph's accuracy, and the largest difference between logits as a share of the largest
        logit.
    """
    correct, difference, largest = 0, 0.0, 0.0
    size = split.batch_without_gradients()
    for images, labels in zip(split.batches(size), torch.split(split.labels, size), strict=True):
        logits, expected = predict(images), classifier(images)
        correct += int((logits.argmax(1) == labels).sum())
        difference = max(difference, (logits - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return correct / len(split), difference / max(largest, torch.finfo(torch.float32).tiny)


def graph_accuracy(predict: Predict, split: Split) -> float:
    """The share of a split's images that a graph classifies right.

    Args:
        predict: the graph.
        split: at least one image.
    """
    size = split.batch_without_gradients()
    batches = zip(split.batches(size), torch.split(split.labels, size), strict=True)
    return sum(
        int((predict(images).argmax(1) == labels).sum()) for images, labels in batches
    ) / len(split)
