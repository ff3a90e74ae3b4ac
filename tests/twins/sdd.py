"""SD-KD image by image and region by region."""

import math

from torch import Tensor


def naive_sdd(
    student_class_map: Tensor,
    teacher_class_map: Tensor,
    labels: Tensor,
    *,
    finest: int,
    complementary_weight: float,
    temperature: float,
) -> Tensor:
    """T^2 KL of each region's mean logits, weighted where the teacher is right of one alone."""
    total, count = student_class_map.new_zeros(()), 0
    for image, label in enumerate(labels.tolist()):
        whole_is_right = int(teacher_class_map[image].mean((1, 2)).argmax()) == label
        scale = 1
        while scale <= finest:
            rows, columns = (
                min(scale, student_class_map.shape[side], teacher_class_map.shape[side])
                for side in (2, 3)
            )
            for row in range(rows):
                for column in range(columns):
                    logits = [
                        _region(maps[image], row / rows, (row + 1) / rows, 1)
                        for maps in (student_class_map, teacher_class_map)
                    ]
                    student, teacher = (
                        _region(each, column / columns, (column + 1) / columns, 2).mean((1, 2))
                        for each in logits
                    )
                    p, q = ((z / temperature).softmax(0) for z in (teacher, student))
                    divergence = temperature**2 * (p * (p / q).log()).sum()
                    same = (int(teacher.argmax()) == label) == whole_is_right
                    total = total + (1.0 if same else complementary_weight) * divergence
                    count += 1
            scale *= 2
    return total / count


def _region(maps: Tensor, begin: float, end: float, side: int) -> Tensor:
    """The positions of a side that lie between two shares of it, at least in part."""
    first = math.floor(begin * maps.shape[side] + 1e-9)
    last = math.ceil(end * maps.shape[side] - 1e-9)
    return maps.narrow(side, first, last - first)
