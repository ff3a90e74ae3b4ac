"""A data set that is larger than memory: encoded images, read and decoded while others train."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from kdcore.data.arrow_files import key_of, open_or_make
from kdcore.data.decoding import EncodedImage, Part
from kdcore.data.decoding_pool import show_in_order
from kdcore.data.source import Collection, PixelStatistics
from kdcore.data.split import Split
from kdcore.data.stratified import stratified_mask
from kdcore.errors import ConfigError, DataError

# One part takes a process some 40 ms at 224x224, and 2.4 MB: enough to be worth a message, little
# enough that the processes share a batch evenly.
_PART = 16
_MOST_PROCESSES = 16

_SAMPLE = 2048

# What data sets call their parts. The first of the second line that is there is the test split, the
# others are left out: the images that rank trials are always held out of the training part.
TRAIN = "train"
TESTS = ("test", "validation", "val")

# Where data have no test split of their own. Its seed is fixed for ever, so that scores of
# different searches can be compared.
_TEST_FRACTION = 0.1
_TEST_SEED = 2014


class ImageStore(ABC):
    """Where encoded images lie."""

    @abstractmethod
    def read(self, image_ids: Tensor) -> Iterator[EncodedImage]:
        """The images with these ids [n], int64, in the given order, each read when it is due."""

    def shuffled(self, image_ids: Tensor) -> Tensor:
        """An order [n], int64, to read these images in; torch's global random state decides."""
        return torch.randperm(len(image_ids))


@dataclass(frozen=True)
class StreamedSplit(Split):
    """A split whose images are decoded when they are due.

    Training views are random resized crops, mirrored half of the time (Szegedy et al., 2014,
    arXiv:1409.4842); `batches` gives centre crops.

    Args:
        store: where the images lie.
        labels: [N], int64.
        image_ids: [N], int64, positions in the data set.
        image_size: height and width of what comes out.
        view_seed: of the augmentation.
        device: where batches go.
    """

    store: ImageStore
    labels: Tensor
    image_ids: Tensor
    image_size: tuple[int, int]
    view_seed: int
    device: torch.device

    def sides(self) -> tuple[int, int]:
        return self.image_size

    @property
    def view_recipe(self) -> str:
        height, width = self.image_size
        return f"seed {self.view_seed}, random resized crop to {height}x{width}, flip"

    def shuffled(self) -> Tensor:
        return self.store.shuffled(self.image_ids.cpu())

    def to(self, device: torch.device) -> "StreamedSplit":
        return replace(
            self,
            labels=self.labels.to(device),
            image_ids=self.image_ids.to(device),
            device=device,
        )

    def batches(self, size: int) -> Iterator[Tensor]:
        return self._decoded(self.image_ids, None, size, _processes(self.device))

    def views(self, order: Tensor, view: int, size: int) -> Iterator[Tensor]:
        return self._decoded(self.image_ids[order], view, size, _processes(self.device))

    def sums(self) -> tuple[int, Tensor, Tensor]:
        """Count, sum [3] and sum of squares [3] of all pixels, unaugmented, int64."""
        count, total, squares = 0, torch.zeros(3, dtype=torch.int64), torch.zeros(3).long()
        # This is done once, often by a process that trains nothing: none is started for it.
        for images in self._decoded(self.image_ids, None, _PART, processes=0):
            pixels = images.transpose(0, 1).flatten(1).long()
            count += pixels.shape[1]
            total += pixels.sum(1)
            squares += pixels.square().sum(1)
        return count, total, squares

    def _decoded(
        self, image_ids: Tensor, view: int | None, size: int, processes: int
    ) -> Iterator[Tensor]:
        batches = torch.split(image_ids.cpu(), size)
        encoded = self.store.read(image_ids.cpu())
        pixels = show_in_order(
            (
                Part(
                    tuple(islice(encoded, len(ids))),
                    tuple(ids.tolist()),
                    self.image_size,
                    self.view_seed,
                    view,
                )
                for batch in batches
                for ids in torch.split(batch, _PART)
            ),
            processes,
            # While one batch is in use, the next is made, and nobody waits at its end.
            ahead=2 * processes + -(-size // _PART),
        )
        pinned = self.device.type == "cuda"
        for batch in batches:
            images = torch.empty(
                len(batch), 3, *self.image_size, dtype=torch.uint8, pin_memory=pinned
            )
            for place in torch.split(images, _PART):
                place.numpy()[:] = next(pixels).numpy()
            yield images.to(self.device, non_blocking=True)


def _processes(device: torch.device) -> int:
    """How many processes decode: as many as this one may use threads.

    On a CPU a single thread decodes itself; its trial has no second core. Beside a GPU the one
    thread mostly waits for it, so that a process has the core to itself.
    """
    threads = torch.get_num_threads()
    return 0 if threads == 1 and device.type == "cpu" else min(threads, _MOST_PROCESSES)


@dataclass(frozen=True, kw_only=True)
class StreamedCollection(Collection):
    """A data set of encoded images; without `is_test` anywhere, it has no test split yet.

    Args:
        store: where the images lie.
        view_seed: of the augmentation.
        kept: a path without its ending, for the statistics that are kept.
    """

    store: ImageStore
    view_seed: int
    kept: Path

    def split(self, positions: Tensor) -> StreamedSplit:
        return StreamedSplit(
            self.store,
            self.labels[positions],
            positions,
            self.image_size,
            self.view_seed,
            positions.device,
        )

    def with_test_split(self, test_fraction: float | None) -> "StreamedCollection":
        """The same with a test split, where it has none of its own.

        Args:
            test_fraction: of the configuration.

        Raises:
            ConfigError: a share is given, but the data has a test split.
            DataError: the share leaves a part empty.
        """
        if self.is_test.any():
            if test_fraction is not None:
                raise ConfigError(
                    f"test_fraction is {test_fraction}, but root has a test split of "
                    f"{int(self.is_test.sum())} images; leave test_fraction out"
                )
            return self
        fraction = _TEST_FRACTION if test_fraction is None else test_fraction
        images = round(fraction * len(self.labels))
        if not 0 < images < len(self.labels):
            raise DataError(
                f"test_fraction is {fraction}, but leaves {images} of {len(self.labels)} images to "
                f"the test"
            )
        return replace(self, is_test=stratified_mask(self.labels, images, _TEST_SEED))

    def statistics(self, positions: Tensor) -> PixelStatistics:
        """Estimated on a sample of 2,048 images, always the same for the same split."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sample = positions[self.store.shuffled(positions)[:_SAMPLE]].sort().values

        def estimate() -> pa.RecordBatch:
            count, total, squares = self.split(sample).sums()
            mean = total.double() / count
            variance = (squares.double() - total.double() * mean) / (count - 1)
            return pa.record_batch(
                {"mean": (mean / 255).numpy(), "std": (variance.sqrt() / 255).numpy()}
            )

        key = key_of([self.digest, self.image_size, sample.tolist()])
        return open_or_make(
            self.kept.with_name(f"{self.kept.name}-{key}.arrow"),
            "statistics file",
            estimate,
            lambda batch: (tuple(batch["mean"].to_pylist()), tuple(batch["std"].to_pylist())),
        )
