"""Exports the best student, and measures the exported files."""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from kdcore import TrialConfig, load_student
from kdcore.backbones.names import own_digests
from kdcore.contract import plugged
from kdcore.contract.plugin import Kind
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.split import Split
from kdcore.errors import did_you_mean
from kdcore.networks.classifier import (
    Classifier,
    ClassifierCard,
    describe_classifier,
    load_classifier,
    save_classifier,
)
from kdcore.training.evaluation import Evaluation, default_device, evaluate_classes
from kdcore.training.loop import best_classifier, best_student
from search.errors import SearchError, StorageError
from search.experiment.running import use_plugins
from search.experiment.space.trial_config import trial_config
from search.export.choice import Candidate, Limits, pick
from search.export.class_table import CONFUSION
from search.export.graph_formats import GRAPHS, measure_graph
from search.export.model_card import Score, model_card
from search.record.looks import Look, looks_at, record_look
from search.record.record import SearchRecord
from search.record.storage import Storage, workspace_of
from search.record.trial_checkpoints import Checkpoints
from search.record.wording import percent

# Another device or memory format uses other kernels, which may classify a borderline image
# differently: one in a thousand, or one in all.
_TOLERANCE = 0.001

# As a share of the largest logit. A graph sums in another order, but also in float32.
_LOGIT_TOLERANCE = 1e-3

CONTROL_ROW = "none (control)"

WEIGHTS = "safetensors"
"""The format of every export; a graph is a second file."""

_FILES = (
    *("student.safetensors", "student.json", "README.md", CONFUSION),
    *(g.file for g in GRAPHS.values()),
)


@dataclass(frozen=True)
class ExportedStudent:
    """An exported student.

    Args:
        folder: has `student.safetensors`, `student.json`, `README.md` and the graph, if any.
        picked: the candidate that was exported.
        student: its scores, measured on the exported files.
        others: the scores of its teacher and the control.
        data: the images that they were measured on.
        looks: those at the test split for this task, including the one for this export.
        graph: the graph's scores in words; empty without a graph.
    """

    folder: Path
    picked: Candidate
    student: Score
    others: tuple[Score, ...]
    data: ImageData
    looks: tuple[Look, ...]
    graph: str = ""

    @property
    def heldout_accuracy(self) -> float:
        """Of the exported files, a share of 1."""
        return self.student.heldout_accuracy

    @property
    def test_accuracy(self) -> float | None:
        """Of the exported files on the test split, a share of 1; none where that stayed shut."""
        return self.student.test_accuracy

    def load(self) -> Classifier:
        """The student, ready to classify: `student(images)` gives logits [B, K] for images
        [B, C, H, W], uint8 or floats from 0 to 1."""
        return load_student(self.folder)


def export_best(
    record: SearchRecord,
    storage: Storage,
    folder: Path,
    *,
    limits: Limits | None = None,
    form: str = WEIGHTS,
    open_test: bool = True,
    picture: Callable[[Evaluation, Sequence[str], Path], None] | None = None,
) -> ExportedStudent:
    """Exports the best student within the limits.

    The exported files, the control and the teacher are measured on the held-out images, and on the
    test split, which is written down as a look at it. A failed export leaves no files behind.

    Args:
        record: the search.
        storage: the storage with its checkpoints.
        folder: created if missing; an earlier export in it is replaced.
        limits: of size, latency and accuracy; None sets no limits.
        form: `safetensors`, or a graph in addition: `onnx` or `torch_export`.
        open_test: false keeps the test split shut.
        picture: draws the confusion matrix on the test split, for classes of these names, into a
            file; None draws none.

    Raises:
        SearchError: there is no such format, no trial has finished, no student is within the
            limits, a checkpoint is missing or damaged, or the exported files do not reproduce the
            recorded accuracy.
        StorageError: the folder cannot be written to, or the storage not read or written to.
    """
    formats = (WEIGHTS, *GRAPHS)
    if form not in formats:
        hint = did_you_mean(form, formats)
        raise SearchError(f"no export format {form!r}{hint} There are {', '.join(formats)}")
    limits = limits or Limits()
    picked = pick(record, limits)
    use_plugins(record.experiment)
    data = open_data(record.experiment.data, workspace_of(storage))
    config = trial_config(record.experiment, picked.point)
    config = config.model_copy(update={"seed": picked.seed})
    backbone = config.student.backbone
    classifier = trained_student(picked.label, backbone, picked.checkpoint, data, storage)
    card = _card(classifier, record.name, picked.label, config, data)
    with replacing(folder) as partial:
        save_classifier(partial, "student", classifier, card)
        _write_code(partial, backbone)
        if form in GRAPHS:
            GRAPHS[form].write(classifier, _example(data), partial / GRAPHS[form].file)
        looks = looks_at(storage, record.experiment.data)
        if open_test:
            looks += (_look(record, picked, storage),)
        student, graph = measure_files(partial, form, picked, data, open_test=open_test)
        metrics = {"heldout_accuracy": student.heldout_accuracy}
        if student.test_accuracy is not None:
            metrics["test_accuracy"] = student.test_accuracy
        card = card.model_copy(update={"metrics": metrics})
        (partial / "student.json").write_text(card.model_dump_json(indent=2) + "\n")
        if picture is not None and student.test is not None:
            picture(student.test, data.class_names, partial / CONFUSION)
        others = _others(record, picked, student, data, storage)
        exported = ExportedStudent(folder, picked, student, others, data, looks, graph)
        commands = _commands(exported, record, storage, limits, form)
        text = model_card(
            record,
            picked,
            (student, *others),
            data,
            looks,
            commands,
            folder,
            classifier.origin,
            pictured=picture is not None,
        )
        (partial / "README.md").write_text(text)
    return exported


