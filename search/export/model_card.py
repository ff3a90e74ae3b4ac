"""The model card of an exported student, `README.md`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from kdcore import DataConfig, TeacherConfig
from kdcore.data.augmentation.steps import BASIC, written
from kdcore.data.image_data import ImageData
from kdcore.networks.classifier import loading
from kdcore.training.evaluation import Evaluation
from search.experiment.searched import in_words
from search.experiment.space.trial_config import trial_config
from search.export.choice import Candidate
from search.export.class_table import class_section
from search.leaderboard.ranking import further_columns, tested_cells, tested_heads
from search.leaderboard.teacher_lead import no_method_won
from search.record.costs import cost_of, costed_as
from search.record.looks import Look, looks_in_words
from search.record.record import Confirmed, SearchRecord
from search.record.wording import (
    METRIC_WORDS,
    WINNERS_CURSE,
    gain_in_words,
    markdown_table,
    percent,
    points,
)


@dataclass(frozen=True)
class Score:
    """The accuracies of a network, from 0 to 1; without one on a test split that stayed shut.

    Args:
        name: of the network.
        heldout_accuracy: on the held-out images.
        test_accuracy: on the test split.
        heldout: all about the held-out images, if it was measured.
        test: all about the test images, if they were.
    """

    name: str
    heldout_accuracy: float
    test_accuracy: float | None
    heldout: Evaluation | None = field(default=None, compare=False, repr=False)
    test: Evaluation | None = field(default=None, compare=False, repr=False)


def model_card(
    record: SearchRecord,
    picked: Candidate,
    scores: Sequence[Score],
    data: ImageData,
    looks: Sequence[Look],
    commands: Sequence[str],
    folder: Path,
    start: Mapping[str, JsonValue],
    *,
    pictured: bool = False,
    files: Sequence[str] = (),
    has_head: bool = True,
) -> str:
    """The card as Markdown.

    Args:
        record: the search.
        picked: the student.
        scores: the scores of the student, its teacher and the control, in this order.
        data: the images.
        looks: those at the test split for this task.
        commands: the commands that train the student again and export it again.
        folder: the folder of the export.
        start: where the weights came from that the student began with; empty for fresh ones.
        pictured: whether the confusion matrix is drawn beside the card.
        files: the lines about the files.
        has_head: whether the files classify, or give features.
    """
    experiment = record.experiment
    config = trial_config(experiment, picked.point)
    height, width = data.image_size
    kind = "A classifier" if has_head else "Features from a classifier"
    lines = [
        f"# {picked.student}, {_origin(record, picked)}",
        "",
        f"{kind} of {data.num_classes} classes for {data.in_channels}x{height}x{width} "
        f"images, the best of {len(record.trials)} trials of the search `{record.name}`.",
        *_control(record, picked),
        "",
        markdown_table(score_cells(scores, record)),
        "",
        f"The trials were ranked on the {len(data.heldout):,} held-out images; "
        f"{_role_of_test(record, picked, data)} {_opened(record, scores, looks)}",
        "",
        *_spread(record, picked),
        "",
        *class_section(scores[0].test, data.class_names, pictured=pictured),
        *files,
        "## How it was made",
        "",
        f"- data: {experiment.data.name}, {len(data.train):,} training images, digest "
        f"{data.digest}",
        *_without_labels(data),
        f"- teacher: {_teacher_in_words(record, picked)}",
        *_start_in_words(start),
        "- objective: cross-entropy alone"
        if picked.is_control
        else f"- objective: {picked.objective}, "
        + ("added to cross-entropy" if data.unlabelled is None else "without labels"),
        f"- training: {config.training.model_dump_json(exclude_none=True)}",
        *_views(record, config.data),
        f"- epochs: {config.training.epochs + config.epochs_on_top}; the weights are from epoch "
        f"{picked.best_epoch}",
        f"- seed: {picked.seed}; the search's seed: {experiment.seed}, its sampler's seed: "
        f"{experiment.search.seed}",
        f"- cost of the search: {record.cost}{_cost_of_confirmation(record)}",
        *_network_cost(record, picked),
        *_classifier(record, picked),
        "",
        "The first command trains the student again, compares each epoch with the record and "
        "writes the weights; the second exports the recorded weights again:",
        "",
        "```",
        *commands,
        "```",
        "",
        "## Licences",
        "",
        *_licences(record),
        "",
        "## Use",
        "",
        "```python",
        "import kdcore",
        f"student = {loading(folder, config.student.backbone)}",
        "```",
        "",
        f"`student(images)` returns {'logits' if has_head else 'features'} for uint8 images, or "
        "floats from 0 to 1, and normalises",
        "them itself.",
        *_preparation(data),
        "",
    ]
    return "\n".join(lines)


def _preparation(data: ImageData) -> list[str]:
    """How images of any size were prepared; nothing where they were classified as they are."""
    crop = data.config.centre_crop
    if crop is None:
        return []
    return [
        "",
        f"The accuracies are of upright RGB images, {crop.in_words(data.image_size)}; prepare "
        "yours likewise.",
    ]


def _without_labels(data: ImageData) -> list[str]:
    """What is learned without labels, and what then classifies."""
    if data.unlabelled is None:
        return []
    by = "the probe" if data.config.judge == "linear_probe" else "their 20 nearest neighbours"
    return [
        f"- students with a teacher learned from {len(data.unlabelled):,} images without labels, "
        f"the control from the training images and their labels; the head of each network is a "
        f"linear probe, fitted to the features of the training images, and accuracies are those of "
        f"{by}"
    ]


def _views(record: SearchRecord, data: DataConfig) -> list[str]:
    """The student's augmentation, where that was searched."""
    if record.experiment.searched_views is None:
        return []
    return [
        f"- augmentation: {in_words(written(data.augmentation)) if data.augmentation else BASIC}"
    ]


