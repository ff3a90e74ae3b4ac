"""Data sets larger than memory: images are read and decoded ahead of training."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from kdcore.data.arrow_files import key_of, open_or_make
from kdcore.data.augmentation.steps import Flip, RandomResizedCrop, Step, recipe_of
from kdcore.data.centre_crop import USUAL_CROP, CentreCrop
from kdcore.data.colour import WHITE, Colour
from kdcore.data.decoding import DecodingTask, EncodedImage, Work, is_transparent
from kdcore.data.decoding_pool import decode_in_order, in_threads
from kdcore.data.source import UNLABELLED, Collection, PixelStatistics
from kdcore.data.split import Split
from kdcore.data.stratified import stratified_mask
from kdcore.errors import ConfigError, DataError

# Images per decoding task: at 224x224 about 40 ms and 2.4 MB, long enough to be worth a message and
# short enough to spread a batch evenly.
_PART = 16
_MOST_PROCESSES = 16

_SAMPLE = 2048

# For looking at images once, by a process that does not train.
_AT_ONCE = 64

# Names of the parts. The first of TESTS that is there is the test split, others are ignored: the
# images that rank trials are always held out of the training part.
TRAIN = "train"
TESTS = ("test", "validation", "val")

# For data without a test split. The seed never changes, so that scores stay comparable.
_TEST_FRACTION = 0.1
_TEST_SEED = 2014


class ImageStore(ABC):
    """A store of encoded images."""

    @abstractmethod
    def read(self, image_ids: Tensor) -> Iterator[EncodedImage]:
        """Yields the images with these ids [n], int64, in this order, reading them lazily."""

    @abstractmethod
    def perhaps_transparent(self) -> Tensor:
        """The ids [n], int64, of images to look at to know whether any is transparent."""

    def shuffled(self, image_ids: Tensor) -> Tensor:
        """A random order [n], int64, of these images, by PyTorch's global random state."""
        return torch.randperm(len(image_ids))

    def partners(self, image_ids: Tensor, positions: Tensor, drawn: Tensor) -> Tensor:
        """As `Split.partners` for a split with these images [N]: those that it is cheap to read."""
        return drawn % len(image_ids)