def _look(record: SearchRecord, picked: Candidate, storage: Storage) -> Look:
    """Writes the look at the test split down that an export is about to take."""
    control = record.control_of(picked.student)
    tested = [picked.checkpoint]
    if control is not None and control.checkpoint not in (None, picked.checkpoint):
        tested.append(str(control.checkpoint))
    return record_look(storage, record, by="best", students=tested)


def measure_files(
    folder: Path, form: str, picked: Candidate, data: ImageData, *, open_test: bool = True
) -> tuple[Score, str]:
    """Loads exported files and measures them.

    Args:
        folder: the folder of the files.
        form: as for `export_best`.
        picked: the candidate, with the recorded accuracies.
        data: the images to measure them on.
        open_test: false leaves the test split out.

    Returns:
        The scores, and the graph's scores in words.

    Raises:
        SearchError: a file is damaged, or does not reproduce the recorded accuracies.
    """
    classifier = load_student(folder)
    score = _score(picked.objective, classifier.to(default_device()), data, open_test)
    accuracies = score.heldout_accuracy, score.test_accuracy
    _check_accuracies(folder / "student.safetensors", accuracies, picked, data)
    words = ""
    if form in GRAPHS:
        path = folder / GRAPHS[form].file
        predict = GRAPHS[form].load(path)
        classifier = classifier.cpu()
        heldout, far = measure_graph(predict, classifier, data.heldout)
        test, farther = measure_graph(predict, classifier, data.test) if open_test else (None, 0.0)
        difference = max(far, farther)
        _check_accuracies(path, (heldout, test), picked, data)
        if difference > _LOGIT_TOLERANCE:
            raise SearchError(
                f"the logits of {path} differ from PyTorch's by {difference:.1e} of the largest, "
                f"but {_LOGIT_TOLERANCE:.0e} is the most that rounding explains"
            )
        tested = "" if test is None else f", test {percent(test)} %"
        images = len(data.heldout) + (len(data.test) if open_test else 0)
        words = (
            f"{path.name}: held-out {percent(heldout)} %{tested}; its logits on "
            f"{images:,} images differ from PyTorch's by at most {difference:.0e} of the largest"
        )
    return score, words


def _check_accuracies(
    path: Path, accuracies: tuple[float, float | None], picked: Candidate, data: ImageData
) -> None:
    """Raises SearchError unless a file's accuracies are the recorded ones."""
    recorded = (picked.heldout_accuracy, picked.test_accuracy)
    splits: tuple[tuple[str, Split], ...] = (("held-out", data.heldout), ("test", data.test))
    for (kind, split), now, then in zip(splits, accuracies, recorded, strict=True):
        if now is None or then is None:
            continue
        if abs(now - then) > max(_TOLERANCE, 1.5 / len(split)):
            raise SearchError(
                f"{path} has a {kind} accuracy of {percent(now)} %, but {percent(then)} % was "
                f"recorded for {picked.label}: data, checkpoint or files have changed"
            )


def _score(name: str, classifier: Classifier, data: ImageData, open_test: bool) -> Score:
    """On the held-out images, and on those of the test split where it is opened."""
    heldout = evaluate_classes(classifier, data.heldout)
    test = evaluate_classes(classifier, data.test) if open_test else None
    return Score(name, heldout.accuracy, test.accuracy if test else None, heldout, test)


def _example(data: ImageData) -> Tensor:
    """Two images: with one example, the exporter would fix the batch size at 1."""
    return next(data.heldout.batches(2))


def _teacher(record: SearchRecord, folder: str, storage: Storage) -> Classifier:
    with tempfile.TemporaryDirectory() as copy:
        try:
            storage.download(folder, Path(copy))
            return load_classifier(Path(copy), "teacher")
        except OSError as error:
            raise SearchError(f"the teacher of {record.name} is missing: {error}") from None


