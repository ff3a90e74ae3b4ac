"""The contract of a method, and the two tools for writing one."""

from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

from kdcore.backbones.probe import probe_shapes
from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.errors import did_you_mean
from kdcore.operations.match_spatial import match_spatial


class _Squares(Method):
    """A method of three lines."""

    paper: ClassVar[str] = "-"
    needs: ClassVar[frozenset[Tap]] = frozenset({Tap.EMBEDDING})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        power: Annotated[int, Field(ge=1), Choice((1, 2))] = 2
        unsearched: Annotated[float, Field(ge=0)] = 3.0
        layers: Annotated[str, LayerChoice()] = "all"

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return (student.embedding - teacher.embedding).square().mean()


def test_what_is_searched_is_read_from_the_annotations_in_their_order() -> None:
    assert list(_Squares.Params.searched().items()) == [
        ("weight", Span(0.1, 10.0, log=True)),
        ("power", Choice((1, 2))),
        ("layers", LayerChoice()),
    ]


def test_what_is_searched_cannot_be_changed() -> None:
    searched = _Squares.Params.searched()
    with pytest.raises(TypeError):
        searched["weight"] = Span(1.0, 2.0)  # type: ignore[index]


def test_the_contract_detaches_the_teacher_even_where_the_loss_does_not() -> None:
    shapes = probe_shapes("resnet8", num_classes=3, in_channels=1, image_size=(8, 8))
    squares = _Squares(_Squares.Params(), NetworkPair(shapes, shapes, 10))
    student = Taps(torch.randn(4, 3), torch.randn(4, 64, requires_grad=True))
    teacher = Taps(torch.randn(4, 3), torch.randn(4, 64, requires_grad=True))
    squares(student, teacher, Batch(torch.zeros(4), torch.arange(4), 1, 1)).backward()
    assert student.embedding.grad is not None
    assert teacher.embedding.grad is None


def test_detached_taps_keep_their_values_and_forget_their_graph() -> None:
    leaf = torch.randn(2, 3, 4, 4, requires_grad=True)
    taps = Taps(leaf.sum((2, 3)), leaf.mean((2, 3)), {"stage1": leaf * 1}, {"stage1": leaf * 2})
    detached = taps.detach()
    for before, after in (
        (taps.logits, detached.logits),
        (taps.embedding, detached.embedding),
        (taps.maps["stage1"], detached.maps["stage1"]),
        (taps.preactivations["stage1"], detached.preactivations["stage1"]),
    ):
        assert torch.equal(before, after)
        assert before.requires_grad
        assert not after.requires_grad


@full_precision
def _sum_of_squares(student: Tensor, teacher: Tensor, *, factor: float) -> Tensor:
    """Documented."""
    return factor * (student @ teacher.T).square().sum()


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_full_precision_widens_halves_and_leaves_the_rest(
    given: torch.dtype, computed: torch.dtype
) -> None:
    # 300^2 is beyond float16, and 1 + 2^-10 is beyond bfloat16's digits.
    student = torch.full((2, 2), 300.0).to(given)
    with torch.autocast("cpu", torch.bfloat16):
        loss = _sum_of_squares(student, student, factor=2.0)
    assert loss.dtype == computed
    assert loss.item() == pytest.approx(2 * 4 * (2 * 300.0**2) ** 2, rel=1e-6)


def test_full_precision_keeps_name_and_documentation() -> None:
    assert _sum_of_squares.__name__ == "_sum_of_squares"
    assert _sum_of_squares.__doc__ == "Documented."


@pytest.mark.parametrize(
    ("student", "teacher", "matched"),
    [
        ((8, 8), (8, 8), (8, 8)),
        ((8, 8), (4, 4), (4, 4)),
        ((3, 5), (6, 10), (3, 5)),
        ((8, 3), (4, 6), (4, 3)),
        ((5, 7), (3, 2), (3, 2)),
    ],
)
def test_the_larger_side_is_pooled_to_the_smaller_in_each_direction(
    student: tuple[int, int], teacher: tuple[int, int], matched: tuple[int, int]
) -> None:
    a, b = match_spatial(torch.rand(2, 3, *student), torch.rand(2, 5, *teacher))
    assert a.shape == (2, 3, *matched)
    assert b.shape == (2, 5, *matched)


def test_maps_of_one_size_are_left_alone_and_pooling_takes_means() -> None:
    same, larger = torch.rand(1, 2, 2, 3), torch.rand(1, 2, 4, 6)
    first, second = match_spatial(same, larger)
    assert first is same
    assert torch.allclose(second, larger.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5)))


def test_a_suggestion_ends_the_sentence_where_nothing_comes_near() -> None:
    assert did_you_mean("stge1", ["stage1", "stem"]) == "; did you mean 'stage1'?"
    assert "did you mean" not in did_you_mean("zzz", ["stage1", "stem"])
    assert "did you mean" not in did_you_mean("zzz", [])
