"""Decoded images that are kept: the same pixels, whatever is kept, cut or full."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcore import DataConfig, Recipe, TeacherConfig, TrialConfig
from kdcore.data import decoding
from kdcore.data.decoded_images import DecodedImages
from kdcore.data.image_data import ImageData, open_data
from kdcore.teacher.teacher import teacher_folder
from tests.unit.kdcore.photographs import encoded, photograph, rows_of, write_folders, write_parquet


def opened(root: Path, workspace: Path, name: str = "image_folder", **settings: Any) -> ImageData:
    given = {"name": name, "image_size": (24, 16), "heldout_fraction": 0.25, "root": root}
    return open_data(DataConfig.model_validate(given | settings), workspace)


def shown(data: ImageData) -> list[Tensor]:
    """Views of the training images in another order, and what is evaluated."""
    torch.manual_seed(0)
    order = data.train.shuffled()
    views = [torch.cat(list(data.train.views(order, view, 7))) for view in (0, 3)]
    return [
        order,
        *views,
        *(torch.cat(list(part.batches(5))) for part in (data.heldout, data.test)),
    ]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def kept_files(workspace: Path) -> list[Path]:
    return sorted((workspace / "data").glob("*-decoded-*.pixels"))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in both forms; one is transparent, one lies on its side."""
    root = write_folders(tmp_path_factory.mktemp("files"), {"train": 8, "test": 3})
    transparent = photograph(1).convert("RGBA")
    transparent.putalpha(photograph(1).convert("L"))
    (root / "train" / "cat" / "clear.png").write_bytes(encoded(transparent, "PNG"))
    turned = photograph(2)
    turned.getexif()[0x0112] = 6
    (root / "train" / "cat" / "turned.jpg").write_bytes(encoded(turned, exif=turned.getexif()))
    rows = tmp_path_factory.mktemp("rows")
    for part in ("train", "test"):
        write_parquet(rows / f"{part}.parquet", rows_of(root / part))
    return {"image_folder": root, "parquet": rows}


