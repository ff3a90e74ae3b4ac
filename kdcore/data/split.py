"""A part of a data set, as batches of pixels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcore.data.views import crop_and_flip

# Augmentation is a handful of small operations: for many images at once they cost as much as for
# few. 2,048 images of 3x32x32 are 6 MB, which a cache still holds.
_AT_ONCE = 2048


class Split(ABC):
    """Images and their classes, in a fixed order; batches come on the split's device.

    Attributes:
        labels: [N], int64.
        image_ids: [N], int64, positions in the data set; views are drawn by them.
    """

    labels: Tensor
    image_ids: Tensor

    @property
    @abstractmethod
    def view_recipe(self) -> str:
        """All that decides how an image looks in a view, but the image itself."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def sides(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""

    def batch_without_gradients(self) -> int:
        """How many images to show a network at once where no gradient is wanted: many enough to
        fill a device, few enough for the widest maps of a ResNet-50 in a few GB."""
        height, width = self.sides()
        return min(512, max(1, 512 * 64 * 64 // (height * width)))

    def shuffled(self) -> Tensor:
        """All positions [N], int64, in an order that PyTorch's global random state decides."""
        return torch.randperm(len(self))

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
            view: which view, >= 0; an image looks the same in it whatever the order.
            size: B.
        """


@dataclass(frozen=True)
class TableSplit(Split):
    """A split whose pixels are one tensor: a data set that fits into memory.

    Args:
        images: [N, C, H, W], uint8.
        labels: [N], int64.
        image_ids: [N], int64, positions in the image table.
        view_seed: of the augmentation.
        crop_padding: pixels of black border that a random crop may reach into.
        flip: whether every second image is mirrored.
    """

    images: Tensor
    labels: Tensor
    image_ids: Tensor
    view_seed: int
    crop_padding: int
    flip: bool

    def sides(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    @property
    def view_recipe(self) -> str:
        return f"seed {self.view_seed}, crop padding {self.crop_padding}, flip {self.flip}"

    def to(self, device: torch.device) -> "TableSplit":
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            image_ids=self.image_ids.to(device),
        )

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from torch.split(self.images, size)

    def views(self, order: Tensor, view: int, size: int) -> Iterator[Tensor]:
        for positions in torch.split(order, max(1, _AT_ONCE // size) * size):
            seen = crop_and_flip(
                self.images[positions],
                self.image_ids[positions],
                seed=self.view_seed,
                view=view,
                crop_padding=self.crop_padding,
                flip=self.flip,
            )
            yield from torch.split(seen, size)
