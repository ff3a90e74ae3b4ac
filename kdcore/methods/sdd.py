"""Scale Decoupled Distillation. Wei, Luo and Luo, CVPR 2024, arXiv:2403.13512."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.class_maps import check_class_maps, pooled_to_regions
from kdcore.operations.logits import check_classes, softened_divergence


@full_precision
def sdd_loss(
    student_class_map: Tensor,
    teacher_class_map: Tensor,
    labels: Tensor,
    *,
    finest: int,
    complementary_weight: float,
    temperature: float,
) -> Tensor:
    """KD of the logits of every region, at several scales.

    The whole image mixes what its regions show. Where the teacher is right about a region and wrong
    about the image, or the other way round, the region says something of its own and counts more.

    Args:
        student_class_map: [B, K, Hs, Ws].
        teacher_class_map: [B, K, Ht, Wt].
        labels: [B], int64 classes.
        finest: regions in each direction at the finest scale; 1, 2, 4, ... up to this are compared.
            Of the first, the only region is the image, whose logits are the network's.
        complementary_weight: of such regions, beside 1 of the others, >= 0.
        temperature: > 0; its square keeps the scale of gradients.

    Returns:
        Scalar, nats, mean over batch and regions. Zero when both maps are equal up to a shift of
        all classes at each position.
    """
    both: tuple[list[Tensor], list[Tensor]] = [], []
    scale = 1
    while scale <= finest:
        pooled = pooled_to_regions(student_class_map, teacher_class_map, scale)
        for regions, maps in zip(both, pooled, strict=True):
            regions.append(maps.flatten(2).transpose(1, 2))  # [B, regions, K]
        scale *= 2
    student, teacher = (torch.cat(regions, 1) for regions in both)
    divergences = softened_divergence(student.flatten(0, 1), teacher.flatten(0, 1), temperature)
    right = teacher.argmax(2) == labels[:, None]
    complementary = right != right[:, :1]
    weights = 1 + (complementary_weight - 1) * complementary
    return (weights * divergences.view_as(weights)).mean()


class SDD(Method):
    """Softened class probabilities of every region, more of those that differ from the image."""

    paper: ClassVar[str] = "arXiv:2403.13512"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        # SD-KD, the form of kd: with mdistiller's weight and temperature for that.
        "cifar": Published("SDD-CVPR2024, mdistiller/distillers/KD.py, with mdistiller's kd"),
    }
    needs: frozenset[Tap] = frozenset({Tap.CLASS_MAPS})
    mixing: ClassVar[Mixing] = "dominant class"

    class Params(method.Params):
        # Beside 0.1 of cross-entropy, as for kd.
        weight: Annotated[float, Field(ge=0), Span(0.05, 50.0, log=True)] = 0.9
        cross_entropy: Annotated[float, Field(ge=0)] = 0.1
        finest: Annotated[int, Field(ge=1, le=16), Choice((2, 4))] = 4
        complementary_weight: Annotated[float, Field(ge=0), Span(1.0, 4.0)] = 2.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 4.0

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)
        check_class_maps(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.class_maps is not None
        assert teacher.class_maps is not None
        return sdd_loss(
            student.class_maps,
            teacher.class_maps,
            batch.labels,
            finest=self.params.finest,
            complementary_weight=self.params.complementary_weight,
            temperature=self.params.temperature,
        )