@pytest.mark.parametrize("name", ["image_folder", "parquet"])
def test_pixels_are_the_same_whether_all_some_or_none_are_kept(
    name: str, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcore.data.streamed_split._processes", lambda device: 0)
    plain = opened(roots[name], tmp_path, name)
    expected = shown(plain)
    images = len(plain.train) + len(plain.heldout) + len(plain.test)
    kept_numbers = []
    decoded: list[str] = []
    decode = decoding.opened_image
    monkeypatch.setattr(
        decoding,
        "opened_image",
        lambda image, *rest: decoded.append(image.place) or decode(image, *rest),
    )
    for gigabytes in (1, 1e-4, 1e-9):
        data = opened(roots[name], tmp_path, name, decoded_gb=gigabytes)
        store = data.train.store  # type: ignore[attr-defined]
        assert isinstance(store, DecodedImages)
        kept_numbers.append(len(store.heights))
        (file,) = kept_files(tmp_path)  # that of another budget has gone
        assert file.stat().st_size <= gigabytes * 1e9
        assert (data.digest, data.mean, data.std) == (plain.digest, plain.mean, plain.std)
        decoded.clear()
        assert same(shown(data), expected)
        assert len(decoded) < images * 2 + len(plain.train)
        assert (decoded == []) == (gigabytes == 1)
    assert kept_numbers[0] == images
    assert 5 < kept_numbers[1] < images
    assert kept_numbers[2] == 0
    again = opened(roots[name], tmp_path, name, decoded_gb=1e-9)
    assert same(shown(again), expected)
    mixed = {"augmentation": "strong"}
    assert same(
        shown(opened(roots[name], tmp_path, name, decoded_gb=1, **mixed)),
        shown(opened(roots[name], tmp_path, name, **mixed)),
    )


def test_another_process_and_its_decoders_share_the_file(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    root = roots["image_folder"]
    program = f"""
import pathlib, torch
from kdcore.data import decoded_images
from tests.unit.kdcore.test_decoded_images import opened, shown
def refuse(*arguments):
    raise AssertionError("decoded again")
decoded_images._decoded = refuse
torch.set_num_threads(2)
data = opened(pathlib.Path({str(root)!r}), pathlib.Path({str(tmp_path)!r}), decoded_gb=1)
torch.save(shown(data), {str(tmp_path / "shown.pt")!r})
"""
    opened(root, tmp_path, decoded_gb=1)
    (file,) = kept_files(tmp_path)
    made = file.stat().st_mtime_ns
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
    assert file.stat().st_mtime_ns == made
    expected = shown(opened(root, tmp_path))
    assert same(torch.load(tmp_path / "shown.pt", weights_only=True), expected)


@pytest.mark.parametrize("damage", ["cut", "gone", "longer", "list"])
def test_a_cut_file_is_made_again(damage: str, roots: dict[str, Path], tmp_path: Path) -> None:
    root = roots["image_folder"]
    expected = shown(opened(root, tmp_path))
    opened(root, tmp_path, decoded_gb=1)
    (file,) = kept_files(tmp_path)
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "list":
        file.with_suffix(".arrow").write_bytes(b"no list")
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content + b"x")
    with pytest.warns(UserWarning, match=r"list of decoded images .* is damaged .* created again"):
        data = opened(root, tmp_path, decoded_gb=1)
    assert file.read_bytes() == content
    assert same(shown(data), expected)


def test_a_damaged_byte_is_never_shown(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcore.data.streamed_split._processes", lambda device: 0)
    opened(roots["image_folder"], tmp_path, decoded_gb=1)
    (file,) = kept_files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()  # a mapped file keeps its inode
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"damaged file of decoded images .*; remove the file, and"
    ):
        shown(opened(roots["image_folder"], tmp_path, decoded_gb=1))
    file.unlink()
    with pytest.warns(UserWarning, match="created again"):
        data = opened(roots["image_folder"], tmp_path, decoded_gb=1)
    assert same(shown(data), shown(opened(roots["image_folder"], tmp_path)))


def test_a_full_disk_means_decoding(roots: dict[str, Path], tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: in the middle of writing."""
    root = roots["image_folder"]
    expected = shown(opened(root, tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"decoded images cannot be kept in .*; each is dec"):
            data = opened(root, tmp_path, decoded_gb=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(data.train.store, DecodedImages)  # type: ignore[attr-defined]
    assert same(shown(data), expected)
    assert [file for file in (tmp_path / "data").iterdir() if "pixels" in file.name] == []


def test_what_is_kept_is_part_of_no_identity(roots: dict[str, Path], tmp_path: Path) -> None:
    root = roots["image_folder"]
    teacher = TeacherConfig(backbone="resnet8", training=Recipe(epochs=1))
    identities, folders = set(), set()
    for gigabytes in (None, 0, 1, 2.5):
        data = opened(root, tmp_path, decoded_gb=gigabytes)
        config = TrialConfig(
            data=data.config, teacher=teacher, student="resnet8", training=Recipe(epochs=1)
        )
        assert DataConfig.model_validate_json(data.config.model_dump_json()).decoded_gb == (
            gigabytes or None
        )
        identities.add(config.identity)
        folders.add(teacher_folder(teacher, data, tmp_path))
    assert len(identities) == len(folders) == 1
    assert "decoded_gb" not in identities.pop()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decoded_gb": -1}, "greater than or equal to 0"),
        ({"decoded_gb": float("inf")}, "finite number"),
        ({"decoded_gb": 1, "augmentation": "pad_crop"}, "which decodes all images once anyway"),
        ({"decoded_gb": 1, "name": "cifar10"}, "decoded_gb is 1.0, but cifar10 has no such"),
    ],
)
def test_budgets_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"name": "image_folder", "root": "x"} | wrong)
