"""The FSP matrix with the tensor [B, C1, C2, H * W] of all products, as the field's codes do."""

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d


def naive_flow(lower_map: Tensor, upper_map: Tensor) -> Tensor:
    if lower_map.shape[2:] != upper_map.shape[2:]:
        height = min(lower_map.shape[2], upper_map.shape[2])
        width = min(lower_map.shape[3], upper_map.shape[3])
        lower_map = adaptive_max_pool2d(lower_map, (height, width))
        upper_map = adaptive_max_pool2d(upper_map, (height, width))
    return (lower_map.flatten(2)[:, :, None, :] * upper_map.flatten(2)[:, None, :, :]).mean(3)


def naive_fsp(
    student_lower_map: Tensor,
    student_upper_map: Tensor,
    teacher_lower_map: Tensor,
    teacher_upper_map: Tensor,
) -> Tensor:
    student = naive_flow(student_lower_map, student_upper_map)
    teacher = naive_flow(teacher_lower_map, teacher_upper_map)
    return ((student - teacher) ** 2).mean()
