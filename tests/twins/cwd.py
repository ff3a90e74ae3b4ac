"""The paper's equations with plain probabilities."""

from torch import Tensor


def naive_cwd(student_map: Tensor, teacher_map: Tensor, *, temperature: float) -> Tensor:
    """T^2 / C times the sum over channels and positions of p log(p / q), mean over the images."""
    q, p = (
        (maps / temperature).exp() / (maps / temperature).exp().sum((2, 3), keepdim=True)
        for maps in (student_map, teacher_map)
    )
    divergences = (p * (p / q).log()).sum((2, 3))
    return temperature**2 * (divergences.sum(1) / divergences.shape[1]).mean()