def _others(
    record: SearchRecord, picked: Candidate, student: Score, data: ImageData, storage: Storage
) -> tuple[Score, ...]:
    """The scores of the teacher and of the search's control, on the splits of the student's."""
    others = []
    open_test = student.test_accuracy is not None
    label = record.teacher_of(picked) or record.best_teacher
    if label in record.ready_teachers:
        folder = record.ready_teachers[label].folder
        teacher = _teacher(record, folder, storage).to(default_device())
        others.append(_score(f"teacher {label}", teacher, data, open_test))
    control = record.control_of(picked.student)
    if control is not None and control.checkpoint is not None:
        if control.checkpoint == picked.checkpoint:
            others.append(replace(student, name=CONTROL_ROW))
        else:
            backbone = record.experiment.student_configs[control.student].backbone
            network = trained_student(
                str(control.number), backbone, control.checkpoint, data, storage
            )
            others.append(_score(CONTROL_ROW, network.to(default_device()), data, open_test))
    return tuple(others)


def export_rerun(
    checkpoint: Path, folder: Path, *, search: str, label: str, config: TrialConfig, workspace: Path
) -> None:
    """Exports a trial that was trained again: weights and card, without test scores.

    Args:
        checkpoint: the local folder of its checkpoint.
        folder: created if missing; an earlier export in it is replaced.
        search: the name of the search.
        label: the trial's number, or the published setting's name.
        config: the configuration that it was trained with.
        workspace: the local folder of image tables.

    Raises:
        StorageError: the folder cannot be written to.
    """
    data = open_data(config.data, workspace)
    classifier = _best_epoch(config.student.backbone, data, checkpoint)
    card = _card(classifier, search, label, config, data)
    with replacing(folder) as partial:
        save_classifier(partial, "student", classifier, card)
        _write_code(partial, config.student.backbone)


def _write_code(folder: Path, backbone: str) -> None:
    """The code of a user's own network, for whoever loads the student."""
    for network in own_digests(backbone):
        plugin = plugged.plugin_of(Kind.BACKBONES, network)
        for path, text in (plugin.sources if plugin else {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)


def _card(
    classifier: Classifier, search: str, label: str, config: TrialConfig, data: ImageData
) -> ClassifierCard:
    made_by: dict[str, JsonValue] = {
        "search": search,
        "trial": label,
        "config": config.model_dump(mode="json"),
    }
    return describe_classifier(
        classifier, config.student.backbone, data, metrics={}, made_by=made_by
    )


def trained_student(
    label: str, backbone: str, checkpoint: str, data: ImageData, storage: Storage
) -> Classifier:
    """A trial's network with the weights of its best epoch, on the CPU, in evaluation mode.

    Args:
        label: the trial's number, or the published setting's name.
        backbone: the network.
        checkpoint: the folder of its checkpoints, relative to the storage.
        data: the images that it was trained on.
        storage: where searches are kept.

    Raises:
        SearchError: the checkpoint is missing or damaged.
        StorageError: it cannot be read.
    """
    with tempfile.TemporaryDirectory() as copy:
        try:
            Checkpoints(storage, checkpoint).restore(Path(copy))
            return _best_epoch(backbone, data, Path(copy))
        except (FileNotFoundError, ValueError, RuntimeError, KeyError):
            raise SearchError(
                f"the checkpoint of trial {label} is missing or damaged: "
                f"{storage.uri}/{checkpoint}; kdsearch rerun trains it again"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot read the checkpoint of trial {label}", error) from None


def _best_epoch(backbone: str, data: ImageData, checkpoint: Path) -> Classifier:
    """The network of a local checkpoint's best epoch."""
    student = best_classifier(backbone, data, best_student(checkpoint))
    student.backbone.drop_auxiliary()
    return student.eval()


def _commands(
    exported: ExportedStudent, record: SearchRecord, storage: Storage, limits: Limits, form: str
) -> tuple[str, str]:
    """The commands that train this student again and export it again."""
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
        f"kdsearch rerun {record.name} {shlex.quote(picked.label)}{again} --out again{where}",
        f"kdsearch best {record.name}{''.join(given)}{where}",
    )


def storage_option(storage: Storage) -> str:
    """The option that names this storage; empty for the default storage."""
    is_default = storage.local == Path("runs").absolute()
    return "" if is_default else f" --storage {storage.uri}"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files replace an earlier export once all are written.

    Raises:
        StorageError: the folder cannot be written to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
            partial = Path(name)
            yield partial
            folder.mkdir(exist_ok=True)
            for file in _FILES:
                if (partial / file).exists():
                    shutil.move(partial / file, folder / file)
                else:
                    (folder / file).unlink(missing_ok=True)
            shutil.copytree(partial, folder, dirs_exist_ok=True)  # code of the user's own network
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write to {folder}", error) from None
