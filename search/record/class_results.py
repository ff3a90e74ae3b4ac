"""What a student does with each class: as a record keeps it, and as pages show it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from search.experiment.closed import Closed
from search.experiment.schema import CONTROL
from search.record.wording import markdown_table, percent

if TYPE_CHECKING:
    from kdcore.training.evaluation import Evaluation

ALL_CLASSES = 40
"""Of more classes than these, a record keeps the worst ones and the most frequent mistakes."""
WORST_CLASSES = 20
_MOST_MISTAKES = 20


class ClassResult(Closed):
    """A class.

    Args:
        name: as the data calls it.
        support: number of its images.
        recall: the share of them that is found; none without images.
        precision: the share of right ones among those that are taken for it; none without any.
    """

    name: str
    support: int
    recall: float | None
    precision: float | None


class StudentClasses(Closed):
    """What a student does with each class of the held-out images.

    Args:
        label: the trial's number, or the name of a published setting that the search did not try.
        trial: the trial's number, if it is one.
        seed: of the weights, if they are of a confirmed student.
        student: the network.
        objective: the methods with their searched settings; `none` is the control.
        checkpoint: the folder of the weights, relative to the storage.
        epoch: that of the weights.
        images: number of held-out images.
        balanced_accuracy: mean of the classes' recalls, a share of 1.
        num_classes: K.
        classes: in the order of the logits; with K over 40, those with the lowest recall and those
            of the mistakes.
        mistakes: the most frequent first: places in `classes` of what images are and of what they
            are taken for, and their number; with K over 40, the first 20.
    """

    label: str
    trial: int | None
    seed: int | None
    student: str
    objective: str
    checkpoint: str
    epoch: int
    images: int
    balanced_accuracy: float
    num_classes: int
    classes: tuple[ClassResult, ...]
    mistakes: tuple[tuple[int, int, int], ...]

    def __str__(self) -> str:
        """Which student it is, in a few words."""
        words = self.label if self.trial is None else f"trial {self.label}"
        words += "" if self.seed is None else f" with seed {self.seed}"
        return f"{words} (the control)" if self.objective == CONTROL else words


def results_by_class(found: "Evaluation", class_names: Sequence[str]) -> list[ClassResult]:
    """What an evaluation says of each class, in the order of the logits."""
    return [
        ClassResult(name=name, **each._asdict())
        for name, each in zip(class_names, found.classes(), strict=True)
    ]


def kept_of(
    found: "Evaluation", class_names: Sequence[str]
) -> tuple[tuple[ClassResult, ...], tuple[tuple[int, int, int], ...]]:
    """The `classes` and `mistakes` that a record keeps of an evaluation."""
    classes, counts = results_by_class(found, class_names), found.confusion.tolist()
    mistakes = [
        (row, column, count)
        for row, taken in enumerate(counts)
        for column, count in enumerate(taken)
        if count and row != column
    ]
    mistakes.sort(key=lambda mistake: -mistake[2])
    kept = list(range(len(classes)))
    if len(classes) > ALL_CLASSES:
        mistakes = mistakes[:_MOST_MISTAKES]
        named = {place for row, column, _ in mistakes for place in (row, column)}
        kept = sorted({*_worst(classes, WORST_CLASSES), *named})
    place = {number: there for there, number in enumerate(kept)}
    return (
        tuple(classes[number] for number in kept),
        tuple((place[row], place[column], count) for row, column, count in mistakes),
    )


def class_table(classes: Sequence[ClassResult], most: int) -> str:
    """A table in Markdown, with a row for each class; of more, for those with the lowest recall."""
    shown = range(len(classes)) if len(classes) <= most else _worst(classes, most)
    rows = [
        [each.name, f"{each.support:,}", percent(each.recall), percent(each.precision)]
        for each in (classes[place] for place in shown)
    ]
    return markdown_table([["class", "support", "recall %", "precision %"], *rows])


def about_class_table(
    images: int, split: str, balanced_accuracy: float, num_classes: int, most: int
) -> str:
    """What the table's columns are, in words."""
    of = f" Of {num_classes:,} classes these have the lowest recall." if num_classes > most else ""
    return (
        f"On the {images:,} {split} images. Support is the number of images of a class, "
        "recall the share of them that is found, precision the share of right ones among those "
        f"that are taken for the class. The mean recall, or balanced accuracy, is "
        f"{percent(balanced_accuracy)} %.{of}"
    )


def _worst(classes: Sequence[ClassResult], most: int) -> list[int]:
    """The places of the classes with the lowest recall, the lowest first."""

    def recall(place: int) -> float:
        known = classes[place].recall
        return 2.0 if known is None else known

    return sorted(range(len(classes)), key=recall)[:most]
