"""Distilling the Knowledge in a Neural Network. Hinton, Vinyals, Dean, 2015, arXiv:1503.02531."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kdcore import method
from kdcore.method import Method, full_precision
from kdcore.span import Span
from kdcore.taps import Batch, Tap, Taps


@full_precision
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of softened probabilities, times temperature squared (section 2).

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: > 0; its square keeps gradients on the scale of cross-entropy.

    Returns:
        Scalar, nats, mean over the batch. Zero when both logits are equal up to a shift of each
        row.
    """
    student = log_softmax(student_logits / temperature, dim=1)
    teacher = log_softmax(teacher_logits / temperature, dim=1)
    divergence = kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class KD(Method):
    """Softened class probabilities; the baseline of the field."""

    paper: ClassVar[str] = "arXiv:1503.02531"
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 20.0, log=True)] = 0.9
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 4.0

    params: Params

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return kd_loss(student.logits, teacher.logits, temperature=self.params.temperature)
