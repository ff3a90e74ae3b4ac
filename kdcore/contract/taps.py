"""The outputs of a network that a distillation method can read."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor


class Tap(StrEnum):
    """A kind of output."""

    LOGITS = "logits"
    EMBEDDING = "embedding"
    MAPS = "maps"
    PREACTIVATIONS = "preactivations"
    INPUT_GRADIENT = "input gradient"
    FLIPPED_INPUT_GRADIENT = "flipped input gradient"
    CLASS_MAPS = "class maps"
    POOLED_MAP = "pooled map"
    STRONG_LOGITS = "strong view's logits"
    DISTILLATION_LOGITS = "distillation logits"


STUDENTS_ALONE = frozenset({Tap.DISTILLATION_LOGITS})
"""Kinds that are of no use of a teacher."""


@dataclass(frozen=True)
class TapInfo:
    """A place in a network where a feature map can be read.

    Args:
        name: unique within the network.
        channels: of the map.
        reduction: image side / map side, for image sides that it divides; unpadded convolutions
            make the map a few pixels smaller.
        activation: the function of `torch.nn.functional` between the map before and the map after
            it, like `relu`, or `none` if they are the same.
        note: what the map is, where it is not that of the stem or at the end of a stage.
    """

    name: str
    channels: int
    reduction: int
    activation: str = "relu"
    note: str = ""


@dataclass(frozen=True)
class Taps:
    """One network's outputs for one batch of B images.

    Args:
        logits: [B, K], before the softmax; of a head for the classes alone, where there are
            distillation logits.
        embedding: [B, D], what the last linear layer reads, before any dropout.
        maps: by tap name, [B, C, H, W] after the activation; empty unless requested.
        preactivations: by tap name, [B, C, H, W] before the activation; empty unless requested.
        input_gradient: [B, C, H, W], the gradient of each image's cross-entropy with respect to its
            normalised pixels; differentiable for the student. None unless requested.
        flipped_input_gradient: [B, C, H, W], the same for the mirrored images. None unless
            requested.
        class_maps: [B, K, H, W], the classifier at each position of the map whose mean is the
            embedding; without dropout, their mean over positions is the logits. None unless
            requested, and where there is no such map.
        pooled_map: [B, D, H, W], the map whose mean is the embedding. None unless requested, and
            where there is no such map.
        strong_logits: [B, K], of the second, stronger view of the same images, see `Split.strong`.
            None unless requested.
        distillation_logits: [B, K], of the second head that some students have, in training; None
            unless requested, and where there is none.
        auxiliary_logits: [B, K] each, of auxiliary classifiers, which some networks have in
            training; methods do not read them.
    """

    logits: Tensor
    embedding: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    preactivations: Mapping[str, Tensor] = field(default_factory=dict)
    input_gradient: Tensor | None = None
    flipped_input_gradient: Tensor | None = None
    class_maps: Tensor | None = None
    pooled_map: Tensor | None = None
    strong_logits: Tensor | None = None
    distillation_logits: Tensor | None = None
    auxiliary_logits: tuple[Tensor, ...] = ()

    def detach(self) -> "Taps":
        """The same values, detached from the autograd graph."""
        return self.changed(Tensor.detach)

    def widened(self) -> "Taps":
        """The same values, with half precision converted to float32."""
        half = (torch.float16, torch.bfloat16)
        return self.changed(lambda tensor: tensor.float() if tensor.dtype in half else tensor)

    def tensors(self) -> list[Tensor]:
        """All outputs that are not None."""
        return [*chain.from_iterable(self.by_kind().values()), *self.auxiliary_logits]

    def by_kind(self) -> dict[Tap, list[Tensor]]:
        """What there is of each kind."""

        def there(tensor: Tensor | None) -> list[Tensor]:
            return [] if tensor is None else [tensor]

        return {
            Tap.LOGITS: [self.logits],
            Tap.EMBEDDING: [self.embedding],
            Tap.MAPS: list(self.maps.values()),
            Tap.PREACTIVATIONS: list(self.preactivations.values()),
            Tap.INPUT_GRADIENT: there(self.input_gradient),
            Tap.FLIPPED_INPUT_GRADIENT: there(self.flipped_input_gradient),
            Tap.CLASS_MAPS: there(self.class_maps),
            Tap.POOLED_MAP: there(self.pooled_map),
            Tap.STRONG_LOGITS: there(self.strong_logits),
            Tap.DISTILLATION_LOGITS: there(self.distillation_logits),
        }

    def only(self, kinds: Container[Tap]) -> "Taps":
        """Logits, embedding, and of the others those of these kinds."""
        return Taps(
            self.logits,
            self.embedding,
            self.maps if Tap.MAPS in kinds else {},
            self.preactivations if Tap.PREACTIVATIONS in kinds else {},
            self.input_gradient if Tap.INPUT_GRADIENT in kinds else None,
            self.flipped_input_gradient if Tap.FLIPPED_INPUT_GRADIENT in kinds else None,
            self.class_maps if Tap.CLASS_MAPS in kinds else None,
            self.pooled_map if Tap.POOLED_MAP in kinds else None,
            self.strong_logits if Tap.STRONG_LOGITS in kinds else None,
            self.distillation_logits if Tap.DISTILLATION_LOGITS in kinds else None,
        )

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Taps":
        """Applies a function to every tensor."""
        return Taps(
            change(self.logits),
            change(self.embedding),
            {name: change(tensor) for name, tensor in self.maps.items()},
            {name: change(tensor) for name, tensor in self.preactivations.items()},
            None if self.input_gradient is None else change(self.input_gradient),
            None if self.flipped_input_gradient is None else change(self.flipped_input_gradient),
            None if self.class_maps is None else change(self.class_maps),
            None if self.pooled_map is None else change(self.pooled_map),
            None if self.strong_logits is None else change(self.strong_logits),
            None if self.distillation_logits is None else change(self.distillation_logits),
            tuple(map(change, self.auxiliary_logits)),
        )


class Mixed(NamedTuple):
    """The second classes of images that are mixed of two.

    Args:
        labels: [B], int64 classes, which may be the first ones too.
        shares: [B], float32, of the first class, 0.5 to 1.
    """

    labels: Tensor
    shares: Tensor

    def at(self, positions: Tensor) -> "Mixed":
        """That of the images at these positions."""
        return Mixed(self.labels[positions], self.shares[positions])

    def expected(self, of_the_first: Tensor, of_the_second: Tensor) -> Tensor:
        """The mean, [B], of values [B] for the first class and for the second, by their shares; a
        share of 1 gives the first value to the bit."""
        return of_the_first + (1 - self.shares) * (of_the_second - of_the_first)


@dataclass(frozen=True)
class Batch:
    """What a method is given beside the networks' outputs.

    Args:
        labels: [B], int64 classes; of mixed images the class with the larger share; -1 where a
            student learns without labels.
        indices: [B], int64 positions of the images in the training split, 0 to N-1.
        epoch: the current epoch, from 1.
        epochs: the trial's budget of epochs.
        mixed: the second classes; None if images are not mixed.
        first: the place of its first image among those that several processes have of one batch.
        whole: the number of these; None: they are this batch.
    """

    labels: Tensor
    indices: Tensor
    epoch: int
    epochs: int
    mixed: Mixed | None = None
    first: int = 0
    whole: int | None = None

    def rand(self, size: Sequence[int], device: torch.device) -> Tensor:
        """`torch.rand` of [B, ...], in which an image has the same numbers however its batch is
        divided among processes."""
        images, *others = size
        drawn = torch.rand((self.whole or images, *others), device=device)
        return drawn[self.first : self.first + images]
