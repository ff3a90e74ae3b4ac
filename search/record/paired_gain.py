"""Whether a gain is more than noise: networks compared over several seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedGain:
    """A mean difference of accuracies with its 95 % confidence interval, shares of 1.

    Args:
        mean: over the seeds.
        low: lower end of the interval.
        high: upper end.
        seeds: number of seeds that both have; 0 where they are compared without pairs.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def is_more_than_noise(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_gain(ours: Mapping[int, float], control: Mapping[int, float]) -> PairedGain | None:
    """Student's t interval of the mean difference (Student 1908). Pairing removes what a seed does
    to both networks alike.

    Args:
        ours: accuracies by seed.
        control: the same of the control; seeds that only one of them has are ignored.

    Returns:
        The gain; none where they share fewer than two seeds.
    """
    differences = [ours[seed] - control[seed] for seed in sorted(ours.keys() & control.keys())]
    count = len(differences)
    if count < 2:
        return None
    from scipy.special import stdtrit

    mean = statistics.fmean(differences)
    half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(count)
    return PairedGain(mean, mean - half, mean + half, count)


def unpaired_gain(ours: Sequence[float], theirs: Sequence[float]) -> PairedGain:
    """Welch's t interval of the difference of the means (Welch 1947), for networks that were
    trained with different seeds; wider than that of pairs.

    Args:
        ours: accuracies, at least two.
        theirs: the same of the other network.
    """
    from scipy.special import stdtrit

    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    parts = [(statistics.variance(each) / len(each), len(each) - 1) for each in (ours, theirs)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return PairedGain(mean, mean, mean, 0)
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return PairedGain(mean, mean - half, mean + half, 0)
