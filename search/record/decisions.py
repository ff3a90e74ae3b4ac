"""What the engine decided about a trial: where its settings came from, and when it was stopped."""

from typing import Literal

from search.experiment.closed import Closed
from search.experiment.search_config import SamplerName


class Proposal(Closed):
    """Where a trial's settings came from.

    Args:
        by: `control`, `published`, `asked` (a point of `search.points`), `prior` (one of
            `search.prior`), or the sampler's name.
        results: number of trials with a result that the sampler learned from.
        needed: with fewer it draws at random.
        alike: of these, those of the same student and methods, where the settings come from a model
            of them alone.
        alike_needed: with fewer such the settings are random.
        redrawn: whether the sampler's own point had been there, so that a random one is in its
            place.
    """

    by: Literal["control", "published", "asked", "prior"] | SamplerName
    results: int | None = None
    needed: int | None = None
    alike: int | None = None
    alike_needed: int | None = None
    redrawn: bool = False


class Verdict(Closed):
    """What a rule of early stopping decided about a trial.

    Args:
        epoch: after which; without epochs on top, as all epochs here.
        stops: whether the trial was stopped.
        rung: the epoch at which trials are compared; none for the median rule.
        place: the trial's, from 1, among those that had reached the rung.
        of: number of those; for the median rule, of the trials that had ended whole.
        places: number of places that go on.
        best: the trial's best score so far, for the median rule.
        median: of the running averages of those that had ended whole.
    """

    epoch: int
    stops: bool
    rung: int | None = None
    place: int | None = None
    of: int
    places: int | None = None
    best: float | None = None
    median: float | None = None
