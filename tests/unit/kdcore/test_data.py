"""Data sets: their splits, the image table, and files that are damaged or missing."""

import gzip
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import ipc
from pydantic import ValidationError

from kdcore import DataConfig
from kdcore.data.idx import read_idx
from kdcore.data.image_data import ImageData, open_data, source_of
from kdcore.data.image_table import TableSource
from kdcore.data.registry import DATA_SETS
from tests.debian import fashion_mnist
from tests.unit.kdcore.published import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    idx,
    served,
)

# Digits


@pytest.fixture(scope="module")
def all_digits(workspace: Path) -> ImageData:
    return open_data(DataConfig(name="digits", heldout_fraction=0.2), workspace)


def table_of(workspace: Path) -> Path:
    (path,) = (workspace / "data").glob("*.arrow")
    return path


def test_digits_have_three_parts_that_share_no_image(all_digits: ImageData) -> None:
    parts = (all_digits.train, all_digits.heldout, all_digits.test)
    assert [len(part) for part in parts] == [1150, 288, 359]
    ids = torch.cat([part.image_ids for part in parts])
    assert sorted(ids.tolist()) == list(range(1797))
    for part in parts:
        assert part.images.shape == (len(part), 1, 8, 8)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == part.image_ids.dtype == torch.int64
        assert set(part.labels.tolist()) == set(range(10))


def test_digits_are_scikit_learns_on_the_scale_of_bytes(all_digits: ImageData) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for part in (all_digits.train, all_digits.heldout, all_digits.test):
        original = torch.from_numpy(bunch.images)[part.image_ids]
        assert torch.equal((part.images[:, 0].double() * 16 / 255).round(), original)
        assert torch.equal(torch.from_numpy(bunch.target)[part.image_ids], part.labels)
        assert (part.images.amin(), part.images.amax()) == (0, 255)


@pytest.mark.parametrize("split_seed", range(4))
def test_held_out_digits_hold_every_class_in_its_share(
    split_seed: int, workspace: Path, all_digits: ImageData
) -> None:
    data = open_data(
        DataConfig(name="digits", heldout_fraction=0.2, split_seed=split_seed), workspace
    )
    training_part = (data.train.labels.bincount() + data.heldout.labels.bincount()).double()
    share = training_part * len(data.heldout) / training_part.sum()
    assert (data.heldout.labels.bincount() - share).abs().max() <= 1
    # The test part has no seed: scores of different searches can be compared.
    assert torch.equal(data.test.image_ids, all_digits.test.image_ids)
    same = torch.equal(data.heldout.image_ids, all_digits.heldout.image_ids)
    assert same == (split_seed == 0)


def test_with_nothing_held_out_all_images_train_and_the_test_split_is_reported(
    all_digits: ImageData, workspace: Path
) -> None:
    whole = open_data(DataConfig(name="digits", heldout_fraction=0), workspace)
    parts = torch.cat([all_digits.train.image_ids, all_digits.heldout.image_ids])
    assert torch.equal(whole.train.image_ids, parts.sort().values)
    assert torch.equal(whole.heldout.image_ids, all_digits.test.image_ids)
    assert torch.equal(whole.test.image_ids, all_digits.test.image_ids)
    config = DataConfig(name="digits", heldout_fraction=0, train_images=100)
    few = open_data(config, workspace)
    assert len(few.train) == 100
    assert set(few.train.image_ids.tolist()) <= set(whole.train.image_ids.tolist())


def test_fewer_training_images_are_a_stratified_part_of_all(
    workspace: Path, all_digits: ImageData
) -> None:
    config = all_digits.config.model_copy(update={"train_images": 200})
    data = open_data(config, workspace)
    assert len(data.train) == 200
    assert set(data.train.image_ids.tolist()) < set(all_digits.train.image_ids.tolist())
    assert torch.equal(data.heldout.image_ids, all_digits.heldout.image_ids)
    share = all_digits.train.labels.bincount() * 200 / 1150
    assert (data.train.labels.bincount() - share).abs().max() < 2


def test_mean_and_deviation_are_those_of_the_training_pixels(all_digits: ImageData) -> None:
    pixels = all_digits.train.images.double() / 255
    assert all_digits.mean == pytest.approx((pixels.mean().item(),))
    assert all_digits.std == pytest.approx((pixels.std().item(),))


def test_a_data_set_tells_its_shape(all_digits: ImageData) -> None:
    assert all_digits.num_classes == 10
    assert all_digits.class_names == tuple("0123456789")
    assert all_digits.in_channels == 1
    assert all_digits.image_size == (8, 8)


