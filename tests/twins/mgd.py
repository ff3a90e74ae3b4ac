"""MGD, image by image."""

import torch
from torch import Tensor


def naive_mgd(generated_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Sum over channels and positions of squared differences, mean over the images."""
    total = torch.zeros_like(generated_map[0, 0, 0, 0])
    for generated, taught in zip(generated_map, teacher_map, strict=True):
        for generated_channel, taught_channel in zip(generated, taught, strict=True):
            total = total + torch.sum((generated_channel - taught_channel) ** 2)
    return total / len(generated_map)


def _convolved(feature_map: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """A convolution that keeps the size, as a sum over the kernel's positions; zeros around."""
    reach = kernel.shape[2] // 2
    height, width = feature_map.shape[2:]
    padded = torch.nn.functional.pad(feature_map, (reach,) * 4)
    total = bias[:, None, None]
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            shifted = padded[:, :, i : i + height, j : j + width]
            total = total + torch.einsum("bchw,oc->bohw", shifted, kernel[:, :, i, j])
    return total


def naive_generated(
    student_map: Tensor,
    kept: Tensor,
    align: tuple[Tensor, Tensor] | None,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
) -> Tensor:
    """Aligns channels, keeps what `kept` says (1 or 0), and convolves twice with a ReLU between.

    Each of the three layers is its kernel and its bias.
    """
    aligned = student_map if align is None else _convolved(student_map, *align)
    hidden = _convolved(aligned * kept, *first)
    return _convolved(torch.where(hidden > 0, hidden, 0.0), *second)
