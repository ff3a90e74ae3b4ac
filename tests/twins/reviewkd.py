"""ReviewKD as its paper draws it: windows, channels and positions one by one."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def _window_means(feature_map: Tensor, height: int, width: int) -> Tensor:
    """Means over windows from floor(i * H / h) to ceil((i + 1) * H / h)."""
    rows, columns = feature_map.shape[2:]
    lines = []
    for i in range(height):
        top, bottom = i * rows // height, math.ceil((i + 1) * rows / height)
        cells = []
        for j in range(width):
            left, right = j * columns // width, math.ceil((j + 1) * columns / width)
            cells.append(feature_map[:, :, top:bottom, left:right].mean((2, 3)))
        lines.append(torch.stack(cells, dim=2))
    return torch.stack(lines, dim=2)


def naive_reviewkd(fused_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Hierarchical context loss: both maps are pooled, then compared, level by level."""
    height, width = fused_map.shape[2:]
    parts = [(1.0, ((fused_map - teacher_map) ** 2).mean())]
    for level in (4, 2, 1):
        if level < height or level < width:
            size = (min(level, height), min(level, width))
            pooled = _window_means(fused_map, *size) - _window_means(teacher_map, *size)
            parts.append((0.5 ** len(parts), (pooled**2).mean()))
    return sum(share * part for share, part in parts) / sum(share for share, _ in parts)


def naive_resized(feature_map: Tensor, height: int, width: int) -> Tensor:
    """Means where there are too many positions, the nearest one where there are too few."""
    rows, columns = feature_map.shape[2:]
    feature_map = _window_means(feature_map, min(rows, height), min(columns, width))
    rows, columns = feature_map.shape[2:]
    nearest_row = [i * rows // height for i in range(height)]
    nearest_column = [j * columns // width for j in range(width)]
    return feature_map[:, :, nearest_row][:, :, :, nearest_column]


def _normalized(feature_map: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch norm while training: mean 0 and variance 1 of each channel over the batch."""
    channels = []
    for channel in range(feature_map.shape[1]):
        values = feature_map[:, channel]
        variance = ((values - values.mean()) ** 2).mean()
        values = (values - values.mean()) / torch.sqrt(variance + 1e-5)
        channels.append(values * scale[channel] + shift[channel])
    return torch.stack(channels, dim=1)


def _convolved(feature_map: Tensor, kernel: Tensor) -> Tensor:
    """A convolution that keeps the size, as a sum over the kernel's positions; zeros around."""
    reach = kernel.shape[2] // 2
    height, width = feature_map.shape[2:]
    padded = torch.nn.functional.pad(feature_map, (reach,) * 4)
    total = torch.zeros(())
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            shifted = padded[:, :, i : i + height, j : j + width]
            total = total + torch.einsum("bchw,oc->bohw", shifted, kernel[:, :, i, j])
    return total


def naive_fusion(
    student_map: Tensor,
    deeper: Tensor | None,
    size: tuple[int, int],
    weights: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Attention-based fusion with the weights of a `Fusion`, under their names."""
    fused = _normalized(
        _convolved(student_map, weights["reduce.0.weight"]),
        weights["reduce.1.weight"],
        weights["reduce.1.bias"],
    )
    if deeper is not None:
        deeper = naive_resized(deeper, *fused.shape[2:])
        both = torch.cat([fused, deeper], dim=1)
        scores = _convolved(both, weights["attention.weight"])
        scores = scores + weights["attention.bias"][:, None, None]
        shares = 1 / (1 + torch.exp(-scores))
        fused = torch.stack(
            [
                fused[:, channel] * shares[:, 0] + deeper[:, channel] * shares[:, 1]
                for channel in range(fused.shape[1])
            ],
            dim=1,
        )
    fused = naive_resized(fused, *size)
    expanded = _normalized(
        _convolved(fused, weights["expand.0.weight"]),
        weights["expand.1.weight"],
        weights["expand.1.bias"],
    )
    return expanded, fused
