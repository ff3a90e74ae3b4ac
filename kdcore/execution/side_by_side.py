"""Convolutions of narrow maps, faster on processors with matrix instructions for bfloat16.

Such a processor multiplies 32 pixels of a row at once to find the gradient of a kernel, and oneDNN
reads all weights anew for every image. With maps of eight pixels' width three quarters of the work
is wasted, and 512 channels of 4x4 pixels wait for memory alone. Here several images lie side by
side in one wide map, with zeros between them where each would have been padded. The sums have the
same summands, in another order.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d

# Wider maps lose more by copying than they gain: tests/benchmarks/narrow_maps.py measures it.
WIDEST = 8
IMAGES_IN_A_ROW = 16
PIXELS_IN_A_ROW = 256


def _side_by_side(maps: Tensor, images: int, gutter: int) -> Tensor:
    """[B, C, H, W] to [B / images, C, H, images * (W + gutter)], in channels-last layout."""
    batch, channels, height, width = maps.shape
    rows = batch // images
    wide = maps.new_empty((rows, height, images, width + gutter, channels))
    wide[:, :, :, width:].zero_()
    pixels = maps.permute(0, 2, 3, 1).reshape(rows, images, height, width, channels)
    wide[:, :, :, :width].copy_(pixels.transpose(1, 2))
    return wide.flatten(2, 3).permute(0, 3, 1, 2)


def _apart(wide: Tensor, images: int, gutter: int) -> Tensor:
    """The inverse."""
    rows, channels, height, width = wide.shape
    pixels = wide.permute(0, 2, 3, 1).reshape(rows, height, images, width // images, channels)
    kept = pixels[:, :, :, : width // images - gutter].transpose(1, 2)
    return kept.contiguous().flatten(0, 1).permute(0, 3, 1, 2)


class _SideBySide(Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, images: int, gutter: int) -> Tensor:
        ctx.layout = images, gutter
        return _side_by_side(maps, images, gutter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Apart.apply(gradient, *ctx.layout), None, None


class _Apart(Function):
    @staticmethod
    def forward(ctx: Any, wide: Tensor, images: int, gutter: int) -> Tensor:
        ctx.layout = images, gutter
        return _apart(wide, images, gutter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _SideBySide.apply(gradient, *ctx.layout), None, None


class NarrowConv2d(nn.Conv2d):
    """A convolution that lays narrow maps side by side, and computes all others as ever."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        same_padding = self.padding_mode == "zeros" and self.padding == tuple(
            size // 2 for size in self.kernel_size
        )
        if not (same_padding and self.groups == 1 and self.dilation == (1, 1)):
            return super().forward(maps)
        narrow = maps.shape[3] <= WIDEST * self.stride[1]
        if self.kernel_size == (1, 1) and (narrow or self.stride != (1, 1)):
            return self._of_pixels(maps)
        if narrow and self.kernel_size[1] % 2:
            return self._of_rows(maps)
        return super().forward(maps)

    def _of_pixels(self, maps: Tensor) -> Tensor:
        down, across = self.stride
        pixels = maps.permute(0, 2, 3, 1)[:, ::down, ::across]
        batch, height, width, channels = pixels.shape
        images = math.gcd(batch, max(1, PIXELS_IN_A_ROW // (height * width)))
        wide = pixels.reshape(batch // images, 1, -1, channels).permute(0, 3, 1, 2)
        pixels = conv2d(wide, self.weight, self.bias).permute(0, 2, 3, 1)
        return pixels.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def _of_rows(self, maps: Tensor) -> Tensor:
        batch, width, stride = len(maps), maps.shape[3], self.stride[1]
        padding = self.kernel_size[1] // 2
        # As wide as the padding; then as much more as lets every image begin at a whole stride.
        gutter = padding + -(width + padding) % stride
        images = math.gcd(batch, IMAGES_IN_A_ROW)
        if images == 1:
            return super().forward(maps)
        wide = super().forward(_SideBySide.apply(maps, images, gutter))
        apart: Tensor = _Apart.apply(wide, images, wide.shape[3] // images - -(-width // stride))
        return apart
