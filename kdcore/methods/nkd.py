"""From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
Normalized Loss and Customized Soft Labels. Yang, Zeng, Li, Zhang, Yuan and Li, ICCV 2023,
arXiv:2303.13005.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from kdcore.contract import method
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Mixed, Tap, Taps
from kdcore.operations.labels import over_targets
from kdcore.operations.logits import check_classes, target_and_others


@full_precision
def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    nontarget_weight: float,
    temperature: float,
    mixed: Mixed | None = None,
) -> Tensor:
    """Cross-entropy weighted by the teacher's target probability, and one among non-targets.

    The probabilities of the non-targets are normalised to sum 1 in both networks; otherwise a
    student with another target probability could not match them.

    Args:
        student_logits: [B, K], K >= 3; with two classes the second part is 0.
        teacher_logits: [B, K].
        labels: [B], int64 classes, the targets.
        nontarget_weight: of the second part, the paper's gamma, >= 0.
        temperature: > 0, of the second part, which is multiplied by its square.
        mixed: the second classes, if images are mixed. Each of the two is the target once, and the
            two values are averaged by the shares: the mean over a target that is drawn by them.

    Returns:
        Scalar, nats, mean over the batch. Positive even when both logits are equal; the second part
        is then minimal, the teacher's entropy among non-targets.
    """

    def of_targets(targets: Tensor) -> Tensor:
        target_probability = (
            log_softmax(teacher_logits, dim=1).gather(1, targets[:, None]).squeeze(1).exp()
        )
        target_loss = nll_loss(log_softmax(student_logits, dim=1), targets, reduction="none")
        _, student_others = target_and_others(student_logits / temperature, targets)
        _, teacher_others = target_and_others(teacher_logits / temperature, targets)
        others_loss = -(teacher_others.softmax(1) * log_softmax(student_others, dim=1)).sum(1)
        weighted_others = nontarget_weight * temperature**2 * others_loss
        return target_probability * target_loss + weighted_others

    return over_targets(of_targets, labels, mixed).mean()


class NKD(Method):
    """The teacher's target probability, and normalised probabilities of the other classes."""

    paper: ClassVar[str] = "arXiv:2303.13005"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published(
            "cls_KD, configs/distillers/cifar100/res34_distill_res18_cifar.py",
            {"nontarget_weight": 3.5, "temperature": 3.0},
        ),
        "imagenet": Published("cls_KD, configs/distillers/imagenet/res34_distill_res18_img.py"),
    }
    needs: frozenset[Tap] = frozenset({Tap.LOGITS})
    zero_at_equality: ClassVar[bool] = False
    mixing: ClassVar[Mixing] = "soft targets"

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.1, 10.0, log=True)] = 1.0
        # 1.5 with temperature 1 on ImageNet; in the authors' code 3.5 with 3 for CIFAR-100.
        nontarget_weight: Annotated[float, Field(ge=0), Span(0.25, 8.0, log=True)] = 1.5
        temperature: Annotated[float, Field(gt=0), Span(1.0, 8.0, log=True)] = 1.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks, at_least=3)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return nkd_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            nontarget_weight=self.params.nontarget_weight,
            temperature=self.params.temperature,
            mixed=batch.mixed,
        )
