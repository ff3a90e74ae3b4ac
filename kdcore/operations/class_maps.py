"""Checks and regions of class maps."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from kdcore.contract.network_pair import NetworkPair
from kdcore.errors import NetworkError


def check_class_maps(networks: NetworkPair) -> None:
    """Refuses a network without class maps.

    Raises:
        NetworkError: one of the two has none.
    """
    for role, shapes in (("student", networks.student), ("teacher", networks.teacher)):
        if shapes.class_map is None:
            raise NetworkError(
                f"it reads class maps, but the classifier of the {role} {shapes.network} does not "
                f"read the mean of a map; use another network, or another method"
            )


def pooled_to_regions(student: Tensor, teacher: Tensor, regions: int) -> tuple[Tensor, Tensor]:
    """Averages both maps over a grid of regions of equal relative place.

    Args:
        student: [B, K, Hs, Ws].
        teacher: [B, K, Ht, Wt].
        regions: in each direction, >= 1; fewer where a map has fewer positions.

    Returns:
        Both as [B, K, regions, regions].
    """
    size = (
        min(regions, student.shape[2], teacher.shape[2]),
        min(regions, student.shape[3], teacher.shape[3]),
    )
    return adaptive_avg_pool2d(student, size), adaptive_avg_pool2d(teacher, size)
