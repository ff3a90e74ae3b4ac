"""The teacher's outputs, computed once for each view of the training images.

A file has one group of outputs for one view: logits and embedding, or one map. The name of the
folder is a hash of everything that the outputs depend on. The first process that needs a view
computes it in one pass; others wait for it.
"""

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor

from kdcore.contract.taps import Tap, Taps
from kdcore.data.image_data import ImageData
from kdcore.execution.execution import Execution
from kdcore.networks.classifier import Classifier
from kdcore.networks.measurement import device_memory
from kdcore.teacher_cache.config import CacheConfig
from kdcore.teacher_cache.files import (
    FOLDER,
    OutputFile,
    cached_files,
    read_outputs,
    reserved_array,
    write_outputs,
)
from kdcore.teacher_cache.shared import SharedCache
from kdcore.teacher_cache.view import CLASS_MAPS, KINDS, POOLED_MAP, STRONG_LOGITS, CachedView

# Groups of columns: logits and embedding, which are always cached, one group for each map, and one
# each for class maps, the pooled map and second views.
_OUTPUTS = "outputs"
_WHOLE = {
    Tap.CLASS_MAPS: CLASS_MAPS,
    Tap.POOLED_MAP: POOLED_MAP,
    Tap.STRONG_LOGITS: STRONG_LOGITS,
}
_CACHED = frozenset({Tap.LOGITS, Tap.EMBEDDING, *_WHOLE, *KINDS})

# What reading a file that is missing, damaged or foreign raises.
_DAMAGED = (pa.ArrowInvalid, OSError, KeyError, ValueError)


@dataclass(frozen=True)
class Wanted:
    """The teacher's outputs that a trial's methods read.

    Args:
        kinds: of outputs.
        maps: names of the taps whose maps they read.
    """

    kinds: frozenset[Tap]
    maps: frozenset[str]

    @property
    def cacheable(self) -> bool:
        """Whether all outputs are of a kind that is cached."""
        return self.kinds <= _CACHED

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of outputs, like `outputs` and `map-stage1`."""
        kinds = [name for kind, name in KINDS.items() if kind in self.kinds]
        named = (f"{kind}-{tap}" for kind in kinds for tap in sorted(self.maps))
        return (_OUTPUTS, *named, *(name for kind, name in _WHOLE.items() if kind in self.kinds))


def goes_to_device(size: int, config: CacheConfig, device: torch.device) -> bool:
    """Whether a view's outputs of so many bytes go to a device as a whole; on a CPU they are
    always there."""
    memory = device_memory(device)
    return memory is None or size <= config.device_share * memory


def _dtype(config: CacheConfig) -> torch.dtype:
    return torch.float16 if config.precision == "float16" else torch.float32


def rounded(taps: Taps, config: CacheConfig) -> Taps:
    """These outputs with the rounding of the cache."""
    return taps.changed(lambda tensor: _stored_as(tensor, _dtype(config)).float())


def _stored_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts to the precision of the cache; values beyond its range are clamped."""
    stored = tensor.to(dtype)
    if dtype is torch.float16:
        # After the conversion: bfloat16 cannot represent the largest float16.
        limit = torch.finfo(dtype).max
        stored = stored.clamp(-limit, limit)
    return stored


