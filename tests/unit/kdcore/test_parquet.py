"""Images in Parquet files: layouts, labels, the order of reading, and mistakes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kdcore import DataConfig
from kdcore.data import parquet
from kdcore.data.augmentation.steps import Mixup, RandomResizedCrop
from kdcore.data.image_data import ImageData, open_data, source_of
from tests.unit.kdcore.photographs import (
    CLASSES,
    encoded,
    photograph,
    rows_of,
    write_folders,
    write_parquet,
)

Rows = list[dict[str, Any]]


def config_of(root: Path | str, **settings: Any) -> DataConfig:
    given = {"name": "parquet", "root": root, "image_size": (16, 16), "heldout_fraction": 0.25}
    return DataConfig.model_validate(given | settings)


def opened(root: Path | str, workspace: Path, **settings: Any) -> ImageData:
    return open_data(config_of(root, **settings), workspace)


def sizes(data: ImageData) -> list[int]:
    return [len(part) for part in (data.train, data.heldout, data.test)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("files"), {"train": 16, "test": 4})


@pytest.fixture(scope="module")
def train(folders: Path) -> Rows:
    return rows_of(folders / "train")


@pytest.fixture(scope="module")
def test(folders: Path) -> Rows:
    return rows_of(folders / "test")


# Layouts


def _hugging_face(root: Path, train: Rows, test: Rows) -> None:
    write_parquet(root / "data/train-0000{}-of-00002.parquet", train, files=2)
    write_parquet(root / "data/test-00000-of-00001.parquet", test)


def _validation_too(root: Path, train: Rows, test: Rows) -> None:
    _hugging_face(root, train, test)
    write_parquet(root / "data/validation-00000-of-00001.parquet", test[:3])


def _validation_instead(root: Path, train: Rows, test: Rows) -> None:
    write_parquet(root / "train.parquet", train)
    write_parquet(root / "validation.parquet", test)


def _folders(root: Path, train: Rows, test: Rows) -> None:
    write_parquet(root / "train/{}.parquet", train, files=3)
    write_parquet(root / "val/{}.parquet", test, files=2)
    (root / "train" / "_SUCCESS.parquet").write_bytes(b"")


def _column(root: Path, train: Rows, test: Rows) -> None:
    rows = [row | {"split": "train"} for row in train]
    rows[5:5] = [row | {"split": "test"} for row in test]
    rows[50:50] = [row | {"split": "val"} for row in test]
    write_parquet(root / "{}.parquet", rows, files=2)


@pytest.mark.parametrize(
    "layout", [_hugging_face, _validation_too, _validation_instead, _folders, _column]
)
def test_every_layout_gives_the_same_images_as_the_files(
    layout: Callable[[Path, Rows, Rows], None],
    train: Rows,
    test: Rows,
    folders: Path,
    tmp_path: Path,
) -> None:
    layout(tmp_path / "root", train, test)
    data = opened(tmp_path / "root", tmp_path)
    files = open_data(
        DataConfig(name="image_folder", root=folders, image_size=(16, 16), heldout_fraction=0.25),
        tmp_path,
    )
    assert data.class_names == files.class_names == CLASSES
    assert (data.mean, data.std) == (files.mean, files.std)
    for ours, theirs in (
        (data.train, files.train),
        (data.heldout, files.heldout),
        (data.test, files.test),
    ):
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.image_ids, theirs.image_ids)
        order = torch.randperm(len(ours))
        for one, two in zip(ours.views(order, 2, 10), theirs.views(order, 2, 10), strict=True):
            assert torch.equal(one, two)
        for one, two in zip(ours.batches(7), theirs.batches(7), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["all.parquet", "train.parquet"])
def test_one_file_is_a_root_and_a_share_of_it_set_aside(
    name: str, train: Rows, tmp_path: Path
) -> None:
    write_parquet(tmp_path / name, train)
    for root in (tmp_path / name, (tmp_path / name).as_uri()):
        data = opened(root, tmp_path, test_fraction=0.25)
        assert sizes(data) == [27, 9, 12]
        assert data.test.labels.bincount().tolist() == [4, 4, 4]


def test_a_uri_stays_one(tmp_path: Path) -> None:
    for uri in ("s3://bucket/x?region=eu-west-1", "gs://bucket/x", "file:///data/x"):
        config = config_of(uri)
        assert config.root == uri
        assert DataConfig.model_validate_json(config.model_dump_json()) == config
    relative = config_of("below")
    assert relative.root == Path.cwd() / "below"
    assert DataConfig.model_validate_json(relative.model_dump_json()) == relative


def test_rows_are_listed_once(
    train: Rows, test: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    _hugging_face(root, train, test)
    first = opened(root, tmp_path)
    with monkeypatch.context() as context:
        context.setattr(parquet, "_list", None)
        again = opened(root, tmp_path)
    assert (again.digest, again.mean) == (first.digest, first.mean)
    write_parquet(root / "data/train-more.parquet", train[:3])
    more = opened(root, tmp_path)
    assert sum(sizes(more)) == sum(sizes(first)) + 3
    assert more.digest != first.digest


def test_opening_reads_no_image(train: Rows, test: Rows, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_parquet(path, train)
    content = path.read_bytes()
    for row in train:
        content = content.replace(row["image"]["bytes"], bytes(len(row["image"]["bytes"])))
    path.write_bytes(content)
    images = source_of("parquet").open(config_of(path), tmp_path)
    assert images.labels.bincount().tolist() == [16, 16, 16]
    with pytest.raises(ValueError, match=r"damaged image row 0 of row group 0 of .*train.parquet"):
        list(images.split(torch.arange(48)).batches(48))


# Labels and columns


def _with_labels(rows: Rows, labels: list[Any], kind: pa.DataType) -> pa.Table:
    images = pa.array([row["image"] for row in rows])
    return pa.table({"image": images, "label": pa.array(labels, kind)})


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        (pa.string(), ["b", "a", "c"], ("a", "b", "c")),
        (pa.large_string(), ["b", "a", "c"], ("a", "b", "c")),
        (pa.dictionary(pa.int8(), pa.string()), ["b", "a", "c"], ("a", "b", "c")),
        (pa.int64(), [10, 9, -1], ("-1", "9", "10")),
        (pa.uint8(), [1, 0, 2], ("0", "1", "2")),
    ],
)
def test_labels_are_sorted_values(
    kind: pa.DataType, values: list[Any], names: tuple[str, ...], train: Rows, tmp_path: Path
) -> None:
    given = [values[number % 3] for number in range(len(train))]
    pq.write_table(_with_labels(train, given, kind), tmp_path / "all.parquet")
    images = source_of("parquet").open(config_of(tmp_path / "all.parquet"), tmp_path)
    assert images.class_names == names
    assert [names[label] for label in images.labels] == [str(value) for value in given]


def test_hugging_faces_names_of_classes_are_taken(train: Rows, tmp_path: Path) -> None:
    table = _with_labels(train, [number % 2 for number in range(len(train))], pa.int64())
    feature = {"names": ["a cat", "a dog", "neither"], "_type": "ClassLabel"}
    described = {"info": {"features": {"label": feature}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    pq.write_table(table, tmp_path / "all.parquet")
    data = opened(tmp_path / "all.parquet", tmp_path)
    assert data.class_names == ("a cat", "a dog", "neither")
    assert set(data.train.labels.tolist()) == {0, 1}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_images_may_be_bytes_in_a_column_of_any_name(
    kind: pa.DataType, train: Rows, folders: Path, tmp_path: Path
) -> None:
    images = pa.array([row["image"]["bytes"] for row in train], kind)
    table = pa.table({"jpg": images, "cls": [row["label"] for row in train]})
    pq.write_table(table, tmp_path / "all.parquet")
    data = opened(tmp_path / "all.parquet", tmp_path, image_column="jpg", label_column="cls")
    (pixels,) = data.train.batches(100)
    assert torch.equal(pixels.float().mean((2, 3)).argmax(1), data.train.labels)


def test_columns_that_are_missing_are_named_with_the_nearest(train: Rows, tmp_path: Path) -> None:
    write_parquet(tmp_path / "all.parquet", train)
    for setting, close in (("image_column", "image"), ("label_column", "label")):
        message = f"{setting} is '{close}s', but there is no such column; did you mean '{close}'?"
        with pytest.raises(ValueError, match=message) as caught:
            opened(tmp_path / "all.parquet", tmp_path, **{setting: f"{close}s"})
        assert "The columns: image, label" in str(caught.value)


# Mistakes


def _labels_of_floats(root: Path, train: Rows) -> None:
    table = _with_labels(train, [float(number % 3) for number in range(48)], pa.float32())
    pq.write_table(table, root / "train.parquet")


def _no_labels(root: Path, train: Rows) -> None:
    table = _with_labels(train, [None, *["a", "b"] * 23, "b"], pa.string())
    pq.write_table(table, root / "train.parquet")


def _one_label(root: Path, train: Rows) -> None:
    write_parquet(root / "train.parquet", train[:16])


def _unlabelled_test(root: Path, train: Rows) -> None:
    labels = [CLASSES.index(row["label"]) for row in train]
    pq.write_table(_with_labels(train, labels, pa.int64()), root / "train.parquet")
    pq.write_table(_with_labels(train[:3], [-1] * 3, pa.int64()), root / "test.parquet")


def _images_of_text(root: Path, train: Rows) -> None:
    write_parquet(root / "train.parquet", [row | {"image": "a.jpg"} for row in train])


def _no_parquet(root: Path, train: Rows) -> None:
    (root / "train.parquet").write_bytes(b"no Parquet" * 100)


def _no_files(root: Path, train: Rows) -> None:
    (root / "train.csv").write_text("image,label")


def _no_train(root: Path, train: Rows) -> None:
    write_parquet(root / "test.parquet", train)


def _unknown_part(root: Path, train: Rows) -> None:
    write_parquet(root / "all.parquet", [row | {"split": "dev"} for row in train])


def _a_file_of_no_part(root: Path, train: Rows) -> None:
    write_parquet(root / "train.parquet", train)
    write_parquet(root / "more.parquet", train)


def _other_columns(root: Path, train: Rows) -> None:
    write_parquet(root / "train-0.parquet", train)
    write_parquet(root / "train-1.parquet", [{"image": row["image"]} for row in train])


def _damaged_image(root: Path, train: Rows) -> None:
    rows = [*train[:9], train[9] | {"image": {"bytes": b"no image", "path": ""}}, *train[10:]]
    write_parquet(root / "train.parquet", rows)


def _no_image(root: Path, train: Rows) -> None:
    rows = [*train[:9], train[9] | {"image": {"bytes": None, "path": "a.jpg"}}, *train[10:]]
    write_parquet(root / "train.parquet", rows)


def show_all(root: Path, workspace: Path) -> None:
    data = opened(root, workspace, heldout_fraction=0.1)
    for part in (data.train, data.heldout, data.test):
        list(part.batches(48))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (_labels_of_floats, "label_column holds float, but must hold integers or strings"),
        (_no_labels, "1 rows have a label that the training part does not have, the first None"),
        (_one_label, r"the training part has only the label \['cat'\], but needs two or more"),
        (_unlabelled_test, "3 rows .* the first -1; if the test split has no labels, remove"),
        (_images_of_text, "image_column is 'image', which holds string, but must hold encoded"),
        (_no_parquet, "root is '.*', but cannot be read: .*[Pp]arquet"),
        (_no_files, "root is '.*', but that has no files that end in .parquet"),
        (_no_train, "names of files say 'test', but must say 'train'"),
        (_unknown_part, "column 'split' say 'dev', but must say 'train'"),
        (
            _a_file_of_no_part,
            "'more.parquet' does not say which part it is, but other files do",
        ),
        (
            _other_columns,
            "48 rows have a label that the training part does not have, the first None",
        ),
        (_damaged_image, "damaged image row 2 of row group 1 of .*/train.parquet: it is none of"),
        (_no_image, "damaged image row 2 of row group 1 of .*/train.parquet: it is empty"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_mistakes_are_named_with_the_way_out(
    mistake: Callable[[Path, Rows], None], message: str, train: Rows, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    mistake(root, train)
    with pytest.raises(ValueError, match=message):
        show_all(root, tmp_path)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (None, "root is missing; set it to a folder of Parquet files, or a URI like s3://bucket"),
        ("/nowhere", "root is '/nowhere', but cannot be read: .*nowhere"),
        ("file:///nowhere", "root is 'file:///nowhere', but cannot be read"),
        ("ftp://host/x", "root is 'ftp://host/x', but cannot be read: .*ftp"),
    ],
)
def test_roots_that_cannot_be_read_are_refused(
    root: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        open_data(DataConfig(name="parquet", root=root), tmp_path)


# Order


@pytest.fixture
def windowed(
    train: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ImageData, list[int]]:
    """480 images in row groups of 6, of which a window holds 8; and the row groups as read."""
    rows = [row for row in train for _ in range(10)]
    write_parquet(tmp_path / "train-{}.parquet", rows, files=4, row_group_size=6)
    a_group = sum(len(row["image"]["bytes"]) for row in rows) / 80
    monkeypatch.setattr(parquet, "_WINDOW_BYTES", int(8 * a_group))
    monkeypatch.setattr(parquet, "_HELD_BYTES", int(16 * a_group))
    monkeypatch.setattr(parquet, "_AHEAD", 12)
    data = opened(tmp_path, tmp_path)
    read: list[int] = []
    loaded_ahead = parquet._loaded_ahead

    def counted(keys: list[int], sizes: dict[int, float], load: Callable[[int], Any]) -> Any:
        def load_and_count(key: int) -> Any:
            read.append(key)
            return load(key)

        return loaded_ahead(keys, sizes, load_and_count)

    monkeypatch.setattr(parquet, "_loaded_ahead", counted)
    return data, read


def test_windowed_shuffling_is_another_permutation_in_every_epoch(
    windowed: tuple[ImageData, list[int]],
) -> None:
    data, _ = windowed
    torch.manual_seed(0)
    first, second = data.train.shuffled(), data.train.shuffled()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(len(data.train)))
    assert (first == second).float().mean() < 0.1
    torch.manual_seed(0)
    assert torch.equal(data.train.shuffled(), first)


def test_an_epoch_reads_each_row_group_once(windowed: tuple[ImageData, list[int]]) -> None:
    data, read = windowed
    torch.manual_seed(0)
    for order in (data.train.shuffled(), torch.arange(len(data.train))):
        read.clear()
        shown = sum(len(batch) for batch in data.train.views(order, 0, 16))
        assert shown == len(data.train)
        assert sorted(read) == sorted(set(data.train.store.group[data.train.image_ids].tolist()))


def test_partners_in_mixing_are_of_the_row_group_that_is_read_anyway(
    windowed: tuple[ImageData, list[int]],
) -> None:
    data, read = windowed
    split = replace(data.train, steps=(RandomResizedCrop(), Mixup()))
    groups = split.store.group[split.image_ids]
    mixing = split.mixing(torch.arange(len(split)), 0)
    assert torch.equal(groups[mixing.partners], groups)
    assert len(set(mixing.partners.tolist())) > len(split) / 2
    torch.manual_seed(0)
    read.clear()
    assert sum(map(len, split.views(split.shuffled(), 0, 16))) == len(split)
    assert sorted(read) == sorted(set(groups.tolist()))


def test_a_window_mixes_many_row_groups(windowed: tuple[ImageData, list[int]]) -> None:
    data, _ = windowed
    torch.manual_seed(0)
    order = data.train.shuffled()
    groups = data.train.store.group[data.train.image_ids[order]]
    # A window holds 8 row groups' worth. The first and the last batch come from half of one.
    mixed = [len(set(part.tolist())) for part in torch.split(groups, 16) if len(part) == 16]
    assert min(mixed) >= 4
    assert sum(mixed) / len(mixed) > 7
    spans = [(groups == group).nonzero().flatten() for group in set(groups.tolist())]
    per_group = len(groups) / len(spans)
    assert max(int(span.max() - span.min()) for span in spans) < 13 * per_group


def test_any_other_order_shows_the_same_images(windowed: tuple[ImageData, list[int]]) -> None:
    data, read = windowed
    torch.manual_seed(0)
    whole = torch.cat(list(data.train.views(torch.arange(len(data.train)), 0, 100)))
    read.clear()
    order = torch.randint(len(data.train), (200,))  # with repetitions
    assert torch.equal(torch.cat(list(data.train.views(order, 0, 30))), whole[order])
    assert len(read) > len(set(read))


def test_no_more_is_held_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_HELD_BYTES", 100)
    monkeypatch.setattr(parquet, "_AHEAD", 1000)
    alive = most = 0
    loads: list[int] = []

    class Loaded:
        def __init__(self, key: int) -> None:
            nonlocal alive, most
            self.key = key
            loads.append(key)
            alive += sizes[key]
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= sizes[self.key]

    sizes = {key: 10 + key for key in range(30)} | {30: 250}
    keys = torch.randint(31, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    sequential = [key for key in range(30) for _ in range(20)]
    for wanted in (keys, sequential):
        most = 0
        loads.clear()
        for key, loaded in zip(wanted, parquet._loaded_ahead(wanted, sizes, Loaded), strict=True):
            assert loaded.key == key
        del loaded
        assert alive == 0
        # What is handed out is no longer counted.
        assert most <= (100 + 250 if 30 in wanted else 100 + 39)
    assert loads == list(range(30))


def test_what_fits_into_one_window_is_shuffled_as_a_whole(
    train: Rows, test: Rows, tmp_path: Path
) -> None:
    _hugging_face(tmp_path / "root", train, test)
    data = opened(tmp_path / "root", tmp_path)
    torch.manual_seed(3)
    order = data.train.shuffled()
    torch.manual_seed(3)
    assert torch.equal(order, torch.randperm(len(data.train)))


def test_a_png_among_jpegs_is_shown(train: Rows, tmp_path: Path) -> None:
    content = encoded(photograph(0), "PNG")
    rows = [train[0] | {"image": {"bytes": content, "path": "a.jpg"}}, *train[1:]]
    write_parquet(tmp_path / "all.parquet", rows)
    assert sum(len(batch) for batch in opened(tmp_path, tmp_path).train.batches(8)) == 32
