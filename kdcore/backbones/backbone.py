"""The contract of a network that can teach or learn."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from kdcore.taps import Tap, TapInfo, Taps


class Backbone(nn.Module):
    """A classifier that declares its taps as data.

    A family sets the attributes in its constructor and gives `walk`; everything else is here.

    Attributes:
        stem: the tap before the first stage.
        stages: the taps at the ends of the stages, from the image to the classifier.
        embedding_width: D, the width of what the classifier reads.
        num_classes: K.
        in_channels: channels of the images.
        fc: the linear classifier.
    """

    stem: TapInfo
    stages: tuple[TapInfo, ...]
    embedding_width: int
    num_classes: int
    in_channels: int
    fc: nn.Linear

    @abstractmethod
    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        """Yields stem and stages in order, each with its map before and after the activation."""

    def norms(self) -> Mapping[str, nn.BatchNorm2d]:
        """By tap name, the batch norm whose output the tap's activation reads, itself or added to
        a shortcut; taps without one are missing."""
        return {}

    def taps(self, images: Tensor, needs: frozenset[Tap]) -> Taps:
        """Runs the network once.

        Args:
            images: [B, in_channels, H, W], normalised.
            needs: the kinds of output to keep; logits and embedding are always there.
        """
        maps: dict[str, Tensor] = {}
        preactivations: dict[str, Tensor] = {}
        for tap, before, after in self.walk(images):
            if Tap.MAPS in needs:
                maps[tap.name] = after
            if Tap.PREACTIVATIONS in needs:
                preactivations[tap.name] = before
        embedding = after.mean((2, 3))
        return Taps(self.fc(embedding), embedding, maps, preactivations)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] for normalised images [B, in_channels, H, W]."""
        return self.taps(images, frozenset()).logits
