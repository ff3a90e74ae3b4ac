"""What `kdsearch new method` writes; NAME and CLASS are replaced."""

METHOD = '''"""Say in a line what CLASS compares, and where it comes from."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps


@full_precision  # float32 inside, whatever the networks compute in
def NAME_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Mean squared difference of softened probabilities.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: > 0.

    Returns:
        Scalar. Zero when both are equal.
    """
    student = (student_logits / temperature).softmax(1)
    teacher = (teacher_logits / temperature).softmax(1)
    return (student - teacher).square().sum(1).mean()


class CLASS(Method):
    """Say in a line what it compares."""

    needs: frozenset[Tap] = frozenset({Tap.LOGITS})  # further: EMBEDDING, MAPS, ...

    class Params(method.Params):
        # Field: what is legal. Span: what a search tries. The default comes first.
        weight: Annotated[float, Field(ge=0), Span(0.1, 100.0, log=True)] = 1.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 4.0

    params: Params

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return NAME_loss(student.logits, teacher.logits, temperature=self.params.temperature)
'''

TEST = '''"""NAME keeps the contract of methods, and its loss is the formula written out."""

from pathlib import Path

import torch

from kdcore.contract.plugged import loaded, read_plugin
from kdcore.contract.plugin import Kind
from kdcore.distillation.plugin_contract import breaches_of
from NAME import NAME_loss


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    plugin = read_plugin("NAME.py", Path(__file__).parent)
    assert breaches_of(plugin, tmp_path) == []
    assert loaded(Kind.METHODS, "NAME").__doc__


def twin(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """The formula as in the paper, image by image, in float64. Write yours here."""
    total = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p = (s / temperature).exp() / (s / temperature).exp().sum()
        q = (t / temperature).exp() / (t / temperature).exp().sum()
        total += sum(float((a - b) ** 2) for a, b in zip(p, q, strict=True))
    return total / len(student)


def test_its_loss_is_that_of_its_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator).double() for _ in range(2))
    for temperature in (1.0, 4.0):
        loss = NAME_loss(student, teacher, temperature=temperature)
        torch.testing.assert_close(loss.item(), twin(student, teacher, temperature))
'''
