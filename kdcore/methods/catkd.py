"""Class Attention Transfer Based Knowledge Distillation. Guo, Yan, Li and Lin, CVPR 2023,
arXiv:2304.12777.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.operations.class_maps import check_class_maps, pooled_to_regions
from kdcore.operations.logits import check_classes
from kdcore.operations.unit_vectors import unit_vectors


@full_precision
def catkd_loss(
    student_class_map: Tensor, teacher_class_map: Tensor, *, resolution: int, normalize: bool
) -> Tensor:
    """Mean squared difference of class activation maps, pooled to a few regions.

    Which regions speak for a class is transferred for every class. Pooling leaves out detail, which
    the paper finds to hinder, and brings both maps to one size.

    Args:
        student_class_map: [B, K, Hs, Ws].
        teacher_class_map: [B, K, Ht, Wt].
        resolution: regions in each direction, >= 1; fewer where a map has fewer positions.
        normalize: whether to scale each class's map to Euclidean length 1 first, so that only where
            counts, and not how much.

    Returns:
        Scalar, mean over images, classes and regions. Zero when both pooled maps are equal.
    """
    student, teacher = (
        pooled.flatten(2)
        for pooled in pooled_to_regions(student_class_map, teacher_class_map, resolution)
    )
    if normalize:
        student, teacher = unit_vectors(student), unit_vectors(teacher)
    return mse_loss(student, teacher)


class CATKD(Method):
    """Class activation maps: which regions of an image speak for which class."""

    paper: ClassVar[str] = "arXiv:2304.12777"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("CAT-KD, configs/cifar100/CAT_KD/res32x4_res8x4.yaml"),
        "imagenet": Published(
            "CAT-KD, configs/imagenet/CAT-KD/r34_r18.yaml", {"weight": 0.5, "resolution": 4}
        ),
    }
    needs: frozenset[Tap] = frozenset({Tap.CLASS_MAPS})

    class Params(method.Params):
        # On CIFAR-100 the authors set it for each pair, 1.8 to 600.
        weight: Annotated[float, Field(ge=0), Span(0.1, 1000.0, log=True)] = 15.0
        resolution: Annotated[int, Field(ge=1, le=64), Choice((1, 2, 4))] = 2
        normalize: Annotated[bool, Choice((False, True))] = False

    params: Params

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        check_classes(networks)
        check_class_maps(networks)

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        assert student.class_maps is not None
        assert teacher.class_maps is not None
        return catkd_loss(
            student.class_maps,
            teacher.class_maps,
            resolution=self.params.resolution,
            normalize=self.params.normalize,
        )
