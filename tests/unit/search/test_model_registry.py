"""Which version of a registered student is the champion."""

import json

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from search.tracking.model_registry import (
    ACCURACY,
    BY_SEED,
    DIGEST,
    HELDOUT,
    HELDOUT_DIGEST,
    SEARCH,
    challenge,
)


def tags(
    heldout: float, *tested: float, first_seed: int = 1, test: str = "x", held: str = "y"
) -> dict[str, str]:
    """The tags of a version; accuracies on the test split make it a confirmed one."""
    known = {
        HELDOUT["accuracy"]: repr(heldout),
        HELDOUT_DIGEST: held,
        DIGEST: test,
        ACCURACY: "0.5",
    }
    if tested:
        known[BY_SEED["accuracy"]] = json.dumps(dict(enumerate(tested, start=first_seed)))
    return known


def version(number: int, known: dict[str, str]) -> ModelVersion:
    entities = [ModelVersionTag(key, value) for key, value in known.items()]
    return ModelVersion("kdsearch-task", str(number), 0, tags=entities)


EARLIER = {ACCURACY: "0.1", DIGEST: "x", SEARCH: "old-1"}


@pytest.mark.parametrize(
    ("champion", "ours", "wins", "words"),
    [
        (None, tags(0.94), True, "the first champion, with 94.00 % held out"),
        (None, tags(0.9, 0.93, 0.95), True, "94.00 % on the test split, the mean of 2 fresh seeds"),
        (version(1, tags(0.93)), tags(0.94), True, "94.00 % held out against 93.00 % of version 1"),
        (version(1, tags(0.94)), tags(0.94), False, "version 1 stays the champion: 94.00 % held"),
        (version(1, tags(0.1, held="z")), tags(0.9), False, "its held-out images are others"),
        (version(2, tags(0.94)), tags(0.94), True, "champion already, with 94.00 % held out"),
        # One of them is not confirmed: what it has on the test split is no reason.
        (version(1, tags(0.93)), tags(0.94, 0.1, 0.1), True, "94.00 % held out against 93.00 %"),
        (version(1, tags(0.94, 0.1, 0.1)), tags(0.93), False, "93.00 % held out against 94.00 %"),
        # Both are: by seed, whatever they had in their searches.
        (
            version(1, tags(0.99, 0.90, 0.92)),
            tags(0.1, 0.91, 0.931),
            True,
            "the new champion: +1.05 [+0.41, +1.69] more than noise, in percentage points on the "
            "test split over version 1, paired by 2 fresh seeds",
        ),
        (
            version(1, tags(0.1, 0.90, 0.92)),
            tags(0.99, 0.91, 0.92),
            True,
            "new champion: +0.50 [-5.85, +6.85] within noise",
        ),
        (
            version(1, tags(0.1, 0.90, 0.92)),
            tags(0.99, 0.90, 0.91),
            False,
            "version 1 stays the champion: -0.50 [-6.85, +5.85] within noise",
        ),
        (
            version(1, tags(0.1, 0.90, 0.92, first_seed=7)),
            tags(0.1, 0.96, 0.98),
            True,
            "+6.00 [-0.08, +12.08] within noise, in percentage points on the test split over "
            "version 1, with other fresh seeds",
        ),
        (version(1, tags(0.1, 0.1, 0.1, test="z")), tags(0.9, 0.9, 0.9), False, "is another one"),
        # Registered before held-out accuracies were.
        (version(1, EARLIER), tags(0.94), False, "version 1 stays the champion: an earlier"),
        (version(1, EARLIER), tags(0.9, 0.9, 0.9), False, "kdsearch best old-1 adds it, or move"),
    ],
)
def test_the_better_on_fresh_seeds_or_held_out_becomes_the_champion(
    champion: ModelVersion | None, ours: dict[str, str], wins: bool, words: str
) -> None:
    better, reason = challenge(champion, version(2, ours), ours)
    assert better == wins
    assert words in reason
