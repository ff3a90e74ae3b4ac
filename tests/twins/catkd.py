"""Class activation maps pooled and scaled as the paper writes it."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def naive_catkd(
    student_class_map: Tensor, teacher_class_map: Tensor, *, resolution: int, normalize: bool
) -> Tensor:
    """The sum over images, classes and regions of squared differences, over their number."""
    sides = [
        min(resolution, student_class_map.shape[side], teacher_class_map.shape[side])
        for side in (2, 3)
    ]
    pooled = [adaptive_avg_pool2d(maps, sides) for maps in (student_class_map, teacher_class_map)]
    if normalize:
        pooled = [maps / (maps**2).sum((2, 3), keepdim=True) ** 0.5 for maps in pooled]
    squares = (pooled[0] - pooled[1]) ** 2
    return squares.sum() / squares.numel()
