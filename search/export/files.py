"""Exported files: loaded afresh, measured, and held against what was recorded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kdcore import load_student
from kdcore.data.image_data import ImageData
from kdcore.data.split import Split
from kdcore.networks.measurement import measure_latency, median_latency
from kdcore.training.evaluation import Evaluation, default_device
from kdcore.training.judging import evaluate_as_judged
from search.errors import SearchError
from search.export.graph_formats import GRAPHS, graph_accuracy, load_onnx, measure_graph
from search.export.int8 import INT8
from search.record.wording import percent

WEIGHTS_FILE = "student.safetensors"

# Another device or memory format uses other kernels, which may classify a borderline image
# differently: one in a thousand, or one in all.
_TOLERANCE = 0.001

# As a share of the largest logit. A graph sums in another order, but also in float32.
_LOGIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Measured:
    """What exported files do with the images of a split.

    Args:
        weights: of the weights, in PyTorch.
        graph: accuracy of the float32 graph, a share of 1; None where there is none.
        difference: of its logits from PyTorch's, at most, as a share of the largest.
        int8: accuracy of the int8 graph, likewise.
    """

    weights: Evaluation
    graph: float | None = None
    difference: float = 0.0
    int8: float | None = None

    @property
    def lost(self) -> float:
        """Percentage points of accuracy that int8 costs, both graphs by ONNX Runtime."""
        if self.graph is None or self.int8 is None:
            return 0.0
        return round(100 * (self.graph - self.int8), 6)


def measure_files(
    folder: Path,
    split: Split,
    kind: str,
    recorded: float | None,
    label: str,
    data: ImageData | None = None,
) -> Measured:
    """Loads exported files and measures them.

    Args:
        folder: the folder of the files.
        split: at least one image.
        kind: `held-out` or `test`.
        recorded: the accuracy that they must have, from 0 to 1; None if it was not recorded.
        label: the trial's number, or the published setting's name.
        data: whose judge says what the weights do; None: their head.

    Raises:
        SearchError: a file is damaged, or does not reproduce the recorded accuracy.
    """
    classifier = load_student(folder)
    weights = evaluate_as_judged(classifier.to(default_device()), data, split)
    _check_accuracy(folder / WEIGHTS_FILE, weights.accuracy, split, kind, recorded, label)
    graph = next((each for each in GRAPHS.values() if (folder / each.file).exists()), None)
    if graph is None:
        return Measured(weights)
    path = folder / graph.file
    accuracy, difference = measure_graph(graph.load(path), classifier.cpu(), split)
    if data is None or data.config.judge != "knn":  # which a graph does not have
        _check_accuracy(path, accuracy, split, kind, recorded, label)
    _check_difference(path, "logits", difference)
    int8 = None
    if (folder / INT8).exists():
        int8 = graph_accuracy(load_onnx(folder / INT8), split)
    return Measured(weights, accuracy, difference, int8)


def check_features(folder: Path, form: str, split: Split) -> None:
    """Refuses a graph without a head whose features are not those of the weights beside it.

    Args:
        folder: the folder of the files.
        form: of the graph.
        split: at least one image.

    Raises:
        SearchError: it is damaged, or gives others.
    """
    path = folder / GRAPHS[form].file
    _, difference = measure_graph(GRAPHS[form].load(path), load_student(folder), split)
    _check_difference(path, "features", difference)


def _check_difference(path: Path, outputs: str, difference: float) -> None:
    if difference > _LOGIT_TOLERANCE:
        raise SearchError(
            f"the {outputs} of {path} differ from PyTorch's by {difference:.1e} of the largest, "
            f"but {_LOGIT_TOLERANCE:.0e} is the most that rounding explains"
        )


def _check_accuracy(
    path: Path, now: float, split: Split, kind: str, recorded: float | None, label: str
) -> None:
    """Raises SearchError unless a file's accuracy is the recorded one."""
    if recorded is not None and abs(now - recorded) > max(_TOLERANCE, 1.5 / len(split)):
        raise SearchError(
            f"{path} has a {kind} accuracy of {percent(now)} %, but {percent(recorded)} % was "
            f"recorded for {label}: data, checkpoint or files have changed"
        )


def check_loss(heldout: Measured, max_loss: float) -> None:
    """Refuses an int8 graph that costs too much.

    Args:
        heldout: on the held-out images.
        max_loss: percentage points of accuracy.

    Raises:
        SearchError: it costs more.
    """
    if heldout.lost > max_loss:
        raise SearchError(
            f"int8 costs {heldout.lost:.2f} points of held-out accuracy "
            f"({percent(heldout.int8)} % instead of {percent(heldout.graph)} %), but --max-loss is "
            f"{max_loss:g}; allow more, or export without --int8"
        )


@dataclass(frozen=True)
class ExportedFile:
    """A file of weights or a graph.

    Args:
        name: of the file.
        size: bytes.
        sha256: of the content, in hexadecimal digits.
        heldout_accuracy: a share of 1.
        test_accuracy: a share of 1; None where the test split stayed shut.
        latency_ms: median milliseconds for one image, on this machine's CPU.
    """

    name: str
    size: int
    sha256: str
    heldout_accuracy: float
    test_accuracy: float | None
    latency_ms: float


def describe_files(
    folder: Path, heldout: Measured, test: Measured | None, data: ImageData
) -> tuple[ExportedFile, ...]:
    """The files with their accuracies and latencies: weights, then the graphs.

    Args:
        folder: the folder of the files.
        heldout: on the held-out images.
        test: on the test split; None where it stayed shut.
        data: the images, one of which is classified again and again.
    """
    image = next(data.heldout.batches(1)).cpu()
    found = [
        _file(
            folder / WEIGHTS_FILE,
            heldout.weights.accuracy,
            test.weights.accuracy if test else None,
            measure_latency(load_student(folder), image),
        )
    ]
    for graph in GRAPHS.values():
        if heldout.graph is not None and (folder / graph.file).exists():
            path = folder / graph.file
            latency = median_latency(graph.load(path), image)
            found.append(_file(path, heldout.graph, test.graph if test else None, latency))
    if heldout.int8 is not None:
        path = folder / INT8
        latency = median_latency(load_onnx(path), image)
        found.append(_file(path, heldout.int8, test.int8 if test else None, latency))
    return tuple(found)


def _file(path: Path, heldout: float, test: float | None, latency_ms: float) -> ExportedFile:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return ExportedFile(path.name, len(content), digest, heldout, test, latency_ms)