def test_the_digest_of_digits_is_the_same_everywhere(all_digits: ImageData, tmp_path: Path) -> None:
    assert open_data(all_digits.config, tmp_path).digest == all_digits.digest == "ac4ba29adb3ba43d"


def test_the_table_is_made_once(tmp_path: Path, digits_config: DataConfig) -> None:
    first = open_data(digits_config, tmp_path)
    made = table_of(tmp_path).stat()
    again = open_data(digits_config.model_copy(update={"split_seed": 1}), tmp_path)
    kept = table_of(tmp_path).stat()
    assert (kept.st_mtime_ns, kept.st_ino) == (made.st_mtime_ns, made.st_ino)
    assert again.digest == first.digest
    assert not list((tmp_path / "data").glob("*.partial"))


def _foreign_table(path: Path) -> None:
    batch = pa.record_batch({"number": pa.array([1, 2, 3])})
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"no table " * 1000),
    "first half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "second half": lambda path: path.write_bytes(path.read_bytes()[path.stat().st_size // 2 :]),
    "another table": _foreign_table,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_made_again_with_a_warning(
    damage: str, tmp_path: Path, digits_config: DataConfig
) -> None:
    first = open_data(digits_config, tmp_path)
    path = table_of(tmp_path)
    expected = first.train.images.clone()
    del first  # its tensors are views of the file
    path_of_damage = path.with_suffix(".damaged")
    path_of_damage.write_bytes(path.read_bytes())
    DAMAGES[damage](path_of_damage)
    os.replace(path_of_damage, path)
    with pytest.warns(UserWarning, match=f"image table {path} is damaged"):
        repaired = open_data(digits_config, tmp_path)
    assert torch.equal(repaired.train.images, expected)
    assert torch.equal(open_data(digits_config, tmp_path).train.images, expected)  # no warning


def test_what_a_killed_conversion_left_is_no_table(
    tmp_path: Path, digits_config: DataConfig
) -> None:
    open_data(digits_config, tmp_path)
    path = table_of(tmp_path)
    half = path.read_bytes()[:5000]
    path.unlink()
    path.with_suffix(".partial").write_bytes(half)
    assert len(open_data(digits_config, tmp_path).train) == 384
    assert not path.with_suffix(".partial").exists()


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "digts"}, "unknown data set 'digts'; did you mean 'digits'"),
        ({"heldout_fraction": -0.1}, "heldout_fraction"),
        ({"heldout_fraction": 1}, "heldout_fraction"),
        ({"train_images": 0}, "train_images"),
        ({"views": 0}, "views"),
        ({"split_seed": -1}, "split_seed"),
        ({"view_seed": -1}, "view_seed"),
        ({"veiws": 3}, "veiws"),
        ({"image_size": (32, 32)}, r"image_size is \(32, 32\), but digits has no such setting"),
        ({"test_fraction": 0.2}, "test_fraction is 0.2, but digits has no such setting; leave it"),
        ({"image_column": "x"}, "image_column is x, but digits has no such setting"),
        ({"root": "s3://bucket/x"}, "root is 's3://bucket/x', but digits reads local folders"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"name": "digits"} | wrong)


@pytest.mark.parametrize("field", ["split_seed", "view_seed"])
@pytest.mark.parametrize("seed", [2**31, 2**63 - 1, 2**63, 2**64])
def test_every_seed_that_is_accepted_works(field: str, seed: int, workspace: Path) -> None:
    try:
        config = DataConfig.model_validate({"name": "digits", field: seed})
    except ValidationError:
        return  # refused where it is read: that is in order
    data = open_data(config, workspace)
    (images,) = data.train.views(torch.arange(4), data.view_of(1), 4)
    assert images.shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_images": 1151}, "train_images is 1151, but only 1150 are left beside 288"),
        ({"heldout_fraction": 1e-4}, "heldout_fraction is 0.0001, but leaves 0 images held out"),
        ({"heldout_fraction": 0.9999}, "heldout_fraction is 0.9999, but .* 0 to train on"),
        ({"root": "/tmp"}, "root is '/tmp', but digits is bundled; leave root out"),
        ({"download": True}, "download is true, but digits has nothing to download"),
        (
            {"name": "fashion_mnist", "download": True},
            "download is true, but fashion_mnist needs a root",
        ),
    ],
)
def test_splits_and_sources_that_cannot_be_are_refused_with_the_reason(
    settings: dict[str, object], message: str, workspace: Path
) -> None:
    config = DataConfig.model_validate({"name": "digits", "heldout_fraction": 0.2} | settings)
    with pytest.raises(ValueError, match=message):
        open_data(config, workspace)


