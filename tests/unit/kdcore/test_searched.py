"""Marks of what is searched."""

import math

import pytest

from kdcore.contract.searched import Choice, LayerChoice, Span


def test_a_span_keeps_its_ends() -> None:
    span = Span(0.5, 2.0)
    assert (span.low, span.high, span.log) == (0.5, 2.0, False)


@pytest.mark.parametrize(
    ("low", "high"), [(2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)]
)
def test_a_span_whose_ends_do_not_rise_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"span is \[.*\], but low must be < high"):
        Span(low, high)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_a_logarithmic_span_starts_above_zero(low: float) -> None:
    assert Span(low, 1.0).low == low
    with pytest.raises(ValueError, match=f"low is {low}, but a logarithmic span needs low > 0"):
        Span(low, 1.0, log=True)


@pytest.mark.parametrize("options", [(), (1,), (1, 1), ("a", "b", "a")])
def test_a_choice_needs_different_options(options: tuple[int | str, ...]) -> None:
    with pytest.raises(ValueError, match="needs two or more different options"):
        Choice(options)


def test_marks_are_values() -> None:
    assert Span(1.0, 2.0) == Span(1.0, 2.0)
    assert Span(1.0, 2.0) != Span(1.0, 2.0, log=True)
    assert Choice((1, 2)) == Choice((1, 2))
    assert LayerChoice() == LayerChoice()
    with pytest.raises(AttributeError):
        Span(1.0, 2.0).low = 0.0  # type: ignore[misc]
