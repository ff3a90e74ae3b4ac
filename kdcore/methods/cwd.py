"""Channel-wise Knowledge Distillation for Dense Prediction. Shu, Liu, Gao, Yan and Shen, ICCV 2021,
arXiv:2011.13256.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdcore.contract import method
from kdcore.contract.layer_pairs import LAST, resolve_layers
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import LayerChoice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.logits import softened_divergence
from kdcore.operations.match_spatial import match_spatial


@full_precision
def cwd_loss(student_map: Tensor, teacher_map: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of each channel's distribution over the positions.

    A channel's softmax over all positions says where it is active, whatever its level.

    Args:
        student_map: [B, C, H, W], with the teacher's channels.
        teacher_map: [B, C, H, W].
        temperature: > 0; its square is a factor. Larger ones spread the distributions.

    Returns:
        Scalar, nats, mean over images and channels. Zero when both maps are equal up to a constant
        for each channel, and for maps of one position.
    """
    student, teacher = (maps.flatten(2).flatten(0, 1) for maps in (student_map, teacher_map))
    return softened_divergence(student, teacher, temperature).mean()


class CWD(Method):
    """The spatial distribution of each channel, a softmax over the positions of its map."""

    paper: ClassVar[str] = "arXiv:2011.13256"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        # For dense prediction alone. These are of feature maps; maps of logits have 3 and 4.
        "cifar": Published(
            "mmdetection-distiller, "
            "configs/distillers/cwd/cwd_retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco.py"
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.MAPS})

    class Params(method.Params):
        weight: Annotated[float, Field(ge=0), Span(0.5, 100.0, log=True)] = 5.0
        temperature: Annotated[float, Field(gt=0), Span(0.5, 8.0, log=True)] = 1.0
        layers: Annotated[str, LayerChoice()] = LAST

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        self.pairs = resolve_layers(params.layers, networks.student, networks.teacher)
        channels = [
            (networks.student.maps[pair.student][0], networks.teacher.maps[pair.teacher][0])
            for pair in self.pairs
        ]
        # Without a bias, which a softmax over positions does not see.
        self.align = nn.ModuleList(
            nn.Identity() if ours == theirs else nn.Conv2d(ours, theirs, 1, bias=False)
            for ours, theirs in channels
        )

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        losses = []
        for pair, align in zip(self.pairs, self.align, strict=True):
            student_map, teacher_map = match_spatial(
                student.maps[pair.student], teacher.maps[pair.teacher]
            )
            losses.append(
                cwd_loss(align(student_map), teacher_map, temperature=self.params.temperature)
            )
        return sum(losses[1:], start=losses[0])