def test_every_source_describes_itself() -> None:
    for name, data_set in DATA_SETS.items():
        assert data_set.summary
        assert data_set.settings.keys() <= DataConfig.model_fields.keys()
        source = source_of(name)
        if isinstance(source, TableSource):
            assert len(set(source.class_names)) == len(source.class_names) >= 2
            assert source.crop_padding >= 0


# Fashion-MNIST from IDX files


def small_set() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: random.integers(0, 256, (60, 28, 28)),
        TRAIN_LABELS: np.arange(60) % 10,
        TEST_IMAGES: random.integers(0, 256, (20, 28, 28)),
        TEST_LABELS: np.arange(20) % 10,
    }


def write_idx_files(folder: Path, *, compressed: bool) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    values = small_set()
    for name, array in values.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (folder / name).write_bytes(idx(array))
    return values


def fashion(root: Path | None) -> DataConfig:
    return DataConfig(name="fashion_mnist", root=root, heldout_fraction=0.25)


def assert_has(data: ImageData, values: dict[str, np.ndarray]) -> None:
    """The data set holds these images: 45 that train, 15 held out, and 20 of the test."""
    assert [len(part) for part in (data.train, data.heldout, data.test)] == [45, 15, 20]
    images = torch.from_numpy(np.concatenate([values[TRAIN_IMAGES], values[TEST_IMAGES]]))
    labels = torch.from_numpy(np.concatenate([values[TRAIN_LABELS], values[TEST_LABELS]]))
    for part in (data.train, data.heldout, data.test):
        assert torch.equal(part.images[:, 0].long(), images[part.image_ids])
        assert torch.equal(part.labels, labels[part.image_ids])
    assert data.test.image_ids.tolist() == list(range(60, 80))


@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_are_read_where_debian_and_torchvision_put_them(
    below: str, compressed: bool, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    values = write_idx_files(root / below, compressed=compressed)
    assert_has(open_data(fashion(root), tmp_path), values)


def test_another_version_of_the_files_gives_another_table(tmp_path: Path) -> None:
    root = tmp_path / "root"
    values = write_idx_files(root, compressed=False)
    before = open_data(fashion(root), tmp_path)
    values[TEST_IMAGES] = 255 - values[TEST_IMAGES]
    (root / TEST_IMAGES).write_bytes(idx(values[TEST_IMAGES]))
    after = open_data(fashion(root), tmp_path)
    assert_has(after, values)
    assert after.digest != before.digest


def test_the_same_images_in_another_folder_have_the_same_digest(tmp_path: Path) -> None:
    write_idx_files(tmp_path / "one", compressed=False)
    write_idx_files(tmp_path / "two", compressed=True)
    one, two = (open_data(fashion(tmp_path / name), tmp_path) for name in ("one", "two"))
    assert one.digest == two.digest


def _cut_gzip(root: Path) -> None:
    path = root / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-1000])


def _no_gzip(root: Path) -> None:
    (root / f"{TRAIN_IMAGES}.gz").write_bytes(b"<html>404</html>")


def _broken_gzip(root: Path) -> None:
    path = root / f"{TRAIN_IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _wrong_magic(root: Path) -> None:
    # 13 stands for floats.
    content = idx(small_set()[TRAIN_LABELS])
    (root / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(content[:2] + b"\x0d" + content[3:]))


def _empty_file(root: Path) -> None:
    (root / f"{TRAIN_LABELS}.gz").write_bytes(b"")


def _cut_header(root: Path) -> None:
    (root / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(idx(small_set()[TRAIN_IMAGES])[:9]))


def _header_promises_more(root: Path) -> None:
    (root / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx(small_set()[TEST_IMAGES])[:-1]))


def _header_promises_less(root: Path) -> None:
    (root / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx(small_set()[TEST_IMAGES]) + b"x"))


def _too_few_labels(root: Path) -> None:
    (root / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(idx(small_set()[TRAIN_LABELS][:-1])))


def _labels_for_images(root: Path) -> None:
    (root / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(idx(small_set()[TRAIN_LABELS])))


def _label_10(root: Path) -> None:
    labels = small_set()[TEST_LABELS]
    labels[3] = 10
    (root / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(idx(labels)))