def _origin(record: SearchRecord, picked: Candidate) -> str:
    if picked.is_control:
        return "trained without a teacher"
    return f"distilled from {record.teacher_of(picked)}"


def _control(record: SearchRecord, picked: Candidate) -> list[str]:
    """Says that this student is the search's control, if it is."""
    if not picked.is_control:
        return []
    verdict = no_method_won(record, picked.student)
    return [f"It is the control of that search{f': {verdict}' if verdict else ''}."]


def score_cells(scores: Sequence[Score], record: SearchRecord) -> list[list[str]]:
    """The table of the accuracies, its head first, with what the leaderboard has beside them;
    without a column for a test split that stayed shut.

    Args:
        scores: of each network.
        record: the search.
    """
    further = further_columns(record)
    fields = [name.removeprefix("heldout_") for name in further]
    splits = ["held-out", *(["test"] if scores[0].test_accuracy is not None else [])]
    names = ["network"]
    for split in splits:
        names += [f"{split} %", *(f"{split} {head}" for head in further.values())]
    lines = [names]
    for score in scores:
        measured = {
            "held-out": (score.heldout_accuracy, score.heldout),
            "test": (score.test_accuracy, score.test),
        }
        cells = [score.name]
        for split in splits:
            accuracy, found = measured[split]
            cells += [percent(accuracy), *(percent(getattr(found, name, None)) for name in fields)]
        lines.append(cells)
    return lines


def _role_of_test(record: SearchRecord, picked: Candidate, data: ImageData) -> str:
    """What the test images had to do with the choice of the student."""
    images = f"the {len(data.test):,} test images"
    if picked.confirmed is None:
        return f"{images} had no part in choosing."
    count = sum(each.is_confirmed for each in record.confirmed)
    return f"{images} chose among the {count} students that were trained with fresh seeds."


def _opened(record: SearchRecord, scores: Sequence[Score], looks: Sequence[Look]) -> str:
    """How often the test split was opened, and how to open it where it stayed shut."""
    counted = f"{looks_in_words(looks).capitalize()}."
    if scores[0].test_accuracy is not None:
        return counted
    return (
        f"{counted} For this card it stayed shut; once something is picked, "
        f"`kdsearch confirm {record.name}` (fresh seeds) or `kdsearch best {record.name}` opens it."
    )


