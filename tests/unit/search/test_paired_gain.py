"""Intervals of gains, against scipy and by their properties."""

import numpy as np
import pytest
from scipy import stats

from search.record.paired_gain import paired_gain, unpaired_gain


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_the_interval_is_that_of_scipys_paired_t_test(count: int) -> None:
    draw = np.random.default_rng(count)
    ours, control = draw.normal(0.95, 0.01, count), draw.normal(0.94, 0.01, count)
    expected = stats.ttest_rel(ours, control).confidence_interval(0.95)
    gain = paired_gain(dict(enumerate(ours)), dict(enumerate(control)))
    assert gain is not None
    assert gain.mean == pytest.approx(np.mean(ours - control), abs=1e-12)
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert gain.seeds == count
    assert gain.is_more_than_noise == (stats.ttest_rel(ours, control).pvalue < 0.05)


def test_of_2000_true_gains_the_intervals_hold_95_percent() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        seeds = draw.normal(0, 0.02, 5)  # common to both, so it must not widen the interval
        ours = 0.95 + seeds + draw.normal(0, 0.003, 5)
        gain = paired_gain(dict(enumerate(ours)), dict(enumerate(0.94 + seeds)))
        assert gain is not None
        held += gain.low <= 0.01 <= gain.high
        assert gain.high - gain.low < 0.05
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_only_common_seeds_count() -> None:
    gain = paired_gain({1: 0.9, 2: 0.8, 3: 0.1}, {2: 0.7, 1: 0.7, 9: 0.0})
    assert gain is not None
    assert gain.seeds == 2
    assert gain.mean == pytest.approx(0.15)
    assert paired_gain({1: 0.9, 2: 0.8}, {2: 0.7, 3: 0.7}) is None


def test_a_loss_may_be_more_than_noise_and_no_gain_never_is() -> None:
    worse = paired_gain({1: 0.80, 2: 0.81}, {1: 0.90, 2: 0.911})
    same = paired_gain({1: 0.8, 2: 0.9}, {1: 0.8, 2: 0.9})
    assert worse is not None
    assert worse.high < 0
    assert worse.is_more_than_noise
    assert same is not None
    assert not same.is_more_than_noise


@pytest.mark.parametrize(("count", "others"), [(2, 2), (2, 5), (30, 4)])
def test_without_pairs_the_interval_is_that_of_scipys_welch_test(count: int, others: int) -> None:
    draw = np.random.default_rng(count)
    ours, theirs = draw.normal(0.95, 0.01, count), draw.normal(0.94, 0.003, others)
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    expected = test.confidence_interval(0.95)
    gain = unpaired_gain([*ours], [*theirs])
    assert gain.mean == pytest.approx(ours.mean() - theirs.mean(), abs=1e-12)
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert gain.is_more_than_noise == (test.pvalue < 0.05)
    assert unpaired_gain([0.9, 0.9], [0.8, 0.8]).low == pytest.approx(0.1)  # no deviation at all
