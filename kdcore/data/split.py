"""Splits of a data set, read as batches of pixels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcore.data.views import crop_and_flip

# Augmentation is a few small operations, which cost about the same for few and for many images.
# 2,048 images of 3x32x32 are 6 MB, which still fit into a processor's cache.
_AT_ONCE = 2048


class Split(ABC):
    """Images and labels in a fixed order; batches are on the split's device.

    Attributes:
        labels: [N], int64.
        image_ids: [N], int64, positions in the data set, which seed the views.
    """

    labels: Tensor
    image_ids: Tensor

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
            augmented = crop_and_flip(
                self.images[positions],
                self.image_ids[positions],
                seed=self.view_seed,
                view=view,
                crop_padding=self.crop_padding,
                flip=self.flip,
            )
            yield from torch.split(augmented, size)
