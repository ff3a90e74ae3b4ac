"""The base class of networks."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from kdcore.backbones.drop_path import DropPath, check_drop_path, rates_by_depth
from kdcore.backbones.positions import Positions
from kdcore.contract.taps import Tap, TapInfo, Taps


def spatial_mean(maps: Tensor) -> Tensor:
    """Global average pooling, [B, C, H, W] to [B, C]. The gradient has the layout of the maps."""
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).mean((1, 2))
    return maps.mean((2, 3))


class Backbone(nn.Module):
    """A classifier that declares its taps.

    A subclass sets the attributes in its constructor, names its linear classifier `fc`, and defines
    `walk`. Where they differ, it overrides `pooled` or `embed`, `classify`, `last_layer`, `norms`.

    Attributes:
        stem: the tap before the first stage; None if the network has no spatial maps.
        stages: the taps at the ends of the stages, from image to classifier.
        further: taps beside stem and stages, by name; none in most networks.
        embedding_width: D, the input features of the last linear layer.
        num_classes: K.
        in_channels: channels of the images.
        native_size: height and width in pixels of the images that it was designed for.
        auxiliary: auxiliary classifiers, used only in training, by the name of the map they read.
        auxiliary_weight: of the cross-entropy of each auxiliary classifier.
        logits_only: whether nothing but its logits means anything, as of an ensemble.
        suffix: what its name has beside that of the student that it was made of; empty but for a
            student with its teacher's classifier.
        distillation_head: whether its logits are the mean of two heads, of which the second can
            learn from a teacher what the first does not.
        positions: of position embeddings, by their names; none in most networks.
    """

    stem: TapInfo | None
    stages: tuple[TapInfo, ...]
    further: Mapping[str, TapInfo]
    positions: Mapping[str, Positions]
    embedding_width: int
    num_classes: int
    in_channels: int
    native_size: tuple[int, int]
    fc: nn.Linear
    auxiliary_weight: float = 0.0
    logits_only: bool = False
    suffix: str = ""
    distillation_head: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.further, self.positions = {}, {}
        self.auxiliary = nn.ModuleDict()

    @property
    def declared(self) -> tuple[TapInfo, ...]:
        """Stem and stages, from image to classifier."""
        return () if self.stem is None else (self.stem, *self.stages)

    @abstractmethod
    def walk(self, images: Tensor) -> Iterator[tuple[TapInfo, Tensor, Tensor]]:
        """Yields stem and stages in order, each with its map before and after the activation.

        Further taps are yielded between them; in training, also the maps that auxiliary
        classifiers read.
        """

    def pooled(self, maps: Sequence[Tensor]) -> Tensor | None:
        """The map [B, D, H, W] whose mean is the embedding, from those of stem and stages.

        None in a network that defines `embed`.
        """
        return maps[-1]

    def embed(self, maps: Sequence[Tensor]) -> Tensor:
        """The embedding [B, D], where it is not the mean of a map."""
        raise NotImplementedError

    def classify(self, embedding: Tensor) -> Tensor:
        """Logits [B, K] for the embedding [B, D]: dropout, if any, and a linear layer."""
        logits: Tensor = self.fc(embedding)
        return logits

    def last_layer(self) -> nn.Linear | nn.Conv2d | None:
        """The linear layer or 1x1 convolution that gives the logits; None where there is none."""
        return self.fc

    def class_maps(self, pooled: Tensor | None) -> Tensor | None:
        """The last layer at each position, [B, K, H, W], of the map that `pooled` gives."""
        layer = self.last_layer()
        if pooled is None or layer is None:
            return None
        return conv2d(pooled, layer.weight.flatten(1)[:, :, None, None], layer.bias)

    def norms(self) -> Mapping[str, tuple[nn.BatchNorm2d, ...]]:
        """The batch norm that each tap's activation reads, by itself or added to a shortcut.

        Several where their outputs are concatenated. Taps without a norm are missing.
        """
        return {}

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth, which rises linearly to this rate at the last residual block.

        Args:
            rate: 0 to 1.

        Raises:
            NetworkError: the rate is above 0, but the network has none.
        """
        blocks = [module for module in self.modules() if isinstance(module, DropPath)]
        check_drop_path(rate, len(blocks))
        for block, its_rate in zip(blocks, rates_by_depth(rate, len(blocks)), strict=True):
            block.rate = its_rate

    def drop_auxiliary(self) -> None:
        """Removes the auxiliary classifiers."""
        self.auxiliary = nn.ModuleDict()

    def taps(
        self, images: Tensor, needs: frozenset[Tap], named: frozenset[str] = frozenset()
    ) -> Taps:
        """Runs the network and collects its outputs.

        Args:
            images: [B, in_channels, H, W], normalised.
            needs: the kinds of output to return; logits and embedding always are.
            named: names of taps. Of the further taps only these are returned; of stem and stages,
                all are.
        """
        maps: dict[str, Tensor] = {}
        preactivations: dict[str, Tensor] = {}
        auxiliary_logits: list[Tensor] = []
        activations: list[Tensor] = []
        for tap, before, after in self.walk(images):
            if tap.name in self.auxiliary:
                auxiliary_logits.append(self.auxiliary[tap.name](after))
                continue
            if tap.name not in self.further:
                activations.append(after)
            elif tap.name not in named:
                continue
            if Tap.MAPS in needs:
                maps[tap.name] = after
            if Tap.PREACTIVATIONS in needs:
                preactivations[tap.name] = before
        pooled = self.pooled(activations)
        embedding = self.embed(activations) if pooled is None else spatial_mean(pooled)
        return Taps(
            self.classify(embedding),
            embedding,
            maps,
            preactivations,
            class_maps=self.class_maps(pooled) if Tap.CLASS_MAPS in needs else None,
            pooled_map=pooled if Tap.POOLED_MAP in needs else None,
            auxiliary_logits=tuple(auxiliary_logits),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] for normalised images [B, in_channels, H, W]."""
        return self.taps(images, frozenset()).logits
