"""Which version of a registered student is the champion."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from kdcore.data.image_data import ImageData
from kdcore.training.metric import Metric
from search.export.choice import candidates
from search.record.record import ConfirmationRun, Confirmed
from search.tracking.model_registry import (
    ACCURACY,
    BY_SEED,
    DIGEST,
    HELDOUT,
    HELDOUT_DIGEST,
    METRIC,
    SEARCH,
    _tags,
    challenge,
)
from tests.synthetic import by_balanced_accuracy, made_up_search


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


BALANCED: tuple[Metric, str] = ("balanced_accuracy", "balanced accuracy")


def by_metric(known: dict[str, str], heldout: float, *tested: float) -> dict[str, str]:
    """The tags of a search that ranks by balanced accuracy, beside those of accuracy."""
    metric = BALANCED[0]
    more = {METRIC: metric, HELDOUT[metric]: repr(heldout)}
    if tested:
        more[BY_SEED[metric]] = json.dumps(dict(enumerate(tested, start=1)))
    return known | more


@pytest.mark.parametrize(
    ("theirs", "ours", "wins", "words"),
    [
        (
            by_metric(tags(0.99), 0.70),
            by_metric(tags(0.90), 0.71),
            True,
            "71.00 % balanced accuracy held out against 70.00 % of version 1",
        ),
        (
            by_metric(tags(0.90), 0.71),
            by_metric(tags(0.99), 0.70),
            False,
            "stays the champion: 70.00 % balanced accuracy held out",
        ),
        (
            by_metric(tags(0.9, 0.97, 0.97), 0.7, 0.70, 0.72),
            by_metric(tags(0.9, 0.90, 0.90), 0.6, 0.71, 0.731),
            True,
            "+1.05 [+0.41, +1.69] more than noise, in percentage points of balanced accuracy on",
        ),
        # What the challenger's search ranks by counts.
        (by_metric(tags(0.90), 0.71), tags(0.91), True, "champion: 91.00 % held out against 90.00"),
        (tags(0.99), by_metric(tags(0.9), 0.7), False, "without the held-out balanced accuracy to"),
    ],
)
def test_the_champion_is_chosen_by_the_metric(
    theirs: dict[str, str], ours: dict[str, str], wins: bool, words: str
) -> None:
    better, reason = challenge(version(1, theirs), version(2, ours), ours)
    assert better == wins
    assert words in reason
    first = challenge(None, version(2, ours), ours)[1]
    assert (BALANCED[1] in first) == (METRIC in ours)


def test_a_version_has_every_metric_that_is_known(digits: ImageData) -> None:
    record = by_balanced_accuracy(made_up_search(6, grace_epochs=None))
    picked = candidates(record)[0]
    trial = record.trials[picked.trial or 0]
    exported: Any = SimpleNamespace(picked=picked, data=digits, test_accuracy=None)
    found = _tags(record, exported)
    assert found[METRIC] == "balanced_accuracy"
    assert float(found[HELDOUT["accuracy"]]) == trial.heldout_accuracy
    assert float(found[HELDOUT["balanced_accuracy"]]) == trial.score
    assert HELDOUT["top5"] not in found
    runs = tuple(
        ConfirmationRun(
            seed=seed,
            heldout_accuracy=0.9,
            heldout_score=0.8,
            heldout_loss=1.0,
            best_epoch=1,
            test_accuracy=0.9 + seed / 100,
            test_balanced_accuracy=0.7 + seed / 100,
            test_score=0.7 + seed / 100,
            checkpoint="x",
        )
        for seed in (1, 2)
    )
    published = Confirmed(
        label="kd-resnet8",
        role="published",
        trial=None,
        student="resnet8",
        objective="kd",
        point={},
        runs=runs,
    )
    again = record.model_copy(update={"confirmed": (published,)})
    exported.picked = candidates(again)[0]
    found = _tags(again, exported)
    assert json.loads(found[BY_SEED["accuracy"]]) == {"1": 0.91, "2": 0.92}
    assert json.loads(found[BY_SEED["balanced_accuracy"]]) == {"1": 0.71, "2": 0.72}
    assert BY_SEED["top5"] not in found
    assert float(found[HELDOUT["balanced_accuracy"]]) == pytest.approx(0.8)
    plain = made_up_search(6, grace_epochs=None)
    exported.picked = candidates(plain)[0]
    assert METRIC not in _tags(plain, exported)
