"""What a student does with each class: the table of the model card."""

from collections.abc import Sequence

from kdcore.training.evaluation import Evaluation
from search.record.class_results import about_class_table, class_table, results_by_class

CONFUSION = "confusion.png"
"""The picture beside the card."""

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
    images, balanced = len(found.labels), found.balanced_accuracy
    return [
        "## Classes",
        "",
        about_class_table(images, "test", balanced, len(class_names), _MOST_ROWS),
        "",
        class_table(results_by_class(found, class_names), _MOST_ROWS),
        "",
        *([f"![Confusion matrix]({CONFUSION})", ""] if pictured else []),
    ]
