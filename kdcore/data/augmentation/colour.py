"""Operations on colours: [n, C, H, W], uint8, with one factor for each image.

The pixels are those of `torchvision.transforms.v2.functional`. Factors are multiples of 2^-12 below
16, so that their products with 8-bit pixels have at most 24 bits and are exact in float32.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

_FACTOR_STEPS = 4096
_KERNEL_STEPS = 2**22


def factors(values: Tensor, device: torch.device) -> Tensor:
    """Rounds [n] float64 to exact factors: [n, 1, 1, 1], float32."""
    exact = (values * _FACTOR_STEPS).round() / _FACTOR_STEPS
    return exact.float().view(-1, 1, 1, 1).to(device)


def _to_bytes(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """[n, 1, H, W], float32, whole numbers: the grey of coloured pixels, rounded down."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    # At most 9,999 * 255, which float32 holds; a quotient is never rounded up to a whole number.
    weighted = red.float().mul_(2989).add_(green, alpha=5870).add_(blue, alpha=1140)
    return weighted.div_(10_000).floor_()[:, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """The pixels times the factor."""
    return _to_bytes(images * factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's grey, which has factor 0; grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    return _to_bytes((images * factor).add_(_luma(images).mul_(1 - factor)))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean grey of the image, which has factor 0."""
    total = _luma(images).sum((1, 2, 3), keepdim=True, dtype=torch.float64)
    mean = total / (images.shape[2] * images.shape[3])
    # The other summand is a multiple of 2^-12, and the sum is rounded down to a whole number: what
    # is below 2^-12 changes nothing.
    offset = (mean * (1 - factor.double()) * _FACTOR_STEPS).floor_() / _FACTOR_STEPS
    return _to_bytes((images * factor).add_(offset.float()))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends the inner pixels with a smoothed image, which has factor 0."""
    height, width = images.shape[2:]
    if min(height, width) <= 2:
        return images
    whole = images.to(torch.int16)
    rows = whole[:, :, :-2] + whole[:, :, 1:-1] + whole[:, :, 2:]
    inner = whole[:, :, 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    smooth = total.float().div_(13).round_()
    changed = images.clone()
    changed[:, :, 1:-1, 1:-1] = _to_bytes((inner * factor).add_(smooth.mul_(1 - factor)))
    return changed


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue by a share of a full circle, -0.5 to 0.5; grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    # As torchvision writes it, one rounded operation at a time.
    scaled = images.float().mul_(1 / 255)
    red, green, blue = scaled.unbind(1)
    least, value = scaled.amin(1), scaled.amax(1)
    grey = value == least
    spread = value - least
    saturated = spread / torch.where(grey, 1.0, value)
    divisor = torch.where(grey, 1.0, spread)
    rc, gc, bc = ((value - channel) / divisor for channel in (red, green, blue))
    angle = torch.where(
        value == red, bc - gc, torch.where(value == green, (rc + 2.0) - bc, (gc + 4.0) - rc)
    )
    angle = angle.mul_(1 / 6).add_(1.0).fmod_(1.0).add_(turn[:, 0]).remainder_(1.0)
    sextant = angle * 6
    floor = sextant.floor()
    fraction = saturated * sextant.sub_(floor)
    rest = 1.0 - saturated
    falling = ((1.0 - fraction) * value).clamp_(0, 1)
    rising = ((fraction + rest) * value).clamp_(0, 1)
    lowest = (rest * value).clamp_(0, 1)
    choices = torch.stack([value, lowest, falling, rising], 1)
    chosen = torch.tensor(
        [[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]], device=images.device
    )[:, floor.long().remainder_(6)]
    return choices.gather(1, chosen.transpose(0, 1)).mul_(255 + 1 - 1e-3).to(torch.uint8)


def gray(images: Tensor) -> Tensor:
    """Grey in all channels."""
    return _luma(images).to(torch.uint8).expand_as(images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest bits, [n], int64, 0 to 8."""
    masks = (0xFF << (8 - bits)) & 0xFF
    return images & masks.to(torch.uint8).view(-1, 1, 1, 1).to(images.device)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts pixels from a threshold on, [n], int64, 0 to 255."""
    thresholds = threshold.to(torch.uint8).view(-1, 1, 1, 1).to(images.device)
    return torch.where(images >= thresholds, images.bitwise_not(), images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to 0 to 255."""
    lowest = images.amin((2, 3), keepdim=True).float()
    spread = images.amax((2, 3), keepdim=True).float() - lowest
    flat = spread == 0
    scale = torch.where(flat, 1.0, spread * (1 / 255))
    return _to_bytes((images - torch.where(flat, 0.0, lowest)).div_(scale))


def equalize(images: Tensor) -> Tensor:
    """Equalises the histogram of each channel, in whole numbers as Pillow does."""
    channels, size = images.flatten(0, 1).flatten(1), images.shape[2] * images.shape[3]
    # All histograms are one, with a range of their own for each channel.
    starts = torch.arange(len(channels), device=images.device)[:, None] * 256
    places = channels + starts
    histogram = places.flatten().bincount(minlength=256 * len(channels)).view(-1, 256)
    counts = histogram.cumsum(1)
    brightest = channels.amax(1, keepdim=True).long()
    step = (size - histogram.gather(1, brightest)) // 255
    table = ((counts + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = pad(table[:, :-1], (1, 0))
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.to(torch.uint8).flatten().index_select(0, places.flatten()).view_as(images)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Smooths both ways, with mirrored borders.

    Args:
        images: with sides longer than half the kernel.
        kernels: [n, size], float64, of sum 1, size odd; rounded to multiples of 2^-22, so that
            sums are exact in float64 in any order.
    """
    exact = ((kernels * _KERNEL_STEPS).round() / _KERNEL_STEPS).to(images.device)
    size = kernels.shape[1]
    weights = [exact[:, place].view(-1, 1, 1, 1) for place in range(size)]
    height, width = images.shape[2:]
    padded = pad(images.double(), (size // 2,) * 4, mode="reflect")
    rows = sum(weights[place] * padded[:, :, place : place + height] for place in range(size))
    assert isinstance(rows, Tensor)
    both = sum(weights[place] * rows[..., place : place + width] for place in range(size))
    assert isinstance(both, Tensor)
    return _to_bytes(both.round_())
