"""What a student does with each class: the table of the model card."""

from collections.abc import Sequence

from kdcore.training.evaluation import Evaluation
from search.record.wording import markdown_table, percent

CONFUSION = "confusion.png"
"""The picture beside the card."""

# Of more classes, those with the lowest recall are shown.
_MOST_ROWS = 100


def class_section(
    found: Evaluation | None, class_names: Sequence[str], *, pictured: bool
) -> list[str]:
    """The card's lines about single classes; none where the test split stayed shut.

    Args:
        found: on the test split.
        class_names: in the order of the logits.
        pictured: whether the confusion matrix is drawn beside the card.
    """
    if found is None:
        return []
    classes = found.classes()
    note = ""
    order = list(range(len(classes)))
    if len(order) > _MOST_ROWS:
        order = sorted(order, key=lambda k: (classes[k].recall is None, classes[k].recall))
        order = order[:_MOST_ROWS]
        note = f" Of {len(classes):,} classes these have the lowest recall."
    rows = [
        [class_names[k], f"{classes[k].support:,}", *map(percent, classes[k][1:])] for k in order
    ]
    return [
        "## Classes",
        "",
        f"On the {len(found.labels):,} test images. Support is the number of images of a class, "
        "recall the share of them that is found, precision the share of right ones among those "
        f"that are taken for the class. The mean recall, or balanced accuracy, is "
        f"{percent(found.balanced_accuracy)} %.{note}",
        "",
        markdown_table([["class", "support", "recall %", "precision %"], *rows]),
        "",
        *([f"![Confusion matrix]({CONFUSION})", ""] if pictured else []),
    ]
