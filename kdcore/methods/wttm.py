"""Knowledge Distillation Based on Transformed Teacher Matching. Zheng and Yang, ICLR 2024,
arXiv:2402.11148.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import check_classes


@full_precision
def wttm_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, power: float, weighted: bool
) -> Tensor:
    """KL(transformed teacher || student), without a temperature for the student.

    The teacher's probabilities p become p^power / sum(p^power), as with a temperature of 1 / power.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        power: the exponent, > 0; below 1 it softens.
        weighted: whether to weight each image by sum(p^power), which is 1 for a certain teacher
            and at most K^(1 - power) (WTTM, otherwise TTM).

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
    """Softened probabilities of the teacher alone, with more weight where it is uncertain."""

    paper: ClassVar[str] = "arXiv:2402.11148"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("TTM, README, beside crd", beside={"crd": {}}),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    zero_at_equality: ClassVar[bool] = False

    class Params(method.Params):
        # The authors' examples: 4 with power 0.2 weighted, 45 with power 0.1 unweighted.
        weight: Annotated[float, Field(ge=0), Span(0.5, 100.0, log=True)] = 4.0
        power: Annotated[float, Field(gt=0), Span(0.05, 1.0, log=True)] = 0.2
        weighted: bool = True

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return wttm_loss(
            student.logits,
            teacher.logits,
            power=self.params.power,
            weighted=self.params.weighted,
        )
