"""The numbers that networks can be ranked by; loads without PyTorch."""

from typing import Literal

from kdcore.errors import ConfigError

Metric = Literal["accuracy", "balanced_accuracy", "top5"]

FEWEST_FOR_TOP5 = 20
"""Classes; of fewer, five answers say little."""


def check_metric(metric: Metric, num_classes: int) -> None:
    """Refuses a metric that is not defined for a number of classes.

    Raises:
        ConfigError: `top5` with fewer than 20 classes.
    """
    if metric == "top5" and num_classes < FEWEST_FOR_TOP5:
        raise ConfigError(
            f"metric is 'top5', but the data has {num_classes} classes, and five answers say "
            f"little of fewer than {FEWEST_FOR_TOP5}; choose accuracy or balanced_accuracy"
        )
