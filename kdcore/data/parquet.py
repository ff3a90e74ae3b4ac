"""Encoded images in Parquet files, in a folder or a bucket, as Hugging Face stores data sets.

The root is a file, a folder, or a URI that pyarrow can read, like `s3://bucket/folder`. One column
has encoded images (bytes, or a struct with a field `bytes`), another the labels (integers or
strings). A column `split`, or else the names of folders or files (`train/0.parquet`,
`data/train-00000-of-00004.parquet`), say which rows are for training (`train`) and which are the
test split: `test`, or without it `validation` or `val`, which are otherwise ignored. Without a test
split, a share of the images is set aside for it.

Classes are the sorted labels of the training part, or those named in Hugging Face's schema. Only
the label columns, and 256 MiB of images at most, are read at first; what they tell is cached until
path, size or time of a file changes. The digest is of names and sizes of the files, of labels and
splits, and of the background where one of those images is transparent.

A row cannot be read without its row group, so images are shuffled in a moving window; see `Rows`.
Files whose rows are sorted by class should have row groups of a few megabytes. Small images of one
size can be decoded once, into an image table: `augmentation: pad_crop`.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from kdcore.data.arrow_files import key_of, metadata_of, open_or_make, tensor_of
from kdcore.data.centre_crop import USUAL_CROP
from kdcore.data.decoded_images import kept_decoded
from kdcore.data.decoding import EncodedImage
from kdcore.data.small_images import decoded_once
from kdcore.data.source import Collection, Source
from kdcore.data.streamed_split import TESTS, TRAIN, ImageStore, StreamedCollection
from kdcore.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from pyarrow import dataset, fs

    from kdcore.data.config import DataConfig

T = TypeVar("T")

_SCHEMA_VERSION = 1
_SPLIT_COLUMN = "split"
_PART_OF_A_NAME = re.compile(rf"({'|'.join((TRAIN, *TESTS))})(?![A-Za-z])")

# About 2,500 photographs of ImageNet, or a whole data set of thumbnails.
_WINDOW_BYTES = 256 * 2**20
# One and a half windows are in use at a time, plus row groups that begin or end there.
_HELD_BYTES = 3 * _WINDOW_BYTES
# Images to read ahead, for a few seconds: buckets have latencies of tenths of a second.
_AHEAD = 1024
_READERS = 4


@dataclass(frozen=True)
class Rows(ImageStore):
    """Rows of Parquet files.

    Row groups are shuffled, and each row then moves to a random place in a window that begins at
    its row group. So an epoch reads each row group once, and holds little more than a window in
    memory. Data that fits into one window is shuffled completely.

    Args:
        filesystem: of the files.
        base: their common folder.
        files: their paths relative to it.
        image: the column of encoded images, as an expression.
        row_groups: for each row group, the index of its file, its index in the file, and about how
            many bytes a row has.
        group: [N], int32, the row group of each image.
        row: [N], int32, its row in the group.
    """

    filesystem: "fs.FileSystem"
    base: str
    files: Sequence[str]
    image: pc.Expression
    row_groups: Sequence[tuple[int, int, float]]
    group: Tensor
    row: Tensor

    def shuffled(self, image_ids: Tensor) -> Tensor:
        of_all = torch.tensor([size for _, _, size in self.row_groups], dtype=torch.float64)
        groups, group = torch.unique(self.group[image_ids], return_inverse=True)
        size = group.bincount(minlength=len(groups)) * of_all[groups]
        total = float(size.sum())
        if total <= _WINDOW_BYTES:
            return super().shuffled(image_ids)
        order = torch.randperm(len(groups))
        begin = torch.empty_like(size)
        begin[order] = size[order].cumsum(0) - size[order]
        # The first and the last half window start together, so that their batches mix row groups
        # too.
        begin = (begin - _WINDOW_BYTES / 2).clamp(0, total - _WINDOW_BYTES)
        place = torch.rand(len(group), dtype=torch.float64) * _WINDOW_BYTES
        return (begin[group] + place).argsort(stable=True)

    def partners(self, image_ids: Tensor, positions: Tensor, drawn: Tensor) -> Tensor:
        """Of data that does not fit into a window, images of the same row group."""
        sizes = torch.tensor([size for _, _, size in self.row_groups], dtype=torch.float64)
        group = self.group[image_ids]
        if float(sizes[group].sum()) <= _WINDOW_BYTES:
            return super().partners(image_ids, positions, drawn)
        counts = group.bincount(minlength=len(sizes))
        first, own = counts.cumsum(0) - counts, group[positions]
        return group.argsort(stable=True)[first[own] + drawn % counts[own]]

    def perhaps_transparent(self) -> Tensor:
        """All images, if they fit into one window; else those of row groups at even distances."""
        sizes = torch.tensor([size for _, _, size in self.row_groups], dtype=torch.float64)
        total = float(sizes[self.group].sum())
        distance = max(1, math.ceil(total / _WINDOW_BYTES))
        return (self.group % distance == 0).nonzero().flatten()

    def read(self, image_ids: Tensor) -> Iterator[EncodedImage]:
        groups, rows = self.group[image_ids], self.row[image_ids]
        by_group = groups.argsort(stable=True)
        present, counts = torch.unique_consecutive(groups[by_group], return_counts=True)
        parts = torch.split(rows[by_group], counts.tolist())
        wanted = dict(zip(present.tolist(), map(torch.unique, parts), strict=True))
        fragments: dict[int, dataset.Fragment] = {}

        def load(group: int) -> dict[int, bytes | None]:
            file, number, _ = self.row_groups[group]
            if file not in fragments:
                fragments[file] = self._fragment(file)
            table = (
                fragments[file]
                .subset(row_group_ids=[number])
                .to_table(columns={"image": self.image}, use_threads=False)
            )
            images = table["image"]
            return {row: images[row].as_py() for row in wanted[group].tolist()}

        sizes = {group: len(wanted[group]) * self.row_groups[group][2] for group in wanted}
        loaded = _loaded_ahead(groups.tolist(), sizes, load)
        for group, row, content in zip(groups.tolist(), rows.tolist(), loaded, strict=True):
            file, number, _ = self.row_groups[group]
            place = f"row {row} of row group {number} of {self.base}/{self.files[file]}"
            yield EncodedImage(place, content[row] or b"")

    def _fragment(self, file: int) -> "dataset.Fragment":
        from pyarrow import dataset

        path = f"{self.base}/{self.files[file]}"
        return dataset.ParquetFileFormat().make_fragment(path, self.filesystem)


def _loaded_ahead(
    keys: Sequence[int], sizes: Mapping[int, float], load: Callable[[int], T]
) -> Iterator[T]:
    """Yields `load(key)` for each key, loading ahead and holding results until their last use.

    If they exceed `_HELD_BYTES`, the least recently used result is dropped and loaded again later.

    Args:
        keys: in the order of use, with repetitions.
        sizes: in bytes, by key.
        load: called in threads.
    """
    held: dict[int, Future[T]] = {}  # least recently requested first
    asked: dict[int, int] = {}  # index in `keys` of the last request
    times = Counter(keys)
    ahead = 0
    room = float(_HELD_BYTES)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="reading") as pool:
        try:
            for place, key in enumerate(keys):
                while ahead < min(place + _AHEAD, len(keys)):
                    coming = keys[ahead]
                    if coming in held:
                        held[coming] = held.pop(coming)
                    else:
                        while sizes[coming] > room and held and asked[next(iter(held))] < place:
                            oldest = next(iter(held))
                            del held[oldest]
                            room += sizes[oldest]
                        if sizes[coming] > room and ahead > place:
                            break
                        held[coming] = pool.submit(load, coming)
                        room -= sizes[coming]
                    asked[coming] = ahead
                    ahead += 1
                times[key] -= 1
                result = held[key] if times[key] else held.pop(key)
                room += 0 if times[key] else sizes[key]
                yield result.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Source):
    """Opens Parquet files of encoded images."""

    def open(self, config: "DataConfig", workspace: Path) -> Collection:
        root = config.root
        image_column, label_column = config.image_column, config.label_column
        assert image_column is not None
        assert label_column is not None
        if root is None:
            raise DataError(
                "root is missing; set it to a folder of Parquet files, or a URI like "
                "s3://bucket/folder"
            )
        try:
            filesystem, base, files = _find(root)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(root, error) from None
        identity = [(name, info.size, info.mtime_ns) for name, info in files.items()]
        key = key_of([_SCHEMA_VERSION, str(root), image_column, label_column, identity])
        cache_path = workspace / "data" / f"{config.name}-{key}"

        def make() -> pa.RecordBatch:
            sizes = {name: info.size for name, info in files.items()}
            try:
                return _list(filesystem, base, sizes, image_column, label_column)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(root, error) from None

        def collection(batch: pa.RecordBatch) -> StreamedCollection:
            metadata = metadata_of(batch)
            return StreamedCollection(
                labels=tensor_of(batch["label"].to_numpy()),
                is_test=tensor_of(batch["is_test"].to_numpy(zero_copy_only=False)),
                class_names=tuple(json.loads(metadata["class_names"])),
                in_channels=3,
                image_size=config.image_size or (0, 0),  # of a table not known yet
                digest=metadata["digest"],
                store=Rows(
                    filesystem,
                    base,
                    list(files),
                    pc.field(*json.loads(metadata["image"])),
                    json.loads(metadata["row_groups"]),
                    tensor_of(batch["group"].to_numpy()),
                    tensor_of(batch["row"].to_numpy()),
                ),
                view_seed=config.view_seed,
                steps=config.steps(),
                crop=config.centre_crop or USUAL_CROP,
                cache_path=cache_path,
            )

        path = cache_path.with_name(f"{cache_path.name}.arrow")
        images = open_or_make(path, "list of rows", make, collection)
        images = images.with_test_split(config.test_fraction).over(config.background)
        if config.decodes_once:
            return decoded_once(images)
        return kept_decoded(images, config.decoded_gb)


def _unreadable(root: Path | str, error: Exception) -> DataError:
    reason = (str(error) or repr(error)).splitlines()[0]
    return DataError(f"root is {str(root)!r}, but cannot be read: {reason}")


def _find(root: Path | str) -> tuple["fs.FileSystem", str, dict[str, "fs.FileInfo"]]:
    """The Parquet files of a root: their file system, their folder, and each by relative path."""
    from pyarrow import fs

    if isinstance(root, Path):
        filesystem, base = fs.LocalFileSystem(), str(root)
    else:
        filesystem, base = fs.FileSystem.from_uri(root)
    base = base.rstrip("/")
    info = filesystem.get_file_info(base)
    if info.type == fs.FileType.File:
        return filesystem, base.rpartition("/")[0], {info.base_name: info}
    files = {
        found.path[len(base) + 1 :]: found
        for found in filesystem.get_file_info(fs.FileSelector(base, recursive=True))
        if found.type == fs.FileType.File and found.path.endswith(".parquet")
    }
    # Files and folders of unfinished writes begin with a dot or an underscore.
    names = sorted(name for name in files if not re.search(r"(^|/)[._]", name))
    if not names:
        raise DataError(f"root is {str(root)!r}, but that has no files that end in .parquet")
    return filesystem, base, {name: files[name] for name in names}


def _list(
    filesystem: "fs.FileSystem",
    base: str,
    sizes: Mapping[str, int],
    image_column: str,
    label_column: str,
) -> pa.RecordBatch:
    """The rows for training, then those for the test, each in the order of files and rows."""
    from pyarrow import dataset

    paths = [f"{base}/{name}" for name in sizes]
    rows = dataset.dataset(paths, filesystem=filesystem, format="parquet")
    image = _image_field(rows.schema, image_column)
    _check_column(rows.schema, "label_column", label_column)
    fragments = list(rows.get_fragments())
    with ThreadPoolExecutor(_READERS) as pool:  # each reads the footer of a file
        list(pool.map(lambda fragment: fragment.ensure_complete_metadata(), fragments))
    row_groups = [
        (file, group.id, group.num_rows, group.total_byte_size)
        for file, fragment in enumerate(fragments)
        for group in fragment.row_groups
    ]
    lengths = np.array([length for _, _, length, _ in row_groups], dtype=np.int64)
    group = np.repeat(np.arange(len(lengths)), lengths)
    row = np.arange(len(group)) - np.repeat(lengths.cumsum() - lengths, lengths)

    if _SPLIT_COLUMN in rows.schema.names:
        table = rows.to_table(columns=[label_column, _SPLIT_COLUMN])
        part = np.asarray(table[_SPLIT_COLUMN].cast(pa.string())).astype(str)
        what = f"column {_SPLIT_COLUMN!r}"
    else:
        table = rows.to_table(columns=[label_column])
        parts = _parts_of(list(sizes))
        part = np.array(parts)[[file for file, *_ in row_groups]].repeat(lengths)
        what = "names of files"
    train, test = _train_and_test(part, what)
    chosen = np.concatenate([train, test])
    names = _names_of_classes(rows.schema, label_column)
    labels, class_names = _labels(table[label_column].take(pa.array(chosen)), len(train), names)
    is_test = np.arange(len(chosen)) >= len(train)
    digest = hashlib.sha256(json.dumps([class_names, list(sizes.items()), image]).encode())
    for array in (chosen, labels, is_test):
        digest.update(array.tobytes())
    columns = {
        "label": labels,
        "is_test": is_test,
        "group": group[chosen].astype(np.int32),
        "row": row[chosen].astype(np.int32),
    }
    return pa.record_batch(columns).replace_schema_metadata(
        {
            "digest": digest.hexdigest()[:16],
            "class_names": json.dumps(class_names),
            "image": json.dumps(image),
            "row_groups": json.dumps(
                [(file, number, size / max(1, n)) for file, number, n, size in row_groups]
            ),
        }
    )


def _check_column(schema: pa.Schema, setting: str, name: str) -> None:
    if name not in schema.names:
        raise ConfigError(
            f"{setting} is {name!r}, but there is no such column"
            f"{did_you_mean(name, schema.names)} The columns: {', '.join(schema.names)}"
        )


def _image_field(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The path of the encoded images: a column, or a field of one."""
    _check_column(schema, "image_column", column)
    kind = schema.field(column).type
    if _is_bytes(kind):
        return (column,)
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if "bytes" in fields and _is_bytes(fields["bytes"]):
        return column, "bytes"
    raise ConfigError(
        f"image_column is {column!r}, which holds {kind}, but must hold encoded images: bytes, or "
        f"a struct with a field 'bytes'"
    )


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _parts_of(names: Sequence[str]) -> list[str]:
    """The part of each file, from its name or that of a folder above it."""
    parts = []
    for name in names:
        found = (_PART_OF_A_NAME.match(piece) for piece in reversed(name.split("/")))
        parts.append(next((match[1] for match in found if match), None))
    known = [part for part in parts if part is not None]
    if known and len(known) < len(names):
        raise DataError(
            f"{names[parts.index(None)]!r} does not say which part it is, but other files do; "
            f"begin its name, or its folder's, with {TRAIN}, {' or '.join(TESTS)}"
        )
    return known or [TRAIN] * len(names)


