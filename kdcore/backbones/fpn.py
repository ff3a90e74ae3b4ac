"""Feature Pyramid Networks for Object Detection. Lin, Dollár, Girshick, He, Hariharan and
Belongie, 2016, arXiv:1612.03144.

A pyramid can be put on any network with at least three stages: `resnet50+fpn`, `resnet20+fpn128`
with 128 channels, `resnet50+fpn-extra` with one more, coarser level. Modules are named as in
torchvision, so that its state dicts load.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate, max_pool2d

from kdcore.backbones.backbone import Backbone, spatial_mean
from kdcore.backbones.names import PyramidName
from kdcore.contract.taps import TapInfo
from kdcore.errors import NetworkError


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, a top-down sum and a 3x3 convolution of each level (figure 3).

    Args:
        channels: of the input maps, from fine to coarse.
        width: d, the channels of every level.
        extra_level: add a level that subsamples the coarsest (section 4.1).
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        extra_level: bool = False,
    ) -> None:
        super().__init__()
        self.extra_level = extra_level
        self.inner_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(entering, width, 1)) for entering in channels
        )
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1)) for _ in channels
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He initialisation without an activation; the paper does not specify any.
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels [B, width, H, W] from maps [B, C, H, W], both from fine to coarse."""
        laterals = [lateral(x) for lateral, x in zip(self.inner_blocks, maps, strict=True)]
        merged = laterals[-1:]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + interpolate(merged[0], lateral.shape[-2:]))
        levels = [smooth(x) for smooth, x in zip(self.layer_blocks, merged, strict=True)]
        if self.extra_level:
            levels.append(max_pool2d(levels[-1], 1, 2))
        return levels


class PyramidClassifier(Backbone):
    """A classifier on the pooled levels of a feature pyramid.

    The levels are its stages, `p2` above the body's first stage, and so on. Modules of the body
    that the levels do not depend on, like its classifier, are removed.

    Args:
        body: a network with at least three stages.
        width: channels of every level. By default 256 as in the paper, or those of the body's last
            stage if fewer.
        extra_level: add a level that subsamples the coarsest.

    Raises:
        NetworkError: the body has fewer than three stages.
    """

    stem: TapInfo

    def __init__(
        self, body: Backbone, *, width: int | None = None, extra_level: bool = False
    ) -> None:
        super().__init__()
        stages = body.declared[1:]
        if body.stem is None or len(stages) < 3:
            raise NetworkError(
                f"the body of a pyramid has {len(stages)} stages with maps, but must have at "
                f"least 3; use the body without '+fpn', or another body like resnet50"
            )
        reductions = [stage.reduction for stage in stages]
        if len(set(reductions)) == 1:
            raise NetworkError(
                "the stages of the body of a pyramid have maps of one resolution, as those of "
                "transformers; use the body without '+fpn', or another body like resnet50"
            )
        self.num_classes, self.in_channels = body.num_classes, body.in_channels
        self.native_size = body.native_size
        if width is None:
            # On 32x32 images, resnet20 takes 41 million multiplications. The pyramid's 3x3
            # convolutions on its 32^2 + 16^2 + 8^2 = 1344 places take 1344 * 9 * 256^2 = 793
            # million with 256 channels, and 1344 * 9 * 64^2 = 50 million with the 64 of its
            # last stage.
            width = min(256, stages[-1].channels)
        if extra_level:
            reductions.append(2 * reductions[-1])
        self.stem = body.stem
        self.stages = tuple(
            TapInfo(f"p{number}", width, reduction, "none")
            for number, reduction in enumerate(reductions, start=2)
        )
        self.body = body
        self.fpn = FeaturePyramid(
            [stage.channels for stage in stages], width, extra_level=extra_level
        )
        self.embedding_width = width * len(self.stages)
        self.fc = nn.Linear(self.embedding_width, self.num_classes)
        body.drop_auxiliary()
        self._drop_unread()

    def _drop_unread(self) -> None:
        """Replaces the body's modules that the logits do not depend on by identities.

        A backward pass on the meta device finds them, so that no network has to declare them.
        """
        weights = dict(self.named_parameters())
        probes = {
            name: torch.empty_like(weight, device="meta", requires_grad=True)
            for name, weight in weights.items()
        }
        buffers = {
            name: torch.empty_like(value, device="meta") for name, value in self.named_buffers()
        }
        images = torch.empty(1, self.in_channels, *self.native_size, device="meta")
        self.eval()
        with torch.enable_grad():
            # With tied weights, a module with two names would keep its probe afterwards.
            logits = functional_call(self, probes | buffers, (images,), tie_weights=False).sum()
        self.train()
        gradients = torch.autograd.grad(logits, list(probes.values()), allow_unused=True)
        unread = {
            weight
            for weight, gradient in zip(weights.values(), gradients, strict=True)
            if gradient is None
        }
        # Innermost first, and under all of their names.
        for name, module in reversed(list(self.named_modules(remove_duplicate=False))):
            own = set(module.parameters(recurse=False))
            if own and own <= unread:
                self.set_submodule(name, nn.Identity())

    def set_drop_path(self, rate: float) -> None:
        """That of the body; see `Backbone.set_drop_path`."""
        self.body.set_drop_path(rate)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        body = self.body.norms().items()
        return {name: norms for name, norms in body if name == self.stem.name}

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        stem, *stages = (
            tapped for tapped in self.body.walk(images) if tapped[0].name not in self.body.further
        )
        yield stem
        levels = self.fpn([after for _, _, after in stages])
        for tap, level in zip(self.stages, levels, strict=True):
            yield tap, level, level

    def pooled(self, maps: Sequence[Tensor]) -> None:
        """Its embedding is of several levels."""

    def embed(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([spatial_mean(level) for level in maps[1:]], 1)


def pyramid_constructor(
    name: PyramidName, body: Callable[[int, int], Backbone]
) -> Callable[[int, int], PyramidClassifier]:
    """A pyramid's constructor, which takes (num_classes, in_channels)."""

    def construct(num_classes: int, in_channels: int) -> PyramidClassifier:
        return PyramidClassifier(
            body(num_classes, in_channels), width=name.width, extra_level=name.extra_level
        )

    return construct