class TeacherCache:
    """The cached outputs of one teacher for one training split and its views.

    Args:
        config: precision, size and shared folder.
        workspace: the files are in its folder `teacher_cache`.
        teacher: in evaluation mode; moved to the device if it has to compute.
        weights: the file with the teacher's weights.
        data: the images.
        device: where the teacher computes, and where outputs go.
        execution: of the teacher.
        on_device: whether a view that fits may go to the device as a whole.
    """

    def __init__(
        self,
        config: CacheConfig,
        workspace: Path,
        teacher: Classifier,
        weights: Path,
        data: ImageData,
        *,
        device: torch.device,
        execution: Execution,
        on_device: bool = True,
    ) -> None:
        self.config, self._on_device = config, on_device
        self._teacher, self._data = teacher, data
        self._device, self._execution = device, execution
        self._rows = len(data.train)
        identity = [
            "1",
            hashlib.sha256(weights.read_bytes()).hexdigest(),
            teacher.mean.flatten().tolist(),
            teacher.std.flatten().tolist(),
            data.digest,
            hashlib.sha256(data.train.image_ids.numpy().tobytes()).hexdigest(),
            data.train.view_recipe,
            config.precision,
            f"{device.type} {execution}",
        ]
        self.key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self._root = workspace / FOLDER
        self._folder = self._root / f"{weights.parent.name}-{self.key}"
        self._shared = (
            None
            if config.shared is None
            else SharedCache(config.shared, self._folder.name, self._root)
        )

    def view(self, view: int, wanted: Wanted) -> CachedView | None:
        """The outputs for a view, computed now if they are not cached yet.

        Args:
            view: >= 0.
            wanted: which outputs; must be cacheable.

        Returns:
            None if there is no room for them.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        files = {group: self._intact(group, view) for group in wanted.groups}
        computed = False
        if None in files.values():
            with FileLock(self._folder / f"view{view:04d}.lock"):
                for group, file in files.items():
                    files[group] = file or self._open(group, view)
                missing = [group for group, file in files.items() if file is None]
                if missing:
                    if not self._make_room(missing):
                        return None
                    try:
                        computed = self._compute(view, missing, wanted)
                        for group in missing:
                            path = self._path(group, view)
                            files[group] = read_outputs(path, self.key, self._rows)
                    except OSError as error:
                        warnings.warn(
                            f"the teacher's outputs cannot be cached in {self._folder} ({error}); "
                            f"it runs in every step instead",
                            stacklevel=3,
                        )
                        return None
        columns: dict[str, Tensor] = {}
        seconds = 0.0
        for file in files.values():
            assert file is not None
            columns |= file.columns
            seconds = max(seconds, file.seconds)
        resident = self._on_device and goes_to_device(
            sum(column.nbytes for column in columns.values()), self.config, self._device
        )
        if resident:
            columns = {name: column.to(self._device) for name, column in columns.items()}
        return CachedView(
            columns,
            self._execution.channels_last,
            computed,
            0.0 if computed else seconds,
            self._device,
            resident,
        )

    def _path(self, group: str, view: int) -> Path:
        return self._folder / f"view{view:04d}-{group}.arrow"

    def _intact(self, group: str, view: int) -> OutputFile | None:
        """The local file of a group; None if it is missing or damaged."""
        try:
            return read_outputs(self._path(group, view), self.key, self._rows)
        except _DAMAGED:
            return None

    def _open(self, group: str, view: int) -> OutputFile | None:
        """The file of a group, local or fetched; None, and removed, if it is damaged."""
        path = self._path(group, view)
        if not path.exists() and (self._shared is None or not self._shared.fetch(path)):
            return None
        try:
            return read_outputs(path, self.key, self._rows)
        except _DAMAGED as error:
            warnings.warn(
                f"cached outputs {path} are damaged ({error}); they are computed again",
                stacklevel=4,
            )
            path.unlink(missing_ok=True)
            if self._shared is not None:
                self._shared.drop(path)
            return None

    def _make_room(self, groups: Sequence[str]) -> bool:
        """Whether the groups of a view fit, if need be after evicting larger ones.

        Any group saves one pass of the teacher, so the smallest save the most for their size.
        """
        sizes = {group: self._row_bytes(group) * self._rows for group in groups}
        room = self.config.max_gb * 1e9 - sum(sizes.values())
        cached = [(path.stat().st_size, path) for path in cached_files(self._root)]
        total = sum(size for size, _ in cached)
        for size, path in sorted(cached, key=lambda entry: -entry[0]):
            if total <= room or size <= max(sizes.values()):
                break
            path.unlink(missing_ok=True)
            total -= size
        return total <= room

    @cached_property
    def _sample(self) -> Taps:
        """The outputs for a blank image, for their shapes."""
        device = self._teacher.mean.device
        image = torch.zeros(1, self._data.in_channels, *self._data.image_size, device=device)
        with torch.no_grad():
            return self._teacher.taps(
                image,
                _CACHED,
                torch.zeros(1, dtype=torch.int64),
                frozenset(self._teacher.backbone.further),
                strong=image,
            )

    def _row_bytes(self, group: str) -> int:
        values = sum(tensor.numel() for tensor in _columns_of(group, self._sample).values())
        return values * _dtype(self.config).itemsize

    def _compute(self, view: int, groups: Sequence[str], wanted: Wanted) -> bool:
        """Creates the missing files of a view; False if another machine had computed them."""
        paths = {group: self._path(group, view) for group in groups}
        scratch = self._folder / f".scratch-{view:04d}"
        try:
            fetched = self._shared and self._shared.wait_or_claim(list(paths.values()))
            # A damaged file is fetched once more where it could not be removed.
            if fetched and all(self._intact(group, view) for group in groups):
                return False
            started = time.perf_counter()
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            scratch.mkdir()
            columns = {
                group: {
                    name: reserved_array(
                        scratch / name, self.config.precision, (self._rows, *tensor.shape[1:])
                    )
                    for name, tensor in self._stored(group, self._sample).items()
                }
                for group in groups
            }
            first = 0
            for taps in self._pass(view, wanted):
                for group in groups:
                    for name, tensor in self._stored(group, taps).items():
                        rows = _stored_as(tensor, _dtype(self.config)).cpu().contiguous().numpy()
                        columns[group][name][first : first + len(rows)] = rows
                first += len(taps.logits)
            seconds = time.perf_counter() - started
            for group, path in paths.items():
                write_outputs(path, columns[group], self.key, seconds)
                if self._shared is not None:
                    self._shared.put(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            if self._shared is not None:
                self._shared.release(list(paths.values()))
        return True

    def _stored(self, group: str, taps: Taps) -> dict[str, Tensor]:
        """A group's tensors, with dimensions in memory order."""
        return {
            name: tensor.permute(0, 2, 3, 1)
            if tensor.ndim == 4 and self._execution.channels_last
            else tensor
            for name, tensor in _columns_of(group, taps).items()
        }

    @torch.no_grad()
    def _pass(self, view: int, wanted: Wanted) -> Iterator[Taps]:
        self._execution.place(self._teacher, self._device)
        split = self._data.train.to(self._device)
        order = torch.arange(self._rows, device=self._device)
        asked = order, view, split.batch_without_gradients()
        strong: Iterator[Tensor | None] = repeat(None)
        if Tap.STRONG_LOGITS in wanted.kinds:
            strong = split.strong().views(*asked)
        for images, second in zip(split.views(*asked), strong, strict=False):
            with self._execution.autocast(self._device):
                labels = split.labels[: len(images)]
                yield self._teacher.taps(images, wanted.kinds, labels, wanted.maps, strong=second)


def _columns_of(group: str, taps: Taps) -> dict[str, Tensor]:
    """The tensors of a group by column name."""
    kind, _, tap = group.partition("-")
    if kind == _OUTPUTS:
        return {"logits": taps.logits, "embedding": taps.embedding}
    if kind in _WHOLE.values():
        (tensor,) = taps.by_kind()[next(tap for tap, name in _WHOLE.items() if name == kind)]
        return {group: tensor}
    maps = taps.maps if kind == KINDS[Tap.MAPS] else taps.preactivations
    return {group: maps[tap]}
