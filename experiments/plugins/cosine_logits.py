"""A method of your own: the angle between the logits of student and teacher."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps


@full_precision
def cosine_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 minus the cosine of the angle between the logits of both, each without its mean.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].

    Returns:
        Scalar, 0 to 2, mean over the batch. Zero when both are equal.
    """
    student, teacher = (
        logits - logits.mean(1, keepdim=True) for logits in (student_logits, teacher_logits)
    )
    return (1 - cosine_similarity(student, teacher, dim=1, eps=1e-6)).mean()


class CosineLogits(Method):
    """The angle between the logits, each without its mean."""

    needs: frozenset[Tap] = frozenset({Tap.LOGITS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 30.0, log=True)] = 3.0

    params: Params

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return cosine_loss(student.logits, teacher.logits)
