"""Faster convolutions of narrow maps, for processors with matrix instructions for bfloat16.

For the gradient of a kernel, such a processor multiplies 32 pixels of a row at once, and oneDNN
reads all weights again for every image. Maps that are eight pixels wide waste three quarters of the
work, and layers with 512 channels of 4x4 pixels are bound by memory. Here several images lie side
by side in one wide map, with zeros between them in place of their padding. The sums have the same
terms, in another order.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d

# Wider maps lose more by copying than they gain (tests/benchmarks/narrow_maps.py).
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
    """The inverse of `_side_by_side`."""
    rows, channels, height, width = wide.shape
    pixels = wide.permute(0, 2, 3, 1).reshape(rows, height, images, width // images, channels)
    maps = pixels[:, :, :, : width // images - gutter].transpose(1, 2)
    return maps.contiguous().flatten(0, 1).permute(0, 3, 1, 2)


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
    """A convolution that lays narrow maps side by side; for other maps, a plain one."""

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
        # The padding, rounded up so that every image begins at a multiple of the stride.
        gutter = padding + -(width + padding) % stride
        images = math.gcd(batch, IMAGES_IN_A_ROW)
        if images == 1:
            return super().forward(maps)
        wide = super().forward(_SideBySide.apply(maps, images, gutter))
        apart: Tensor = _Apart.apply(wide, images, wide.shape[3] // images - -(-width // stride))
        return apart


def lay_side_by_side(network: nn.Module, enabled: bool) -> None:
    """Replaces the convolutions inside a network by `NarrowConv2d`, or back by plain ones.

    The new modules hold the same parameters, so that optimisers and state dicts stay valid.
    Subclasses of nn.Conv2d from elsewhere are left alone.
    """
    wanted = NarrowConv2d if enabled else nn.Conv2d
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in (nn.Conv2d, NarrowConv2d) and type(layer) is not wanted:
                parent.add_module(name, _with_parameters_of(layer, wanted))


def _with_parameters_of(layer: nn.Module, kind: type[nn.Conv2d]) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    twin = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        device="meta",  # neither memory nor random numbers for weights that are replaced
    )
    twin.weight, twin.bias = layer.weight, layer.bias
    return twin.train(layer.training)
