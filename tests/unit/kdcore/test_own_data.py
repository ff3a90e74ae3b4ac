"""Data sets of a user's own: what is read, what is refused, and when it is read again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdcore import DataConfig
from kdcore.contract import plugged
from kdcore.data.image_data import open_data
from kdcore.errors import ConfigError
from tests.own_code import DATA, write

SOURCE = """
import torch
from kdcore.data.image_table import RawImages, TableSource

def read(files):
    images = torch.full((90, 1, 8, 8), LEVEL, dtype=torch.uint8)
    return RawImages(images, torch.arange(90) % 3, torch.arange(90) >= 60)

own = TableSource(
    class_names=("a", "b", "c"), crop_padding=0, flip=False, files=lambda root: (), read=read
)
DATA_SETS = {"own": own}
"""


@pytest.fixture(autouse=True)
def _nothing_stays_in_use() -> Iterator[None]:
    yield
    plugged.use([])


def opened(folder: Path, change: str = "", **config: Any) -> Any:
    plugged.use([write(folder, DATA.replace("CHANGE", change))])
    return open_data(DataConfig.model_validate({"name": "own", **config}), folder / "workspace")


def test_images_and_labels_are_those_of_the_data_sets(tmp_path: Path) -> None:
    data = opened(tmp_path)
    assert (data.in_channels, data.image_size, data.class_names) == (1, (8, 8), ("0", "1", "2"))
    (images,) = data.test.batches(30)
    assert images[:, 0, 0, 0].tolist() == list(range(30))
    assert data.test.labels.tolist() == [number % 3 for number in range(30)]
    named = opened(tmp_path, "train.classes = ['a', 'b', 'c']")
    assert named.class_names == ("a", "b", "c")
    assert named.digest != data.digest  # another version of the code


def test_pictures_arrays_and_floats_are_the_same_images(tmp_path: Path) -> None:
    digests = set()
    for form in (
        "x",
        "x / 255",
        "x[0].numpy()",
        "__import__('PIL.Image').Image.fromarray(x[0].numpy())",
    ):
        data = opened(tmp_path, f"train = [({form}, y) for x, y in train]")
        (images,) = data.train.batches(60)
        digests.add((images.sum().item(), str(images.shape)))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train[7] = (train[7][0], None)", "image 7 of train of own has the label None, but every"),
        ("test[2] = (test[2][0], -1)", "image 2 of test of own has the label -1, but labels go fr"),
        ("train[0] = train[0][0]", "image 0 of train of own is Tensor, but must be a pair"),
        ("train[1] = (train[1][0][:, :4], 0)", r"has the shape \(1, 4, 8\), but the first one"),
        ("train[1] = (train[1][0] * 2.0 + 2, 0)", "has values from .*, but floats go from 0 to 1"),
        ("train[0] = ('x.png', 0)", r"is str\[\], but must be a PIL image, a uint8 array"),
        ("train.classes = 'ab'", "has the label 2, but labels go from 0 to 1"),
        ("train.classes = 'abcd'", "own has no image of class 3 for training"),
        ("test = []", "has 60 images for training and 0 for the test, but needs some of both"),
        ("return 3", "the data set own gives 3, but must give two torch data sets"),
        ("1 / 0", r"own cannot be opened: own.py, line \d+, raises ZeroDivisionError"),
    ],
)
def test_each_mistake_of_a_data_set_has_one_message(
    tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, change)


def test_a_file_below_the_root_that_changes_is_read_again(tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    change = "train *= 1 + len(list(root.iterdir()))"
    assert len(opened(tmp_path, change, root=root, heldout_fraction=0).train) == 60
    (root / "one").write_text("")
    assert len(opened(tmp_path, change, root=root, heldout_fraction=0).train) == 120


def test_a_source_is_taken_as_it_is_and_read_again_when_its_code_changes(tmp_path: Path) -> None:
    for level in (1, 2):
        plugged.use([write(tmp_path, SOURCE.replace("LEVEL", str(level)))])
        data = open_data(DataConfig.model_validate({"name": "own"}), tmp_path)
        (images,) = data.test.batches(30)
        assert images.unique().tolist() == [level]
        assert data.class_names == ("a", "b", "c")
