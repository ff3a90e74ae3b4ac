"""Knowledge Distillation Based on Transformed Teacher Matching. Zheng and Yang, ICLR 2024,
arXiv:2402.11148.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes


@full_precision
def wttm_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, power: float, weighted: bool
) -> Tensor:
    """KL(transformed teacher || student), where the student's probabilities are not softened.

    The teacher's probabilities p become p^power / sum(p^power), which is what a temperature of
    1 / power does.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        power: the exponent, > 0; below 1 it softens.
        weighted: whether each image counts sum(p^power) times (WTTM), 1 for a sure teacher and
            up to K^(1 - power) for an unsure one, or once (TTM).

    Returns:
        Scalar, nats, mean over the batch. Zero when the student's logits are the teacher's
        times `power`, up to a shift of each row.
    """
    powers = power * log_softmax(teacher_logits, dim=1)
    sums = powers.logsumexp(1, keepdim=True)
    student = log_softmax(student_logits, dim=1)
    divergences = kl_div(student, powers - sums, reduction="none", log_target=True).sum(1)
    return (sums.squeeze(1).exp() * divergences if weighted else divergences).mean()


class WTTM(Method):
    """Softened probabilities of the teacher alone; images that it is unsure of weigh more."""

    paper: ClassVar[str] = "arXiv:2402.11148"
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    zero_at_equality: ClassVar[bool] = False

    class Params(method.Params):
        # The authors' examples: 4 and power 0.2 weighted, 45 and power 0.1 not weighted.
        weight: Annotated[float, Field(ge=0), Span(0.5, 100.0, log=True)] = 4.0
        power: Annotated[float, Field(gt=0), Span(0.05, 1.0, log=True)] = 0.2
        weighted: bool = True

    params: Params

    def __init__(self, params: Params, setting: NetworkPair) -> None:
        super().__init__(params, setting)
        check_classes(setting)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return wttm_loss(
            student.logits,
            teacher.logits,
            power=self.params.power,
            weighted=self.params.weighted,
        )
