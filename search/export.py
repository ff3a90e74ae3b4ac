"""The best student of a search, exported: weights, card, and scores on the test split."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from kdcore import load_student
from kdcore.classifier import (
    Classifier,
    build_classifier,
    describe_classifier,
    load_classifier,
    save_classifier,
)
from kdcore.data import ImageData, open_data
from kdcore.training import best_student, evaluate
from search.checkpoints import Checkpoints
from search.leaderboard import percent, points, rank
from search.record import SearchRecord, TrialRecord
from search.space import trial_config
from search.storage import Storage, workspace_of

# Other kernels, as another device or memory format has, may decide an image on the border
# otherwise.
_TOLERANCE = 0.001


@dataclass(frozen=True)
class Score:
    """Accuracies of one network, shares of 1."""

    name: str
    heldout_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class ExportedStudent:
    """What an export gave.

    Args:
        folder: holds `student.safetensors`, `student.json` and `README.md`.
        trial: the trial that it comes from.
        student: its scores, measured on the exported files.
        others: the teacher's and the control's.
    """

    folder: Path
    trial: TrialRecord
    student: Score
    others: tuple[Score, ...]


def export_best(record: SearchRecord, storage: Storage, folder: Path) -> ExportedStudent:
    """Exports the best finished student, and measures it, the control and the teacher on the test
    split.

    Args:
        record: the search.
        storage: where its checkpoints lie.
        folder: made where it is missing; an earlier export in it is replaced.

    Raises:
        ValueError: no trial has finished, its checkpoint is gone or damaged, or the exported files
            do not reproduce the recorded accuracy.
    """
    finished = rank(tuple(trial for trial in record.trials if trial.state == "finished"))
    if not finished:
        raise ValueError(
            f"no trial of {record.name} has finished, so there is no student to export"
        )
    data = open_data(record.experiment.data, workspace_of(storage))
    best = finished[0]
    classifier = _student(record, best, data, storage)
    student = _score(best.objective, classifier, data)
    if abs(student.heldout_accuracy - (best.heldout_accuracy or 0.0)) > _TOLERANCE:
        raise ValueError(
            f"trial {best.number} has a held-out accuracy of {percent(student.heldout_accuracy)} "
            f"%, but {percent(best.heldout_accuracy)} % was recorded: data or checkpoint changed"
        )
    others = []
    if record.teacher is not None:
        with tempfile.TemporaryDirectory() as copy:
            storage.download(record.teacher, Path(copy))
            teacher = load_classifier(Path(copy), "teacher")
        others.append(_score(f"teacher {record.experiment.teacher.backbone}", teacher, data))
    control = record.control_of(best.student)
    if control is not None:
        network = classifier if control is best else _student(record, control, data, storage)
        others.append(_score("none (control)", network, data))
    card = describe_classifier(
        classifier,
        best.student,
        data,
        metrics={
            "heldout_accuracy": student.heldout_accuracy,
            "test_accuracy": student.test_accuracy,
        },
        made_by={
            "search": record.name,
            "trial": best.number,
            "config": trial_config(record.experiment, best.point).model_dump(mode="json"),
        },
    )
    save_classifier(folder, "student", classifier, card)
    reloaded = _score(best.objective, load_student(folder), data)
    if reloaded != student:
        raise ValueError(f"the files in {folder} give {reloaded}, but the student gave {student}")
    exported = ExportedStudent(folder, best, reloaded, tuple(others))
    (folder / "README.md").write_text(_model_card(record, exported, data))
    return exported


def _student(
    record: SearchRecord, trial: TrialRecord, data: ImageData, storage: Storage
) -> Classifier:
    """A trial's network with the weights of its best epoch."""
    if trial.checkpoint is None:
        raise ValueError(f"trial {trial.number} has no checkpoint")
    with tempfile.TemporaryDirectory() as copy:
        try:
            Checkpoints(storage, trial.checkpoint).restore(Path(copy))
            best = best_student(Path(copy))
        except OSError as error:
            raise ValueError(f"the checkpoint of trial {trial.number} is gone: {error}") from None
    student = build_classifier(trial.student, data, seed=0)
    student.backbone.load_state_dict(best["student"])
    return student.eval()


def _score(name: str, classifier: Classifier, data: ImageData) -> Score:
    return Score(name, evaluate(classifier, data.heldout)[0], evaluate(classifier, data.test)[0])


def _model_card(record: SearchRecord, exported: ExportedStudent, data: ImageData) -> str:
    experiment, trial = record.experiment, exported.trial
    gain = record.gain(trial)
    height, width = data.image_size
    scores = [
        f"| {score.name} | {percent(score.heldout_accuracy)} | {percent(score.test_accuracy)} |"
        for score in (exported.student, *exported.others)
    ]
    lines = [
        f"# {trial.student}, distilled from {experiment.teacher.backbone}",
        "",
        f"A classifier of {data.num_classes} classes for {data.in_channels}x{height}x{width} "
        f"images, the best of {len(record.trials)} trials of the search `{record.name}`.",
        "",
        "| network | held-out % | test % |",
        "| --- | --- | --- |",
        *scores,
        "",
        f"The {len(data.heldout):,} held-out images ranked the trials; the {len(data.test):,} test "
        "images were used for this table only.",
    ]
    if gain is not None:
        lines.append(
            f"The gain over the same network without distillation is {points(gain)} percentage "
            "points on the held-out images, from one seed: differences of a few tenths are within "
            "the noise of a seed."
        )
    cost = record.student_costs.get(trial.student)
    if cost is not None:
        threads = f", {cost.threads} threads" if cost.threads else ""
        lines.append(
            f"It has {cost.parameters:,} parameters and takes {cost.multiply_adds:,} multiply-adds "
            f"and {cost.latency_ms:.3g} ms for an image ({cost.device}{threads})."
        )
    lines += [
        "",
        f"- data: {experiment.data.name}, {len(data.train):,} training images",
        f"- objective: {trial.objective}, beside cross-entropy",
        f"- epochs: {trial.epochs}; the weights are those of epoch {trial.best_epoch}",
        f"- seed: {experiment.seed}",
        "",
        "```python",
        "import kdcore",
        f'student = kdcore.load_student("{exported.folder}")',
        "```",
        "",
        "`student(images)` gives logits for uint8 images, or floats from 0 to 1; it normalises",
        "them itself.",
        "",
    ]
    return "\n".join(lines)
