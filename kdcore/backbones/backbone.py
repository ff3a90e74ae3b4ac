"""The contract of a network that can teach or learn."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdcore.contract.taps import Tap, TapInfo, Taps


def spatial_mean(maps: Tensor) -> Tensor:
    """The mean [B, C] of maps [B, C, H, W]. Its gradient has the layout of the maps."""
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).mean((1, 2))
    return maps.mean((2, 3))


class Backbone(nn.Module):
    """A classifier that declares its taps as data.

    A family sets the attributes in its constructor, calls `fc` its linear classifier, and gives
    `walk`; what else it does differently from `embed`, `classify` and `norms` it overrides.

    Attributes:
        stem: the tap before the first stage; none where the network shows no spatial maps.
        stages: the taps at the ends of the stages, from the image to the classifier.
        embedding_width: D, the width of what the last linear layer reads.
        num_classes: K.
        in_channels: channels of the images.
        native_size: height and width in pixels of the images that it was designed for.
        auxiliary: classifiers that only training has, by the name of the place that they read.
        auxiliary_weight: of the cross-entropy of each of them, beside the network's own.
    """

    stem: TapInfo | None
    stages: tuple[TapInfo, ...]
    embedding_width: int
    num_classes: int
    in_channels: int
    native_size: tuple[int, int]
    fc: nn.Linear
    auxiliary_weight: float = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.ModuleDict()

    @property
    def declared(self) -> tuple[TapInfo, ...]:
        """All taps, from the image to the classifier."""
        return () if self.stem is None else (self.stem, *self.stages)

    @abstractmethod
    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        """Yields stem and stages in order, each with its map before and after the activation.

        In training, the places of the auxiliary classifiers come between them.
        """

    def embed(self, maps: Sequence[Tensor]) -> Tensor:
        """The embedding [B, D] that follows from the maps of stem and stages."""
        return spatial_mean(maps[-1])

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits [B, K] for the embedding [B, D]: dropout, if there is any, and a linear layer."""
        logits: Tensor = self.fc(embedding)
        return logits

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        """By tap name, the batch norm whose output the tap's activation reads, itself or added to
        a shortcut; several where their outputs stand side by side as the map's channels. Taps
        without one are missing."""
        return {}

    def drop_auxiliary(self) -> None:
        """Removes what only training needs."""
        self.auxiliary = nn.ModuleDict()

    def taps(self, images: Tensor, needs: frozenset[Tap]) -> Taps:
        """Runs the network once.

        Args:
            images: [B, in_channels, H, W], normalised.
            needs: the kinds of output to keep; logits and embedding are always there.
        """
        maps: dict[str, Tensor] = {}
        preactivations: dict[str, Tensor] = {}
        auxiliary_logits: list[Tensor] = []
        activations: list[Tensor] = []
        for tap, before, after in self.walk(images):
            if tap.name in self.auxiliary:
                auxiliary_logits.append(self.auxiliary[tap.name](after))
                continue
            activations.append(after)
            if Tap.MAPS in needs:
                maps[tap.name] = after
            if Tap.PREACTIVATIONS in needs:
                preactivations[tap.name] = before
        embedding = self.embed(activations)
        return Taps(
            self.classify(embedding),
            embedding,
            maps,
            preactivations,
            auxiliary_logits=tuple(auxiliary_logits),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] for normalised images [B, in_channels, H, W]."""
        return self.taps(images, frozenset()).logits
