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
from kdcore.errors import did_you_mean
from kdcore.networks.classifier import (
    Classifier,
    ClassifierCard,
    describe_classifier,
    load_classifier,
    save_classifier,
)
from kdcore.training.evaluation import Evaluation, default_device
from kdcore.training.judging import evaluate_as_judged
from kdcore.training.loop import best_classifier, best_student
from search.errors import SearchError, StorageError
from search.experiment.running import use_plugins
from search.experiment.space.trial_config import trial_config
from search.export.choice import Candidate, Limits, pick
from search.export.class_table import CONFUSION
from search.export.file_table import file_section, graphs_in_words
from search.export.files import (
    WEIGHTS_FILE,
    ExportedFile,
    check_features,
    check_loss,
    describe_files,
    measure_files,
)
from search.export.graph_formats import GRAPHS
from search.export.int8 import INT8, MAX_LOSS, write_int8
from search.export.model_card import Score, model_card
from search.record.looks import Look, looks_at, record_look
from search.record.record import SearchRecord
from search.record.storage import Storage, workspace_of
from search.record.trial_checkpoints import Checkpoints

CONTROL_ROW = "none (control)"

WEIGHTS = "safetensors"
"""The format of every export; a graph is a second file."""

_FILES = (
    *(WEIGHTS_FILE, "student.json", "README.md", CONFUSION, INT8),
    *(g.file for g in GRAPHS.values()),
)


@dataclass(frozen=True)
class ExportedStudent:
    """An exported student.

    Args:
        folder: has `student.safetensors`, `student.json`, `README.md` and the graphs, if any.
        picked: the candidate that was exported.
        student: its scores, measured on the exported files.
        others: the scores of its teacher and the control.
        data: the images that they were measured on.
        looks: those at the test split for this task, including the one for this export.
        files: the weights, then the graphs: digests, accuracies and latencies.
        graph: the graphs' scores in words; empty without a graph.
    """

    folder: Path
    picked: Candidate
    student: Score
    others: tuple[Score, ...]
    data: ImageData
    looks: tuple[Look, ...]
    files: tuple[ExportedFile, ...]
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
        [B, C, H, W], uint8 or floats from 0 to 1; without a head, features [B, D]."""
        return load_student(self.folder)


def export_best(
    record: SearchRecord,
    storage: Storage,
    folder: Path,
    *,
    limits: Limits | None = None,
    form: str = WEIGHTS,
    int8: bool = False,
    max_loss: float | None = None,
    open_test: bool = True,
    head: bool = True,
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
        int8: whether to write the ONNX file in 8 bits too.
        max_loss: the most percentage points of held-out accuracy that this may cost; None: 1.
        open_test: false keeps the test split shut.
        head: false leaves the classifier out of the files, which then give features; before, they
            are measured with it.
        picture: draws the confusion matrix on the test split, for classes of these names, into a
            file; None draws none.

    Raises:
        SearchError: there is no such format, no trial has finished, no student is within the
            limits, a checkpoint is missing or damaged, the exported files do not reproduce the
            recorded accuracy, or int8 costs more than is allowed.
        StorageError: the folder cannot be written to, or the storage not read or written to.
    """
    formats = (WEIGHTS, *GRAPHS)
    if form not in formats:
        hint = did_you_mean(form, formats)
        raise SearchError(f"no export format {form!r}{hint} There are {', '.join(formats)}")
    allowed = _allowed_loss(form, int8, max_loss)
    if int8 and not head:
        raise SearchError(
            "--int8 is measured by what the classifier loses, but --without-head leaves it out; "
            "leave one of them out"
        )
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
        if allowed is not None:
            write_int8(partial / GRAPHS[form].file, data.heldout, partial / INT8)
        known = picked.heldout_accuracy
        heldout = measure_files(partial, data.heldout, "held-out", known, picked.label, data)
        if allowed is not None:
            check_loss(heldout, allowed)
        looks, test = looks_at(storage, record.experiment.data), None
        if open_test:
            looks += (_look(record, picked, storage),)
            recorded = picked.test_accuracy
            test = measure_files(partial, data.test, "test", recorded, picked.label, data)
        student = _scored(picked.objective, heldout.weights, test.weights if test else None)
        metrics = {"heldout_accuracy": student.heldout_accuracy}
        if student.test_accuracy is not None:
            metrics["test_accuracy"] = student.test_accuracy
        card = card.model_copy(update={"metrics": metrics})
        (partial / "student.json").write_text(card.model_dump_json(indent=2) + "\n")
        if picture is not None and student.test is not None:
            picture(student.test, data.class_names, partial / CONFUSION)
        others = _others(record, picked, student, data, storage)
        if not head:
            _leave_head_out(classifier, card, data, form, partial)
        files = describe_files(partial, heldout, test, data)
        graph = graphs_in_words(files, heldout, test, data)
        exported = ExportedStudent(folder, picked, student, others, data, looks, files, graph)
        commands = _commands(exported, record, storage, limits, form, allowed, head)
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
            files=file_section(files, heldout, test, data, allowed),
            has_head=head,
        )
        (partial / "README.md").write_text(text)
    return exported


