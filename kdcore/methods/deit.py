"""Training data-efficient image transformers & distillation through attention. Touvron, Cord,
Douze, Massa, Sablayrolles and Jégou, ICML 2021, arXiv:2012.12877.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes, softened_divergence


@full_precision
def deit_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, kind: str, temperature: float
) -> Tensor:
    """Cross-entropy with the class that the teacher decides on (equation 3), or KL(teacher ||
    student) of softened probabilities, times temperature squared (equation 2).

    The mean is over the batch, as in the equations; the authors' code divides the soft form by the
    number of classes too.

    Args:
        student_logits: [B, K], of the head that learns from the teacher.
        teacher_logits: [B, K].
        kind: `hard` or `soft`.
        temperature: > 0, of the soft form.

    Returns:
        Scalar, nats, mean over the batch. The hard form is positive, the soft one zero when both
        logits are equal up to a shift of each row.
    """
    if kind == "hard":
        return cross_entropy(student_logits, teacher_logits.argmax(1))
    return softened_divergence(student_logits, teacher_logits, temperature).mean()


class DeiT(Method):
    """The teacher's decision as a second label, for a distillation token where there is one."""

    paper: ClassVar[str] = "arXiv:2012.12877"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        # On ImageNet alone, from RegNetY-16GF. The soft form: weight 0.1, cross_entropy 0.9.
        "cifar": Published("DeiT, README and main.py: hard, alpha 0.5"),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS, Tap.DISTILLATION_LOGITS})
    zero_at_equality: ClassVar[bool] = False

    class Params(method.Params):
        # Equation 3: half of either.
        weight: Annotated[float, Field(ge=0), Span(0.05, 5.0, log=True)] = 0.5
        cross_entropy: Annotated[float, Field(ge=0)] = 0.5
        kind: Annotated[Literal["hard", "soft"], Choice(("hard", "soft"))] = "hard"
        temperature: Annotated[float, Field(gt=0), Span(1.0, 8.0, log=True)] = 3.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)
        if not networks.student.distillation_head:
            self.needs = frozenset({Tap.LOGITS})

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        distilled = student.distillation_logits
        return deit_loss(
            student.logits if distilled is None else distilled,
            teacher.logits,
            kind=self.params.kind,
            temperature=self.params.temperature,
        )
