"""The picked student on disk: weights, card, graph, and scores that are measured on those files."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from kdcore import TrialConfig, load_student
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.split import Split
from kdcore.networks.classifier import (
    Classifier,
    ClassifierCard,
    build_classifier,
    describe_classifier,
    load_classifier,
    save_classifier,
)
from kdcore.training.evaluation import default_device, evaluate
from kdcore.training.loop import best_student
from search.experiment.space.trial_config import trial_config
from search.export.choice import Limits, Picked, pick
from search.export.graph_formats import GRAPHS, measure_graph
from search.export.model_card import Score, model_card
from search.record.record import SearchRecord
from search.record.storage import Storage, workspace_of
from search.record.trial_checkpoints import Checkpoints
from search.record.wording import percent

# Other kernels, as another device or memory format has, may decide an image on the border
# otherwise: one of a thousand, or one of a few.
_TOLERANCE = 0.001

# Of the largest logit. A graph computes in another order of sums, but in float32 as well.
_LOGIT_TOLERANCE = 1e-3
WEIGHTS = "safetensors"
"""The format that every export has; a graph comes beside it."""


_FILES = ("student.safetensors", "student.json", "README.md", *(g.file for g in GRAPHS.values()))


@dataclass(frozen=True)
class ExportedStudent:
    """What an export gave.

    Args:
        folder: holds `student.safetensors`, `student.json`, `README.md`, and the graph.
        picked: where it comes from.
        student: its scores, measured on the exported files.
        others: the teacher's and the control's.
        data: that they were measured on.
        graph: what the graph gave, in words; empty without one.
    """

    folder: Path
    picked: Picked
    student: Score
    others: tuple[Score, ...]
    data: ImageData
    graph: str = ""


def export_best(
    record: SearchRecord,
    storage: Storage,
    folder: Path,
    *,
    limits: Limits | None = None,
    form: str = WEIGHTS,
) -> ExportedStudent:
    """Exports the best student within the limits, and measures the files, the control and the
    teacher on the test split. Nothing is left of an export that is refused.

    Args:
        record: the search.
        storage: where its checkpoints lie.
        folder: made where it is missing; an earlier export in it is replaced.
        limits: of size, latency and accuracy; none: no limits.
        form: `safetensors`, or a graph beside it: `onnx` or `torch_export`.

    Raises:
        ValueError: no trial has finished, none is within the limits, its checkpoint is gone or
            damaged, or the exported files do not reproduce the recorded accuracy.
    """
    limits = limits or Limits()
    picked = pick(record, limits)
    data = open_data(record.experiment.data, workspace_of(storage))
    config = trial_config(record.experiment, picked.point)
    config = config.model_copy(update={"seed": picked.seed})
    classifier = _student(picked.label, picked.student, picked.checkpoint, data, storage)
    card = _card(classifier, record.name, picked.label, config, data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        partial = Path(name)
        save_classifier(partial, "student", classifier, card)
        if form in GRAPHS:
            GRAPHS[form].write(classifier, _example(data), partial / GRAPHS[form].file)
        student, graph = measure_files(partial, form, picked, data)
        metrics = {
            "heldout_accuracy": student.heldout_accuracy,
            "test_accuracy": student.test_accuracy,
        }
        card = card.model_copy(update={"metrics": metrics})
        (partial / "student.json").write_text(card.model_dump_json(indent=2) + "\n")
        others = _others(record, picked, student, data, storage)
        exported = ExportedStudent(folder, picked, student, others, data, graph)
        commands = _commands(exported, record, storage, limits, form)
        text = model_card(record, picked, (student, *others), data, commands, folder)
        (partial / "README.md").write_text(text)
        _replace(partial, folder)
    return exported


def measure_files(folder: Path, form: str, picked: Picked, data: ImageData) -> tuple[Score, str]:
    """Loads exported files afresh and measures them.

    Args:
        folder: holds them.
        form: as in `export_best`.
        picked: what was recorded.
        data: to measure them on.

    Returns:
        The scores, and what the graph gave, in words.

    Raises:
        ValueError: a file is damaged, or does not reproduce what was recorded.
    """
    classifier = load_student(folder)
    accuracies = _accuracies(classifier.to(default_device()), data)
    _refuse_others(f"{folder / 'student.safetensors'}", accuracies, picked, data)
    words = ""
    if form in GRAPHS:
        path = folder / GRAPHS[form].file
        predict = GRAPHS[form].load(path)
        classifier = classifier.cpu()
        heldout, far = measure_graph(predict, classifier, data.heldout)
        test, farther = measure_graph(predict, classifier, data.test)
        difference = max(far, farther)
        _refuse_others(f"{path}", (heldout, test), picked, data)
        if difference > _LOGIT_TOLERANCE:
            raise ValueError(
                f"the logits of {path} differ from PyTorch's by {difference:.1e} of the largest, "
                f"but at most {_LOGIT_TOLERANCE:.0e} is expected"
            )
        words = (
            f"{path.name}: held-out {percent(heldout)} %, test {percent(test)} %; its logits on "
            f"{len(data.heldout) + len(data.test):,} images differ from PyTorch's by at most "
            f"{difference:.0e} of the largest"
        )
    return Score(picked.objective, *accuracies), words


def _refuse_others(
    what: str, accuracies: tuple[float, float], picked: Picked, data: ImageData
) -> None:
    """Refuses files whose accuracies are not those that were recorded."""
    recorded = (picked.heldout_accuracy, picked.test_accuracy)
    splits: tuple[tuple[str, Split], ...] = (("held-out", data.heldout), ("test", data.test))
    for (kind, split), now, then in zip(splits, accuracies, recorded, strict=True):
        if then is not None and abs(now - then) > max(_TOLERANCE, 1.5 / len(split)):
            raise ValueError(
                f"{what} has a {kind} accuracy of {percent(now)} %, but {percent(then)} % was "
                f"recorded for {picked.label}: data, checkpoint or files have changed"
            )


def _accuracies(classifier: Classifier, data: ImageData) -> tuple[float, float]:
    """Held out and on the test split."""
    return evaluate(classifier, data.heldout)[0], evaluate(classifier, data.test)[0]


def _example(data: ImageData) -> Tensor:
    """Two real images: from one, the exporter would take it that there is always one."""
    return next(data.heldout.batches(2))


def _others(
    record: SearchRecord, picked: Picked, student: Score, data: ImageData, storage: Storage
) -> tuple[Score, ...]:
    """The scores of the teacher, and of the control in the search."""
    others = []
    if record.teacher is not None:
        with tempfile.TemporaryDirectory() as copy:
            storage.download(record.teacher, Path(copy))
            teacher = load_classifier(Path(copy), "teacher").to(default_device())
        name = f"teacher {record.experiment.teacher.backbone}"
        others.append(Score(name, *_accuracies(teacher, data)))
    control = record.control_of(picked.student)
    if control is not None and control.checkpoint is not None:
        if control.checkpoint == picked.checkpoint:
            accuracies = student.heldout_accuracy, student.test_accuracy
        else:
            network = _student(
                str(control.number), control.student, control.checkpoint, data, storage
            )
            accuracies = _accuracies(network.to(default_device()), data)
        others.append(Score("none (control)", *accuracies))
    return tuple(others)


def export_rerun(
    checkpoint: Path, folder: Path, *, search: str, label: str, config: TrialConfig, workspace: Path
) -> None:
    """Exports what was trained again: weights and card, without scores on the test split.

    Args:
        checkpoint: the folder of the training's checkpoint.
        folder: made where it is missing; an earlier export in it is replaced.
        search: the name of the search that it was trained in before.
        label: of its row there.
        config: what it was trained by.
        workspace: where this machine keeps image tables.
    """
    data = open_data(config.data, workspace)
    classifier = _best_epoch(config.student, checkpoint, data)
    card = _card(classifier, search, label, config, data)
    with tempfile.TemporaryDirectory() as partial:
        save_classifier(Path(partial), "student", classifier, card)
        _replace(Path(partial), folder)


def _card(
    classifier: Classifier, search: str, label: str, config: TrialConfig, data: ImageData
) -> ClassifierCard:
    made_by: dict[str, JsonValue] = {
        "search": search,
        "trial": label,
        "config": config.model_dump(mode="json"),
    }
    return describe_classifier(classifier, config.student, data, metrics={}, made_by=made_by)


def _student(
    label: str, backbone: str, checkpoint: str, data: ImageData, storage: Storage
) -> Classifier:
    """A network with the weights of its best epoch, on the CPU, in evaluation mode."""
    with tempfile.TemporaryDirectory() as copy:
        try:
            Checkpoints(storage, checkpoint).restore(Path(copy))
            return _best_epoch(backbone, Path(copy), data)
        except OSError as error:
            raise ValueError(f"the checkpoint of trial {label} is gone: {error}") from None


def _best_epoch(backbone: str, checkpoint: Path, data: ImageData) -> Classifier:
    """The network of a local checkpoint."""
    student = build_classifier(backbone, data, seed=0)
    student.backbone.load_state_dict(best_student(checkpoint)["student"])
    student.backbone.drop_auxiliary()
    return student.eval()


def _commands(
    exported: ExportedStudent, record: SearchRecord, storage: Storage, limits: Limits, form: str
) -> tuple[str, str]:
    """What trains this student again, and what exports it again."""
    picked, where = exported.picked, storage_option(storage)
    again = "" if picked.confirmed is None else f" --seed {picked.seed}"
    options = {
        "--max-params": limits.parameters,
        "--max-latency-ms": limits.latency_ms,
        "--min-accuracy": limits.accuracy,
        "--format": None if form == WEIGHTS else form,
        "--out": exported.folder,
    }
    given = [f" {option} {value}" for option, value in options.items() if value is not None]
    return (
        f"kdsearch rerun {record.name} {picked.label}{again} --out again{where}",
        f"kdsearch best {record.name}{''.join(given)}{where}",
    )


def storage_option(storage: Storage) -> str:
    """How a command names the storage; the usual one needs no word."""
    usual = storage.local == Path("runs").absolute()
    return "" if usual else f" --storage {storage.uri}"


def _replace(partial: Path, folder: Path) -> None:
    """Moves an export to its place; files of an earlier one go."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (partial / name).exists():
            shutil.move(partial / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
