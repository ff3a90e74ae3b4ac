"""Several networks as one: the mean of their class probabilities."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.normalization import Normalization
from kdcore.contract.taps import Tap, TapInfo, Taps


def log_mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of class probabilities, at temperature 1.

    Args:
        logits: of each network, [B, K].

    Returns:
        [B, K], float32; softmax gives the mean back.
    """
    each = torch.stack([torch.log_softmax(one.float(), dim=1) for one in logits])
    return torch.logsumexp(each, dim=0) - math.log(len(logits))


class Ensemble(Backbone):
    """Networks that answer together. It reads pixels on the scale 0 to 1, of which each network has
    its own normalisation, and gives logits alone: its embedding only repeats them.

    Args:
        members: the networks.
    """

    logits_only = True

    def __init__(self, members: Sequence[Backbone]) -> None:
        super().__init__()
        self.stem, self.stages = None, ()
        first = members[0]
        self.num_classes, self.in_channels = first.num_classes, first.in_channels
        self.embedding_width = first.num_classes
        sides = zip(*(each.native_size for each in members), strict=True)
        height, width = map(max, sides)
        self.native_size = height, width
        for member in members:
            member.drop_auxiliary()
        self.members = nn.ModuleList(members)
        # In the state dict: the card has one normalisation alone, which changes nothing. Tensors of
        # four and five dimensions would be taken for maps by a change of the layout.
        self.register_buffer("means", torch.zeros(len(members), self.in_channels))
        self.register_buffer("stds", torch.ones(len(members), self.in_channels))

    means: Tensor
    stds: Tensor

    def normalize_by(self, normalizations: Sequence[Normalization]) -> None:
        """Sets the normalisation of each network."""
        self.means.copy_(torch.tensor([each.mean for each in normalizations]))
        self.stds.copy_(torch.tensor([each.std for each in normalizations]))

    def last_layer(self) -> None:
        """Its networks have one each."""

    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        return iter(())

    def taps(
        self, images: Tensor, needs: frozenset[Tap], named: frozenset[str] = frozenset()
    ) -> Taps:
        logits = log_mean_probabilities(
            [
                member((images - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1))
                for member, mean, std in zip(self.members, self.means, self.stds, strict=True)
            ]
        )
        return Taps(logits, logits)


def ensemble_constructor(
    members: Sequence[Callable[[int, int], Backbone]],
) -> Callable[[int, int], Backbone]:
    """Makes a constructor of those of its networks."""

    def construct(num_classes: int, in_channels: int) -> Backbone:
        return Ensemble([member(num_classes, in_channels) for member in members])

    return construct