def _leave_head_out(
    classifier: Classifier, card: ClassifierCard, data: ImageData, form: str, folder: Path
) -> None:
    """Writes the files anew, which then give features."""
    card = card.model_copy(update={"has_head": False})
    save_classifier(folder, "student", classifier, card)
    classifier.has_head = False
    if form in GRAPHS:
        GRAPHS[form].write(classifier, _example(data), folder / GRAPHS[form].file)
        check_features(folder, form, data.heldout)


def _allowed_loss(form: str, int8: bool, max_loss: float | None) -> float | None:
    """Percentage points of accuracy that int8 may cost; None without int8.

    Raises:
        SearchError: the options do not fit together.
    """
    if int8 and form != "onnx":
        raise SearchError(f"--int8 quantises the ONNX file, but --format is {form}; use onnx")
    if max_loss is None:
        return MAX_LOSS if int8 else None
    if not int8:
        raise SearchError("--max-loss is what --int8 may cost; add --int8, or leave it out")
    if not max_loss >= 0:
        raise SearchError(f"--max-loss is {max_loss:g}, but must be >= 0")
    return max_loss


def _look(record: SearchRecord, picked: Candidate, storage: Storage) -> Look:
    """Writes the look at the test split down that an export is about to take."""
    control = record.control_of(picked.student)
    tested = [picked.checkpoint]
    if control is not None and control.checkpoint not in (None, picked.checkpoint):
        tested.append(str(control.checkpoint))
    return record_look(storage, record, by="best", students=tested)


def _score(name: str, classifier: Classifier, data: ImageData, open_test: bool) -> Score:
    """On the held-out images, and on those of the test split where it is opened."""
    heldout = evaluate_as_judged(classifier, data, data.heldout)
    test = evaluate_as_judged(classifier, data, data.test) if open_test else None
    return _scored(name, heldout, test)


def _scored(name: str, heldout: Evaluation, test: Evaluation | None) -> Score:
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
    exported: ExportedStudent,
    record: SearchRecord,
    storage: Storage,
    limits: Limits,
    form: str,
    max_loss: float | None,
    head: bool,
) -> tuple[str, str]:
    """The commands that train this student again and export it again."""
    picked, where = exported.picked, storage_option(storage)
    again = "" if picked.confirmed is None else f" --seed {picked.seed}"
    options = {
        "--max-params": limits.parameters,
        "--max-latency-ms": limits.latency_ms,
        "--min-accuracy": limits.accuracy,
        "--format": None if form == WEIGHTS else form,
        "--int8 --max-loss": max_loss,
        "--out": exported.folder,
    }
    given = [f" {option} {value}" for option, value in options.items() if value is not None]
    given += [] if head else [" --without-head"]
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
