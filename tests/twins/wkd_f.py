"""WKD-F region by region, from the Gaussian of each."""

import math

from torch import Tensor


def naive_wkd_f(
    projected_map: Tensor, teacher_map: Tensor, *, mean_ratio: float, grid: int
) -> Tensor:
    """r |mu_s - mu_t|^2 + |sigma_s - sigma_t|^2, sigma^2 = variance + 1e-5, mean over regions."""
    images, _, height, width = teacher_map.shape
    rows, columns = min(grid, height), min(grid, width)
    total = projected_map.new_zeros(())
    for row in range(rows):
        for column in range(columns):
            top, bottom = math.floor(row * height / rows), math.ceil((row + 1) * height / rows)
            left, right = (
                math.floor(column * width / columns),
                math.ceil((column + 1) * width / columns),
            )
            moments = []
            for maps in (projected_map, teacher_map):
                region = maps[:, :, top:bottom, left:right].flatten(2)
                variance = ((region - region.mean(2, keepdim=True)) ** 2).mean(2)
                moments.append((region.mean(2), (variance + 1e-5) ** 0.5))
            (mean_s, deviation_s), (mean_t, deviation_t) = moments
            total = total + mean_ratio * ((mean_s - mean_t) ** 2).sum()
            total = total + ((deviation_s - deviation_t) ** 2).sum()
    return total / (images * rows * columns)