def _train_and_test(part: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows for training and for the test, of which there may be none."""
    present = set(np.unique(part).tolist())
    if not present <= {TRAIN, *TESTS} or TRAIN not in present:
        raise DataError(
            f"{what} say {', '.join(map(repr, sorted(present)))}, but must say {TRAIN!r}, and of "
            f"test images {' or '.join(map(repr, TESTS))}"
        )
    test = next((name for name in TESTS if name in present), None)
    return np.flatnonzero(part == TRAIN), np.flatnonzero(part == test)


def _names_of_classes(schema: pa.Schema, label_column: str) -> list[str] | None:
    """The class names in Hugging Face's schema metadata, if any."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(label_column, {})
    names: list[str] | None = feature.get("names")
    return names


def _labels(
    values: pa.ChunkedArray, train: int, names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Labels 0 to K-1, [N], int64, and names of the K classes in the first `train` rows."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        values = values.cast(kind)
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not texts and not pa.types.is_integer(kind):
        raise ConfigError(f"label_column holds {kind}, but must hold integers or strings")
    known = sorted(pc.unique(values[:train].drop_null()).to_pylist())
    if names is not None and not texts:
        known = list(range(len(names)))
    labels = pc.index_in(values, value_set=pa.array(known, kind))
    if labels.null_count:
        first = pc.index(pc.is_null(labels), True).as_py()
        value = values[first].as_py()
        raise DataError(
            f"{labels.null_count} rows have a label that the training part does not have, the "
            f"first {value!r}; if the test split has no labels, remove its files"
        )
    if len(known) < 2:
        raise DataError(f"the training part has only the label {known}, but needs two or more")
    return labels.to_numpy().astype(np.int64), list(names or map(str, known))


SOURCE = ParquetSource()
