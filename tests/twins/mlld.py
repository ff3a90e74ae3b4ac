"""Multi-level logits, image by image, pair by pair and class by class."""

from itertools import product

from torch import Tensor


def naive_mlld(student_logits: Tensor, teacher_logits: Tensor, *, relation_weight: float) -> Tensor:
    """Over T: T^2 KL of instances, |G_t - G_s|^2 / B of images, |M_t - M_s|^2 / K of classes."""
    images, classes = student_logits.shape
    total = student_logits.new_zeros(())
    for temperature in (2, 3, 4, 5, 6):
        student, teacher = student_logits.clone(), teacher_logits.clone()
        for image in range(images):
            student[image] = (student_logits[image] / temperature).softmax(0)
            teacher[image] = (teacher_logits[image] / temperature).softmax(0)
        for p, q in zip(teacher, student, strict=True):
            total = total + temperature**2 * (p * (p / q).log()).sum() / images
        for count, one, other in (
            (images, student, teacher),
            (classes, student.T, teacher.T),
        ):
            for i, j in product(range(count), repeat=2):
                difference = (one[i] * one[j]).sum() - (other[i] * other[j]).sum()
                total = total + relation_weight * difference**2 / count
    return total
