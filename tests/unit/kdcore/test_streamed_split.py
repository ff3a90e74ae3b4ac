"""Splits that are decoded while others train: the same pixels whoever decodes them, and damage."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop

from kdcore import DataConfig
from kdcore.data import decoding_pool
from kdcore.data.augmentation.draws import Draws
from kdcore.data.augmentation.pipeline import drawn_patches
from kdcore.data.augmentation.steps import PRESETS, RandomResizedCrop
from kdcore.data.decoding_pool import decode_in_order
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.streamed_split import StreamedSplit
from tests.cases import Case
from tests.unit.kdcore.photographs import write_folders

SIZE = (32, 40)


def opened(root: Path, workspace: Path, **settings: Any) -> ImageData:
    content = {"name": "image_folder", "root": root, "image_size": SIZE, "heldout_fraction": 0.25}
    return open_data(DataConfig.model_validate(content | settings), workspace)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("photographs"), {"train": 20, "test": 4})


@pytest.fixture(scope="module")
def data(root: Path, workspace: Path) -> ImageData:
    return opened(root, workspace)


@pytest.fixture
def processes() -> Iterator[Callable[[int], None]]:
    """Lets a test choose how many processes decode."""
    before = torch.get_num_threads()
    yield lambda count: torch.set_num_threads(count or 1)
    torch.set_num_threads(before)


def all_views(split: StreamedSplit, view: int) -> Tensor:
    return torch.cat(list(split.views(torch.arange(len(split)), view, 1000)))


def digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def all_images(data: ImageData) -> None:
    for split in (data.train, data.heldout, data.test):
        for _ in split.batches(10):
            pass


def test_batches_have_the_promised_shape(data: ImageData) -> None:
    assert data.image_size == SIZE
    assert data.in_channels == 3
    for split, images in ((data.train, 45), (data.heldout, 15), (data.test, 12)):
        batches = list(split.batches(10))
        assert [len(batch) for batch in batches] == [10] * (images // 10) + [images % 10]
        assert all(batch.shape[1:] == (3, *SIZE) for batch in batches)
        assert all(batch.dtype == torch.uint8 for batch in batches)


@pytest.mark.parametrize("count", [0, 2])
def test_views_are_the_same_in_any_batch_and_order_whoever_decodes(
    data: ImageData, count: int, processes: Callable[[int], None]
) -> None:
    whole, plain = all_views(data.train, 3), torch.cat(list(data.train.batches(1000)))
    processes(count)
    order = torch.randperm(len(data.train))
    for size in (1, 17, 64):
        batches = list(data.train.views(order, 3, size))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert torch.equal(torch.cat(batches), whole[order])
        assert torch.equal(torch.cat(list(data.train.batches(size))), plain)
    assert set(decoding_pool._pools) >= ({count} if count else set())


def test_views_of_every_preset_are_the_same_whoever_decodes(
    root: Path, workspace: Path, processes: Callable[[int], None]
) -> None:
    for preset in PRESETS[1:]:
        split = opened(root, workspace, augmentation=preset).train
        assert isinstance(split, StreamedSplit)
        processes(0)
        whole = all_views(split, 3)
        mixing = split.mixing(torch.arange(len(split)), 3)
        alone = replace(split, steps=tuple(s for s in split.all_steps() if not s.mixes))
        unmixed = all_views(alone, 3)
        if mixing is not None:
            unmixed = mixing.pixels(unmixed, unmixed[mixing.partners])
        assert torch.equal(whole, unmixed)
        processes(2)
        order = torch.randperm(len(split))
        with Case(preset):
            assert torch.equal(torch.cat(list(split.views(order, 3, 17))), whole[order])


def test_second_views_come_beside_the_first_whoever_decodes(
    data: ImageData, processes: Callable[[int], None]
) -> None:
    strong = data.train.strong()
    assert isinstance(strong, StreamedSplit)
    assert list(map(str, strong.all_steps()[:2])) == list(map(str, data.train.all_steps()))
    processes(0)
    first, second = all_views(data.train, 3), all_views(strong, 3)
    assert not torch.equal(first, second)
    processes(2)
    order = torch.randperm(len(first))
    both = zip(*(split.views(order, 3, 17) for split in (data.train, strong)), strict=True)
    ours, theirs = map(torch.cat, zip(*both, strict=True))
    assert torch.equal(ours, first[order])
    assert torch.equal(theirs, second[order])


def test_a_list_of_the_usual_steps_shows_other_patches_of_the_same_kind(
    data: ImageData, root: Path, workspace: Path
) -> None:
    """The pixels are those of torchvision: a patch of the decoded image, resized."""
    listed = opened(root, workspace, augmentation=["random_resized_crop"]).train
    assert isinstance(listed, StreamedSplit)
    views = all_views(listed, 2)
    files = sorted((root / "train").glob("*/*.jpg"))
    draws = Draws(0, 2, listed.image_ids, 0)
    sizes = []
    pictures = []
    for number in listed.image_ids.tolist():
        with Image.open(files[number]) as picture:
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        pictures.append(pixels)
        sizes.append((pixels.shape[1], pixels.shape[2]))
    patches = drawn_patches(RandomResizedCrop(), sizes, draws)
    for picture, patch, view in zip(pictures, patches, views, strict=True):
        assert torch.equal(view, resized_crop(picture, *patch, size=list(SIZE), antialias=True))


def test_every_image_is_shown_exactly_once_in_an_epoch(data: ImageData) -> None:
    torch.manual_seed(0)
    first, second = data.train.shuffled(), data.train.shuffled()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(len(data.train)))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(data.train.shuffled(), first)


def test_other_views_and_seeds_show_other_pixels(data: ImageData) -> None:
    first = all_views(data.train, 0)
    other_seed = StreamedSplit(**(vars(data.train) | {"view_seed": 1}))
    for other in (all_views(data.train, 1), all_views(other_seed, 0)):
        assert not (other == first).flatten(1).all(1).any()


def test_decoding_draws_nothing_from_the_global_random_state(data: ImageData) -> None:
    before = torch.get_rng_state()
    all_views(data.train, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_mean_and_deviation_are_those_of_the_unaugmented_training_images(
    data: ImageData, root: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.cat(list(data.train.batches(64))).transpose(0, 1).flatten(1).double() / 255
    assert data.mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
    assert data.std == pytest.approx(pixels.std(1).tolist(), rel=1e-12)
    # The second opening decodes nothing.
    monkeypatch.setattr(StreamedSplit, "sums", None)
    assert opened(root, workspace).mean == data.mean


def test_of_many_images_a_fixed_sample_is_estimated(
    data: ImageData, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcore.data.streamed_split._SAMPLE", 20)
    torch.manual_seed(1)
    first = opened(root, tmp_path / "one")
    torch.manual_seed(2)
    second = opened(root, tmp_path / "two")
    assert first.mean == second.mean != data.mean
    assert first.mean == pytest.approx(data.mean, rel=0.2)


# Processes


def test_a_damaged_image_ends_an_epoch_with_one_clear_error(
    tmp_path: Path, processes: Callable[[int], None]
) -> None:
    data = opened(write_folders(tmp_path / "root", {"train": 20, "test": 4}), tmp_path)
    damaged = tmp_path / "root/train/dog/007.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    for count in (0, 2):
        processes(count)
        with pytest.raises(ValueError, match=f"damaged image {damaged}: .*; replace it") as caught:
            all_images(data)
        assert caught.value.__cause__ is None
        assert "\n" not in str(caught.value)
        assert len(all_views(data.test, 0)) == 12  # others can be read all the same


def test_an_epoch_that_is_given_up_leaves_nothing_behind(
    data: ImageData, processes: Callable[[int], None]
) -> None:
    processes(2)
    views = data.train.views(torch.arange(45), 0, 4)
    first = next(views)
    both = zip(data.train.views(torch.arange(45), 0, 4), data.heldout.batches(5), strict=False)
    assert torch.equal(next(both)[0], first)
    del views
    assert torch.equal(all_views(data.train, 0)[:4], first)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_process_that_is_killed_is_said_so_and_the_next_epoch_has_others(
    data: ImageData, processes: Callable[[int], None]
) -> None:
    processes(2)
    whole = all_views(data.train, 0)
    server = decoding_pool._pools[2].server.pid
    os.kill(children_of(server)[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a process that decodes images was killed"):
        all_views(data.train, 0)
    assert torch.equal(all_views(data.train, 0), whole)


def test_another_training_sees_the_same_views_and_its_processes_end_when_it_is_killed(
    data: ImageData, root: Path, tmp_path: Path
) -> None:
    program = f"""