@dataclass(frozen=True)
class StreamedSplit(Split):
    """A split whose images are decoded when they are needed.

    Unless there are steps, training views are random resized crops, mirrored half of the time
    (Szegedy et al., 2014, arXiv:1409.4842); `batches` gives centre crops.

    Args:
        store: of the images.
        labels: [N], int64.
        image_ids: [N], int64, positions in the data set.
        image_size: height and width of the crops.
        view_seed: of the augmentation.
        device: of the batches.
        background: behind transparent images.
        steps: of the views, if they are not the usual ones; the first resizes a patch.
        crop: of unaugmented images.
        work: for its images, since it was asked last.
    """

    store: ImageStore
    labels: Tensor
    image_ids: Tensor
    image_size: tuple[int, int]
    view_seed: int
    device: torch.device
    background: Colour = WHITE
    steps: tuple[Step, ...] | None = None
    crop: CentreCrop = USUAL_CROP
    work: Work = field(default_factory=Work, compare=False)

    def all_steps(self) -> tuple[Step, ...]:
        return (RandomResizedCrop(), Flip()) if self.steps is None else self.steps

    def decoding_share(self) -> float:
        seconds = self.work.decoding + self.work.augmenting
        share = self.work.decoding / seconds if seconds else 0.0
        self.work.decoding = self.work.augmenting = 0.0
        return share

    def sides(self) -> tuple[int, int]:
        return self.image_size

    @property
    def view_recipe(self) -> str:
        height, width = self.image_size
        if self.steps is not None:
            return f"seed {self.view_seed}, to {height}x{width}, {recipe_of(self.steps)}"
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

    def with_views(self, steps: tuple[Step, ...], view_seed: int) -> "StreamedSplit":
        return replace(self, steps=steps, view_seed=view_seed)

    def partners(self, positions: Tensor, drawn: Tensor) -> Tensor:
        return self.store.partners(self.image_ids.cpu(), positions, drawn)

    def batches(self, size: int) -> Iterator[Tensor]:
        return self._decoded(torch.split(self.image_ids, size), None, size, _processes(self.device))

    def views(self, order: Tensor, view: int, size: int) -> Iterator[Tensor]:
        own = torch.split(self.image_ids[order], size)
        mixing = self.mixing(order, view)
        if mixing is None:
            yield from self._decoded(own, view, size, _processes(self.device))
            return
        partners = torch.split(self.image_ids.cpu()[mixing.partners], size)
        both = [batch for pair in zip(own, partners, strict=True) for batch in pair]
        decoded = self._decoded(both, view, size, _processes(self.device))
        for part, images in zip(mixing.split(size), decoded, strict=False):
            yield part.to(self.device).pixels(images, next(decoded))

    def sums(self) -> tuple[int, Tensor, Tensor]:
        """Count, sum [3] and sum of squares [3] of all pixels, unaugmented, int64."""
        count, total, squares = 0, torch.zeros(3, dtype=torch.int64), torch.zeros(3).long()
        # Done once, often by a process that does not train, so without a pool.
        for images in self._decoded(torch.split(self.image_ids, _PART), None, _PART, 0):
            pixels = images.transpose(0, 1).flatten(1).long()
            count += pixels.shape[1]
            total += pixels.sum(1)
            squares += pixels.square().sum(1)
        return count, total, squares

    def _decoded(
        self, batches: Sequence[Tensor], view: int | None, size: int, processes: int
    ) -> Iterator[Tensor]:
        """Batches of at most `size` images, before they are mixed."""
        batches = [batch.cpu() for batch in batches]
        encoded = self.store.read(torch.cat(batches))
        decoded = decode_in_order(
            (
                DecodingTask(
                    tuple(islice(encoded, len(ids))),
                    tuple(ids.tolist()),
                    self.image_size,
                    self.view_seed,
                    view,
                    self.background,
                    self.steps,
                    self.crop,
                )
                for batch in batches
                for ids in torch.split(batch, _PART)
            ),
            processes,
            # The next batch is decoded while one is in use, and no process idles in between.
            ahead=2 * processes + -(-size // _PART),
        )
        pinned = self.device.type == "cuda"
        for batch in batches:
            images = torch.empty(
                len(batch), 3, *self.image_size, dtype=torch.uint8, pin_memory=pinned
            )
            for place in torch.split(images, _PART):
                pixels, work = next(decoded)
                self.work.add(work)
                place.numpy()[:] = pixels.numpy()
            yield images.to(self.device, non_blocking=True)


def _processes(device: torch.device) -> int:
    """Number of decoding processes: as many as this one may use threads.

    With a single thread on a CPU, none: there is no other core. With a GPU, the thread mostly
    waits, and a process can use the core.
    """
    threads = torch.get_num_threads()
    return 0 if threads == 1 and device.type == "cpu" else min(threads, _MOST_PROCESSES)


@dataclass(frozen=True, kw_only=True)
class StreamedCollection(Collection):
    """A data set of encoded images. If `is_test` is False everywhere, it has no test split yet.

    Args:
        store: of the images.
        view_seed: of the augmentation.
        cache_path: of the cached statistics, without suffix.
        background: behind transparent images.
        steps: of the views, if they are not the usual ones.
        crop: of unaugmented images.
    """

    store: ImageStore
    view_seed: int
    cache_path: Path
    background: Colour = WHITE
    steps: tuple[Step, ...] | None = None
    crop: CentreCrop = USUAL_CROP

    def split(self, positions: Tensor) -> StreamedSplit:
        return StreamedSplit(
            self.store,
            self.labels[positions],
            positions,
            self.image_size,
            self.view_seed,
            positions.device,
            self.background,
            self.steps,
            self.crop,
        )

    def with_test_split(self, test_fraction: float | None) -> "StreamedCollection":
        """Adds a test split if there is none.

        Args:
            test_fraction: from the configuration; None for the default.

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
        labelled = self.labels != UNLABELLED
        labels = self.labels[labelled]
        images = round(fraction * len(labels))
        if not 0 < images < len(labels):
            raise DataError(
                f"test_fraction is {fraction}, but leaves {images} of {len(labels)} images "
                f"for the test"
            )
        is_test = torch.zeros_like(labelled)
        is_test[labelled] = stratified_mask(labels, images, _TEST_SEED)
        return replace(self, is_test=is_test)

    def over(self, background: Colour | None) -> "StreamedCollection":
        """The same images over a background, with a digest that tells so if one is transparent.

        Earlier versions dropped transparency, so what was made of transparent images then
        (tables, statistics, teachers and their outputs) must not be taken for what is made now. Of
        other images everything stays valid, whatever the background.

        Args:
            background: from the configuration; None for white.
        """
        background = background or WHITE
        if not self._any_transparent():
            return replace(self, background=background)
        digest = hashlib.sha256(json.dumps([self.digest, "over", background]).encode())
        return replace(self, background=background, digest=digest.hexdigest()[:16])

    def _any_transparent(self) -> bool:
        """Whether an image is transparent, which is looked up once."""
        candidates = self.store.perhaps_transparent()
        if len(candidates) == 0:
            return False

        def look() -> pa.RecordBatch:
            seen = in_threads(is_transparent, self.store.read(candidates), _AT_ONCE)
            return pa.record_batch({"any": [any(seen)]})

        path = self.cache_path.with_name(f"{self.cache_path.name}-transparent.arrow")
        return open_or_make(
            path, "note on transparent images", look, lambda batch: bool(batch["any"][0].as_py())
        )

    def statistics(self, positions: Tensor) -> PixelStatistics:
        """Estimates mean and deviation on 2,048 images, the same ones for the same split."""
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

        identity: list[object] = [self.digest, self.image_size, sample.tolist()]
        if self.crop != USUAL_CROP:
            identity.append(self.crop.model_dump())
        key = key_of(identity)
        return open_or_make(
            self.cache_path.with_name(f"{self.cache_path.name}-{key}.arrow"),
            "statistics file",
            estimate,
            lambda batch: (tuple(batch["mean"].to_pylist()), tuple(batch["std"].to_pylist())),
        )