def _no_images(root: Path) -> None:
    (root / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx(np.zeros((0, 28, 28)))))
    (root / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(idx(np.zeros(0))))


def _images_of_two_sizes(root: Path) -> None:
    (root / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx(np.zeros((20, 8, 8)))))


def _one_of_four_missing(root: Path) -> None:
    (root / f"{TEST_LABELS}.gz").unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_cut_gzip, TRAIN_IMAGES),
        (_no_gzip, TRAIN_IMAGES),
        (_broken_gzip, TRAIN_IMAGES),
        (_wrong_magic, TRAIN_LABELS),
        (_empty_file, TRAIN_LABELS),
        (_cut_header, TRAIN_IMAGES),
        (_header_promises_more, TEST_IMAGES),
        (_header_promises_less, TEST_IMAGES),
        (_too_few_labels, TRAIN_LABELS),
        (_labels_for_images, TRAIN_IMAGES),
        (_label_10, TEST_LABELS),
        (_no_images, TEST_IMAGES),
        (_images_of_two_sizes, TEST_IMAGES),
        (_one_of_four_missing, TEST_LABELS),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value[:12],
)
def test_damaged_files_are_refused_with_their_name_and_the_way_out(
    damage: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    write_idx_files(root, compressed=True)
    damage(root)
    with pytest.raises(ValueError, match=named) as caught:
        open_data(fashion(root), tmp_path)
    assert "download it again" in str(caught.value) or "download: true" in str(caught.value)
    assert not list((tmp_path / "data").glob("*.arrow"))


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (None, "root is missing, but Fashion-MNIST is read from files"),
        (Path("nowhere"), "root is '.*nowhere', but that is not a folder"),
        (Path("empty"), "root is '.*empty', but that has no IDX file"),
    ],
)
def test_a_root_without_files_is_refused_with_the_ways_to_get_them(
    root: Path | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        open_data(fashion(tmp_path / root if root else None), tmp_path)
    assert "dataset-fashion-mnist" in str(caught.value)
    assert "download: true" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_idx_files_of_any_dimensions_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    (tmp_path / "values").write_bytes(idx(values))
    assert torch.equal(read_idx(tmp_path / "values").long(), torch.from_numpy(values))


def test_debians_files_are_the_whole_data_set(tmp_path: Path) -> None:
    table = source_of("fashion_mnist").open(fashion(fashion_mnist()), tmp_path)
    assert table.images.shape == (70_000, 1, 28, 28)
    assert table.is_test.sum() == 10_000
    assert table.labels[~table.is_test].bincount().tolist() == [6000] * 10
    assert table.labels[table.is_test].bincount().tolist() == [1000] * 10
    # The mean and deviation that everybody normalises Fashion-MNIST with.
    pixels = table.images[:60_000].float() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3530, abs=1e-4)


# A download


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a server on this machine shows, and that torchvision fetches from."""
    from torchvision.datasets import FashionMNIST

    folder = tmp_path / "mirror"
    write_idx_files(folder, compressed=True)
    digests = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())
    ]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with served(folder) as address:
        monkeypatch.setattr(FashionMNIST, "mirrors", [address])
        monkeypatch.setattr(FashionMNIST, "resources", digests)
        yield folder


def test_missing_files_are_downloaded_once(mirror: Path, tmp_path: Path) -> None:
    config = fashion(tmp_path / "root").model_copy(update={"download": True})
    assert_has(open_data(config, tmp_path), small_set())
    for path in mirror.iterdir():
        path.unlink()
    assert_has(open_data(config, tmp_path), small_set())
    without = config.model_copy(update={"download": False})
    assert_has(open_data(without, tmp_path), small_set())


def test_a_failed_download_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        port = closed.getsockname()[1]
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
        config = fashion(tmp_path / "root").model_copy(update={"download": True})
        with pytest.raises(ValueError, match="root"):
            open_data(config, tmp_path)


def test_views_are_the_same_in_batches_of_any_size_and_in_any_order(
    all_digits: ImageData,
) -> None:
    train, order = all_digits.train, torch.randperm(len(all_digits.train))
    whole = torch.cat(list(train.views(torch.arange(len(train)), 3, 4096)))
    for size in (1, 64, 2047):
        batches = list(train.views(order, 3, size))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert torch.equal(torch.cat(batches), whole[order])
    assert torch.equal(torch.cat(list(train.batches(100))), train.images)
