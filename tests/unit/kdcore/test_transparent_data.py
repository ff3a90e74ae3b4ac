"""Data sets with transparent images: the background, and what made of earlier versions stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import ipc

from kdcore import DataConfig
from kdcore.data import parquet
from kdcore.data.image_data import ImageData, open_data, source_of
from tests.unit.kdcore.photographs import encoded, rows_of, write_folders, write_parquet

RED = [200, 0, 0]


def opened(root: Path, workspace: Path, name: str = "image_folder", **settings: Any) -> ImageData:
    given = {"name": name, "image_size": (16, 16), "heldout_fraction": 0.25, "root": root}
    return open_data(DataConfig.model_validate(given | settings), workspace)


def write_pictures(root: Path, alpha: int, one: int = 255, images: int = 6) -> Path:
    """Green PNGs of 20x20 in two classes; the last with an alpha of its own."""
    paths = [root / name / f"{i}.png" for name in ("cat", "dog") for i in range(images)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        opacity = one if path is paths[-1] else alpha
        path.write_bytes(encoded(Image.new("RGBA", (20, 20), (0, 100, 0, opacity)), "PNG"))
    return root


def listed_digest(workspace: Path) -> str:
    """The digest of names and sizes, which was all that there was before backgrounds."""
    for path in sorted((workspace / "data").glob("*.arrow")):
        batch = ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        if b"digest" in (batch.schema.metadata or {}) and "is_test" in batch.schema.names:
            return batch.schema.metadata[b"digest"].decode()
    raise AssertionError("no list")


def files_of(workspace: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (workspace / "data").glob("*.arrow")}


def test_of_opaque_images_everything_made_before_stays(tmp_path: Path) -> None:
    roots = [
        write_pictures(tmp_path / "png", alpha=255),
        write_folders(tmp_path / "jpeg", {".": 4}),
    ]
    for root in roots:
        workspace = tmp_path / f"{root.name}-workspace"
        first = opened(root, workspace)
        assert first.digest == listed_digest(workspace)
        for note in (workspace / "data").glob("*-transparent.arrow"):
            note.unlink()
        before = files_of(workspace)
        for background in (None, RED):
            again = opened(root, workspace, background=background)
            assert (again.digest, again.mean, again.std) == (first.digest, first.mean, first.std)
        assert files_of(workspace).items() >= before.items()
        notes = files_of(workspace).keys() - before.keys()
        assert len(notes) == (root.name == "png")  # JPEGs are not looked at


def test_one_transparent_image_gives_each_background_a_digest(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "root", alpha=255, one=254)
    digests = {opened(root, tmp_path, background=each).digest for each in (None, RED, "blue")}
    assert len(digests | {listed_digest(tmp_path)}) == 4
    assert opened(root, tmp_path, background="white").digest in digests
    assert opened(root, tmp_path / "elsewhere").digest in digests


def test_the_background_is_shown_in_views_evaluation_and_statistics(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "root", alpha=0, one=0)
    write_parquet(tmp_path / "rows" / "train.parquet", rows_of(folder))
    for name, root in (("image_folder", folder), ("parquet", tmp_path / "rows")):
        for background, shown in ((None, [255] * 3), (RED, RED), ("#0000ff", [0, 0, 255])):
            data = opened(root, tmp_path, name, background=background)
            assert np.allclose(data.mean, np.array(shown) / 255)
            views = data.train.views(torch.arange(len(data.train)), 0, 100)
            for images in (next(iter(views)), *data.test.batches(100)):
                assert (images == torch.tensor(shown)[:, None, None]).all()


def test_a_table_of_transparent_images_has_their_background(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "root", alpha=51)
    settings = {"augmentation": "pad_crop", "image_size": None}
    for background, green in ((None, 255 - 31), ("black", 20)):
        table = opened(root, tmp_path, background=background, **settings)
        assert (table.train.images[:, 1] == green).sum() >= 8 * 400  # all but an opaque one


def test_of_many_rows_some_groups_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "rows"
    rows = rows_of(write_pictures(tmp_path / "root", alpha=0, images=20))
    write_parquet(root / "train.parquet", rows, row_group_size=4)
    config = DataConfig(name="parquet", root=root)
    store = source_of("parquet").open(config, tmp_path).store  # type: ignore[attr-defined]
    assert len(store.perhaps_transparent()) == 40
    size = sum(len(row["image"]["bytes"]) for row in rows)  # type: ignore[index]
    monkeypatch.setattr(parquet, "_WINDOW_BYTES", size / 2)
    some = store.perhaps_transparent()
    assert 8 <= len(some) <= 20
    assert len(some) % 4 == 0
    assert some[-1] > 20


@pytest.mark.parametrize(
    "background",
    ["blurple", "#12", "#12345678", [1, 2], [1, 2, 256], [1, 2, -1], [1.5, 2, 3], [True, 0, 0], 7],
)
def test_what_is_no_colour_is_refused(background: object) -> None:
    with pytest.raises(ValueError, match=r"background is .*, but must be a colour: a name like"):
        DataConfig.model_validate({"name": "image_folder", "root": "x", "background": background})


def test_a_background_is_a_colour_of_photographs_only_and_written_only_if_set() -> None:
    with pytest.raises(ValueError, match=r"background is .*, but digits has no such setting"):
        DataConfig.model_validate({"name": "digits", "background": "white"})
    config = DataConfig.model_validate({"name": "parquet", "root": "x", "background": "navy"})
    assert config.background == (0, 0, 128)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config
    plain = DataConfig(name="parquet", root="x")
    assert "background" not in plain.model_dump()
    assert DataConfig.model_validate(plain.model_dump()) == plain