import pathlib, signal, torch
torch.set_num_threads(2)
from kdcore.data import decoding_pool
from tests.unit.kdcore.test_streamed_split import all_views, children_of, digest, opened
data = opened(pathlib.Path({str(root)!r}), pathlib.Path({str(tmp_path)!r}))
shown = digest(all_views(data.train, 7))
server = decoding_pool._pools[2].server.pid
print(shown, server, *children_of(server), flush=True)
signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        shown, *pids = training.stdout.readline().split()
        training.kill()
    assert shown == digest(all_views(data.train, 7))
    assert len(pids) == 3
    deadline = time.monotonic() + 120
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"{left} are still there"
        time.sleep(0.02)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_parts_are_asked_for_only_so_far_ahead(processes: Callable[[int], None]) -> None:
    asked = 0

    def parts() -> Iterator[None]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield None

    shown = decode_in_order(parts(), 2, ahead=5)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        next(shown)
    assert asked == 6


def test_images_that_are_decoded_already_need_no_decoder_and_no_library_of_networks(
    tmp_path: Path,
) -> None:
    program = f"""
import sys, pathlib, torch
from kdcore import DataConfig
from kdcore.data.image_data import open_data
data = open_data(DataConfig(name="digits"), pathlib.Path({str(tmp_path)!r}))
next(data.train.views(torch.arange(64), 0, 64))
from kdcore.data import decoding_pool
print(sorted({{"PIL", "torchvision", "timm"}} & sys.modules.keys()), decoding_pool._pools)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] {}"
