"""Factors that rise over the first epochs of a trial, or fall over the last."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from kdcore.operations.warmup import cosine_decay, cosine_warmup, linear_warmup

Ramp = Callable[..., float]


def test_the_published_warmup_of_20_in_240_epochs() -> None:
    ramp = [linear_warmup(epoch, 240, share=20 / 240) for epoch in range(1, 241)]
    assert ramp[:20] == pytest.approx([epoch / 20 for epoch in range(1, 21)])
    assert ramp[19:] == [1.0] * 221


def test_the_cosine_rises_slowly_fast_and_slowly() -> None:
    ramp = [cosine_warmup(epoch, 240, share=10 / 240) for epoch in range(1, 241)]
    assert ramp[0] == pytest.approx(0.0244717, rel=1e-5)  # (1 - cos(pi / 10)) / 2
    assert ramp[4] == pytest.approx(0.5)
    assert ramp[8] == pytest.approx(1 - ramp[0])
    assert ramp[9:] == [1.0] * 231
    assert all(before < after for before, after in pairwise(ramp[:10]))


@pytest.mark.parametrize("ramp", [linear_warmup, cosine_warmup])
def test_short_trials_rise_as_long_ones_do(ramp: Ramp) -> None:
    for epoch in range(1, 13):
        assert ramp(epoch, 12, share=0.5) == ramp(10 * epoch, 120, share=0.5)


@pytest.mark.parametrize("ramp", [linear_warmup, cosine_warmup])
def test_no_share_is_no_ramp(ramp: Ramp) -> None:
    assert [ramp(epoch, 5, share=0.0) for epoch in range(1, 6)] == [1.0] * 5


@pytest.mark.parametrize("ramp", [linear_warmup, cosine_warmup])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_no_epoch_is_left_without_a_factor_and_none_has_more_than_1(
    ramp: Ramp, epochs: int
) -> None:
    for share in (0.01, 0.5, 1.0):
        assert all(0 < ramp(epoch, epochs, share=share) <= 1 for epoch in range(1, epochs + 1))


def test_the_published_decay_after_150_of_240_epochs_ends_at_0() -> None:
    factors = [cosine_decay(epoch, 240, start=150 / 240) for epoch in range(1, 241)]
    assert factors[:150] == [1.0] * 150
    assert all(later < earlier for earlier, later in pairwise(factors[149:]))
    assert [factors[n - 1] for n in (180, 195, 240)] == pytest.approx([0.75, 0.5, 0])


def test_a_decay_may_take_the_whole_trial_or_never_begin() -> None:
    assert [cosine_decay(n, 4, start=0.0) for n in (2, 4)] == pytest.approx([0.5, 0])
    assert [cosine_decay(n, 4, start=1.0) for n in range(1, 5)] == [1.0] * 4
