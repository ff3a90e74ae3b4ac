"""Splits of a data set, read as batches of pixels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcore.contract.taps import Mixed
from kdcore.data.augmentation.mixing import Mixing, mixing_of
from kdcore.data.augmentation.pipeline import augmented
from kdcore.data.augmentation.steps import Flip, PadCrop, Step, recipe_of, strengthened
from kdcore.data.views import crop_and_flip

# Augmentation is a few small operations, which cost about the same for few and for many images.
# 2,048 images of 3x32x32 are 6 MB, which still fit into a processor's cache.
_AT_ONCE = 2048
_BYTES_AT_ONCE = _AT_ONCE * 3 * 32 * 32

# Between the seeds of first and second views; those of a configuration are below.
_SEEDS = 1 << 32


class Split(ABC):
    """Images and labels in a fixed order; batches are on the split's device.

    Attributes:
        labels: [N], int64.
        image_ids: [N], int64, positions in the data set, which seed the views.
        view_seed: of the views.
        steps: of the views; None for the data set's usual ones.
    """

    labels: Tensor
    image_ids: Tensor
    view_seed: int
    steps: tuple[Step, ...] | None

    @abstractmethod
    def all_steps(self) -> tuple[Step, ...]:
        """The steps of the views, the usual ones too."""

    @property
    @abstractmethod
    def view_recipe(self) -> str:
        """Everything that decides a view of an image, except the image."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def sides(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""

    def batch_without_gradients(self) -> int:
        """Batch size without gradients: large enough to fill a device, small enough for the widest
        maps of a ResNet-50 in a few GB."""
        height, width = self.sides()
        return min(512, max(1, 512 * 64 * 64 // (height * width)))

    def shuffled(self) -> Tensor:
        """All positions [N], int64, shuffled by PyTorch's global random state."""
        return torch.randperm(len(self))

    def mixing(self, positions: Tensor, view: int) -> Mixing | None:
        """How these images [n] are mixed in a view, on the processor; None if they are not."""
        return mixing_of(
            self.steps or (),
            self.image_ids[positions],
            seed=self.view_seed,
            view=view,
            sides=self.sides(),
            partners_of=lambda drawn: self.partners(positions.cpu(), drawn),
        )

    def partners(self, positions: Tensor, drawn: Tensor) -> Tensor:
        """The partners of images in mixing: any other image of the split, or the image itself.

        Args:
            positions: [n], int64, of the images, on the processor.
            drawn: [n], int64, random numbers below 2^31.

        Returns:
            [n], int64, positions in this split.
        """
        return drawn % len(self)

    def classes(self, view: int) -> tuple[Tensor, Mixed | None]:
        """The classes [N] of all images in a view, on the split's device.

        Returns:
            The dominant class of each image, and the other one; None if images are not mixed.
        """
        mixing = self.mixing(torch.arange(len(self), device=self.labels.device), view)
        if mixing is None:
            return self.labels, None
        mixing = mixing.to(self.labels.device)
        return mixing.classes(self.labels, self.labels[mixing.partners])

    def strong(self) -> "Split":
        """The same images with their second views: stronger, see `strengthened`, and independent of
        the first ones, by a seed of their own."""
        return self.with_views(strengthened(self.all_steps()), self.view_seed + _SEEDS)

    @abstractmethod
    def with_views(self, steps: tuple[Step, ...], view_seed: int) -> "Split":
        """The same images with other views."""

    @property
    def device_bytes(self) -> int:
        """What its images take on a device that they are moved to; 0 where they come by batches."""
        return 0

    def decoding_share(self) -> float:
        """Share of reading and decoding in the work for images since this was asked last."""
        return 0.0

    @abstractmethod
    def to(self, device: torch.device) -> "Split":
        """The same split with its labels, ids and batches on another device."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, unaugmented: [B, C, H, W], uint8; the last batch may be smaller."""

    @abstractmethod
    def views(self, order: Tensor, view: int, size: int) -> Iterator[Tensor]:
        """Augmented images: [B, C, H, W], uint8; the last batch may be smaller.

        Args:
            order: positions in this split, int64, on its device.
            view: >= 0; does not depend on the order.
            size: B.
        """


@dataclass(frozen=True)
class TableSplit(Split):
    """A split whose pixels are one tensor.

    Args:
        images: [N, C, H, W], uint8.
        labels: [N], int64.
        image_ids: [N], int64, positions in the image table.
        view_seed: of the augmentation.
        crop_padding: pixels of black border for random crops.
        flip: whether to mirror images at random.
        steps: of the views in place of crop and flip, if any.
    """

    images: Tensor
    labels: Tensor
    image_ids: Tensor
    view_seed: int
    crop_padding: int
    flip: bool
    steps: tuple[Step, ...] | None = None

    def all_steps(self) -> tuple[Step, ...]:
        if self.steps is not None:
            return self.steps
        crop = (PadCrop(padding=self.crop_padding),) if self.crop_padding else ()
        return (*crop, *((Flip(),) if self.flip else ()))

    def sides(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    @property
    def device_bytes(self) -> int:
        return self.images.nbytes

    @property
    def view_recipe(self) -> str:
        if self.steps is not None:
            return f"seed {self.view_seed}, {recipe_of(self.steps)}"
        return f"seed {self.view_seed}, crop padding {self.crop_padding}, flip {self.flip}"

    def to(self, device: torch.device) -> "TableSplit":
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            image_ids=self.image_ids.to(device),
        )

    def with_views(self, steps: tuple[Step, ...], view_seed: int) -> "TableSplit":
        return replace(self, steps=steps, view_seed=view_seed)

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from torch.split(self.images, size)

    def views(self, order: Tensor, view: int, size: int) -> Iterator[Tensor]:
        at_once = _AT_ONCE
        if self.steps is not None:  # some of which compute in float64
            at_once = max(1, _BYTES_AT_ONCE // self.images[0].numel())
        for positions in torch.split(order, max(1, at_once // size) * size):
            yield from torch.split(self._mixed(positions, view), size)

    def _mixed(self, positions: Tensor, view: int) -> Tensor:
        images = self._augmented(positions, view)
        mixing = self.mixing(positions, view)
        if mixing is None:
            return images
        mixing = mixing.to(images.device)
        return mixing.pixels(images, self._augmented(mixing.partners, view))

    def _augmented(self, positions: Tensor, view: int) -> Tensor:
        images, image_ids = self.images.index_select(0, positions), self.image_ids[positions]
        if self.steps is not None:
            return augmented(images, image_ids, self.steps, seed=self.view_seed, view=view)
        return crop_and_flip(
            images,
            image_ids,
            seed=self.view_seed,
            view=view,
            crop_padding=self.crop_padding,
            flip=self.flip,
        )