def _spread(record: SearchRecord, picked: Candidate) -> list[str]:
    """How much these scores vary with the seed."""
    confirmed = picked.confirmed
    if confirmed is None:
        trial = next((each for each in record.trials if each.number == picked.trial), None)
        gain = record.gain(trial) if trial is not None else None
        if gain is None:
            return ["These scores are from one seed."]
        return [
            f"The gain{_of_metric(record)} over the same network without distillation is "
            f"{points(gain)} percentage "
            "points on the held-out images, from one seed. Changing the seed alone shifts accuracy "
            "by a few tenths of a point."
        ]
    controls = [
        each
        for each in record.confirmed
        if each.student == picked.student and each.label != picked.label and each.role != "best"
    ]
    rows = [confirmed, *(each for each in controls if each.is_confirmed)]
    return [
        f"Trained with fresh seeds, mean ± standard deviation; gains{_of_metric(record)} are "
        "paired by seed, with their 95 % interval:",
        "",
        markdown_table(
            [["network", "seeds", *tested_heads(record), "gain, points"]]
            + [_row(record, each) for each in rows]
        ),
        "",
        f"The file has the weights of seed {picked.seed}, the best one on the held-out images.",
        WINNERS_CURSE,
    ]


def _of_metric(record: SearchRecord) -> str:
    return "" if record.metric == "accuracy" else f" of {METRIC_WORDS[record.metric]}"


def _row(record: SearchRecord, each: Confirmed) -> list[str]:
    name = each.objective if each.role == "best" else f"{each.objective} ({each.role})"
    seeds = ", ".join(map(str, each.test_accuracies))
    gain = gain_in_words(record.confirmed_gain(each))
    return [name, seeds, *tested_cells(record, each), gain]


def _teacher_in_words(record: SearchRecord, picked: Candidate) -> str:
    """The student's teacher, or the best one beside a control, and what it came from."""
    label = record.teacher_of(picked) or record.best_teacher
    members = record.experiment.members(label).values()
    origins = [_origin_of_teacher(teacher) for teacher in members]
    if len(origins) > 1:
        named = zip(members, origins, strict=True)
        origins = [f"of {teacher.name}, {words}" for teacher, words in named]
    others = [each for each in record.experiment.teachers if each != label]
    also = f"; the search also had {', '.join(others)}" if others else ""
    return f"{label}, {'; '.join(origins)}{also}"


def _origin_of_teacher(teacher: TeacherConfig) -> str:
    words = [] if teacher.weights is None else [f"weights {teacher.weights}"]
    if teacher.training is not None:
        words.append(f"trained for {teacher.training.epochs} epochs")
    words += [f"distilled into {assistant}, its assistant" for assistant in teacher.assistants]
    return ", then ".join(words)


def _start_in_words(start: Mapping[str, JsonValue]) -> list[str]:
    """A line on the weights that the student began with."""
    if not start:
        return []
    details = [f"{key} {value}" for key, value in start.items() if key not in ("weights", "fit")]
    return [f"- began with: weights {start['weights']} ({', '.join(details)}): {start['fit']}"]


def _cost_of_confirmation(record: SearchRecord) -> str:
    seconds = sum(run.train_seconds for each in record.confirmed for run in each.runs)
    return f"; of the confirmation: {seconds / 3600:.3g} h of training" if seconds else ""


def _network_cost(record: SearchRecord, picked: Candidate) -> list[str]:
    cost = cost_of(record, picked)
    if cost is None:
        return []
    threads = f", {cost.threads} threads" if cost.threads else ""
    return [
        f"- cost per image: {cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds,"
        f" {cost.latency_ms:.3g} ms ({cost.device}{threads})"
    ]


def _classifier(record: SearchRecord, picked: Candidate) -> list[str]:
    """Says that the student has its teacher's classifier, if it has."""
    if costed_as(record, picked) == picked.student:
        return []
    return [
        "- classifier: the teacher's, behind a projector; the files and the cost have all three"
    ]


def _licences(record: SearchRecord) -> list[str]:
    licences = record.experiment.licences
    return [
        f"- {part}: {words or '(to be filled in: licences.' + part + ' in the experiment)'}"
        for part, words in (
            ("student", licences.student),
            ("teacher", licences.teacher),
            ("data", licences.data),
        )
    ]
