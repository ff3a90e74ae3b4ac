"""The teacher's cached outputs: they change nothing, and are computed once."""

import errno
import os
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from pyarrow import fs
from torch import Tensor

from kdcore import CacheConfig, DataConfig, EpochReport, TeacherConfig, TrialConfig, distill
from kdcore.contract.taps import Tap, Taps
from kdcore.data.augmentation.steps import PRESETS, Flip, PadCrop, expanded
from kdcore.data.image_data import ImageData
from kdcore.data.split import TableSplit
from kdcore.execution.execution import Execution, Precision
from kdcore.methods import CATALOGUE
from kdcore.methods.kd import kd_loss
from kdcore.teacher.teacher import WEIGHTS, load_teacher
from kdcore.teacher_cache import cache as cache_module
from kdcore.teacher_cache import files
from kdcore.teacher_cache.cache import TeacherCache, Wanted, rounded
from kdcore.teacher_cache.files import FOLDER, cached_files
from kdcore.teacher_cache.patience import PATIENCE_SECONDS
from kdcore.teacher_cache.view import CachedView
from tests.cases import Case

CPU = torch.device("cpu")
MAPS = Wanted(
    frozenset({Tap.LOGITS, Tap.MAPS, Tap.PREACTIVATIONS}), frozenset({"stage1", "stage3"})
)
LOGITS = Wanted(frozenset({Tap.LOGITS}), frozenset())
EPOCHS = 2

Run = Callable[..., list[EpochReport]]


@pytest.fixture
def run(
    digits_config: DataConfig, teacher_config: TeacherConfig, workspace: Path, teacher_dir: Path
) -> Run:
    """Distils with a cache, or none."""

    def reports(
        method: str,
        cache: CacheConfig | None,
        folder: Path = workspace,
        data: DataConfig = digits_config,
        **settings: Any,
    ) -> list[EpochReport]:
        config = TrialConfig(
            data=data,
            teacher=teacher_config,
            student="resnet8",
            objective=[{"method": method}],
            training={"epochs": EPOCHS, "batch_size": 192, "acceleration": "off"} | settings,
            cache=cache,
        )
        return list(distill(config, workspace=folder, device=CPU))

    return reports


def assert_alike(given: list[EpochReport], expected: list[EpochReport]) -> None:
    """The same was learned, but for rounding: a network may add up in another order where it sees
    another number of images at once, as the teacher does for the cache."""
    for one, other in zip(given, expected, strict=True):
        assert one.train_terms == pytest.approx(other.train_terms, rel=1e-3)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)


@pytest.fixture
def make(digits: ImageData, teacher_dir: Path, tmp_path: Path) -> Callable[..., TeacherCache]:
    """Opens a cache of the small teacher's outputs, in a workspace of the test's own."""

    def cache(
        workspace: Path = tmp_path,
        *,
        data: ImageData = digits,
        execution: Execution = Execution(),  # noqa: B008  (frozen)
        **config: Any,
    ) -> TeacherCache:
        return TeacherCache(
            CacheConfig(**config),
            workspace,
            load_teacher(teacher_dir),
            teacher_dir / WEIGHTS,
            data,
            device=CPU,
            execution=execution,
        )

    return cache


Make = Callable[..., TeacherCache]


def given(view: CachedView | None) -> CachedView:
    assert view is not None
    return view


# The same learning


@pytest.mark.parametrize("name", [name for name in CATALOGUE if CATALOGUE[name].needs])
def test_every_method_learns_from_the_cache_what_the_live_teacher_teaches(
    name: str, run: Run
) -> None:
    live = run(name, None)
    assert {report.teacher for report in live} == {"live"}
    with_cache = run(name, CacheConfig(precision="float32"))
    assert {report.teacher for report in with_cache} <= {"computed", "cached"}
    assert_alike(with_cache, live)


def with_preset(digits: ImageData, preset: str) -> ImageData:
    assert isinstance(digits.train, TableSplit)
    steps = expanded(preset, (PadCrop(padding=1), Flip()))
    return replace(digits, train=replace(digits.train, steps=steps))


@torch.no_grad()
def test_of_every_preset_the_cache_is_the_live_teacher_to_the_bit(
    make: Make, digits: ImageData, teacher_dir: Path
) -> None:
    teacher, keys = load_teacher(teacher_dir), set()
    for preset in PRESETS:
        with Case(preset):
            data = with_preset(digits, preset)
            cache = make(data=data, precision="float32")
            keys.add(cache.key)
            everything = torch.arange(len(data.train))
            kept = given(cache.view(1, LOGITS)).at(everything)
            (images,) = data.train.views(everything, 1, len(everything))
            assert torch.equal(kept.logits, teacher(images))
    assert len(keys) == len(PRESETS)


def test_of_mixed_images_a_trial_learns_from_the_cache_what_the_live_teacher_teaches(
    run: Run, digits_config: DataConfig
) -> None:
    content = digits_config.model_dump() | {"augmentation": "strong", "train_images": 96}
    data = DataConfig.model_validate(content)
    live = run("dkd", None, data=data)
    with_cache = run("dkd", CacheConfig(precision="float32"), data=data)
    assert {report.teacher for report in with_cache} <= {"computed", "cached"}
    assert_alike(with_cache, live)


def test_residual_sums_are_kept_where_they_are_named(
    digits_config: DataConfig, tmp_path: Path
) -> None:
    layers = "stage1_sum:stage1_sum, stage2:stage3_sum"

    def reports(cache: CacheConfig | None) -> list[EpochReport]:
        recipe = {"epochs": 1, "batch_size": 32, "acceleration": "off"}
        config = TrialConfig(
            data=digits_config.model_copy(update={"train_images": 96}),
            teacher={"backbone": "wrn_16_1", "training": recipe},
            student="wrn_16_1",
            objective=[{"method": "at", "params": {"layers": layers}}],
            training=recipe,
            seed=1,
            cache=cache,
        )
        return list(distill(config, workspace=tmp_path, device=CPU))

    live, computed, cached = map(reports, (None, *[CacheConfig(precision="float32")] * 2))
    kept = {path.stem.partition("-")[2] for path in cached_files(tmp_path / FOLDER)}
    assert kept == {"outputs", "map-stage1_sum", "map-stage3_sum"}
    teachers = [report.teacher for (report,) in (live, computed, cached)]
    assert teachers == ["live", "computed", "cached"]
    assert_alike(computed, live)
    assert_alike(cached, live)


def test_outputs_that_depend_on_more_than_the_image_are_not_kept() -> None:
    gradients = Wanted(frozenset({Tap.LOGITS, Tap.INPUT_GRADIENT}), frozenset())
    assert not gradients.cacheable


@pytest.mark.parametrize(
    ("execution", "share"),
    [
        (Execution(), 1e-5),
        (Execution(channels_last=True), 1e-5),
        # 8 bits, and whoever adds up in another order may round the last of them the other way.
        (Execution("bfloat16", channels_last=True), 2**-4),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_cache_gives_what_the_teacher_gives(
    execution: Execution, share: float, make: Make, digits: ImageData, teacher_dir: Path
) -> None:
    wanted = replace(MAPS, kinds=MAPS.kinds | {Tap.CLASS_MAPS, Tap.STRONG_LOGITS})
    cached = given(make(execution=execution, precision="float32").view(1, wanted))
    positions = torch.tensor([5, 0, 300, 5])
    images, strong = (
        next(split.views(positions, 1, 4)) for split in (digits.train, digits.train.strong())
    )
    teacher = load_teacher(teacher_dir)
    execution.place(teacher, CPU)
    with execution.autocast(CPU):
        live = teacher.taps(images, wanted.kinds, positions, strong=strong)
    kept = cached.at(positions)
    assert kept.strong_logits is not None
    assert live.strong_logits is not None
    assert kept.class_maps is not None
    assert live.class_maps is not None
    assert set(kept.maps) == set(kept.preactivations) == {"stage1", "stage3"}
    pairs = [(kept.logits, live.logits), (kept.embedding, live.embedding)]
    pairs.append((kept.class_maps, live.class_maps))
    pairs.append((kept.strong_logits, live.strong_logits))
    pairs += [(kept.maps[tap], live.maps[tap]) for tap in kept.maps]
    pairs += [(kept.preactivations[tap], live.preactivations[tap]) for tap in kept.maps]
    for ours, exact in pairs:
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        assert (ours - exact).abs().max() <= share * exact.abs().max()


# What float16 keeps

LARGEST = torch.finfo(torch.float16).max


def half_a_last_bit(exact: Tensor) -> Tensor:
    """As much do eleven bits change a number; below 2^-14, the smallest with all of them, 2^-25."""
    return (2.0**-11 * exact.abs()).clamp(min=2.0**-25)


def assert_eleven_bits(kept: Tensor, exact: Tensor) -> None:
    wanted = exact.double().clamp(-LARGEST, LARGEST)
    assert ((kept.double() - wanted).abs() <= half_a_last_bit(wanted)).all()


def test_rounding_keeps_eleven_bits_of_any_number() -> None:
    sizes = torch.logspace(-40, 40, 8001, base=2)
    ends = torch.tensor([0.0, 2.0**-24, 2.0**-14, 65504, 65519, 65520, 65536, 3e38])
    values = torch.cat([sizes, -sizes, ends, -ends])
    taps = Taps(values, values, {"a": values}, {"a": values})
    for kept in rounded(taps, CacheConfig()).tensors():
        assert_eleven_bits(kept, values)
    for kept in rounded(taps, CacheConfig(precision="float32")).tensors():
        assert torch.equal(kept, values)


def test_the_cache_keeps_eleven_bits_of_every_column(make: Make) -> None:
    exact = given(make(precision="float32").view(0, MAPS)).columns
    kept = given(make().view(0, MAPS)).columns
    assert kept.keys() == exact.keys()
    for name, column in kept.items():
        assert column.dtype == torch.float16
        assert_eleven_bits(column, exact[name])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_eleven_bits_move_a_loss_and_its_gradient_by_as_little(
    temperature: float, make: Make
) -> None:
    everything = torch.arange(384)
    exact, kept = (
        given(make(precision=precision).view(0, LOGITS)).at(everything).logits.double()
        for precision in ("float32", "float16")
    )
    student = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).double()
    student.requires_grad_()
    losses = [kd_loss(student, teacher, temperature=temperature) for teacher in (exact, kept)]
    gradients = [torch.autograd.grad(loss, student)[0] for loss in losses]

    moved = half_a_last_bit(exact).amax(1) / temperature
    # The gradient is T (q - p) / B. Where no logit moves by more than e, no log probability moves
    # by more than 2 e.
    p = (exact / temperature).softmax(1)
    bound = temperature / len(p) * p * torch.expm1(2 * moved)[:, None]
    assert ((gradients[1] - gradients[0]).abs() <= bound + 1e-12).all()
    # With d = log p - log q, the divergence KL has the gradient p (d - KL) with respect to the
    # teacher's logits / T, and the sum of its sizes is at most 2 max |d|, which moves by 2 e.
    with torch.no_grad():
        d = (exact / temperature).log_softmax(1) - (student / temperature).log_softmax(1)
        steepest = 2 * (d.abs().amax(1) + 2 * moved)
        most = temperature**2 * (moved * steepest).mean()
        assert (losses[1] - losses[0]).abs() <= most
        assert most < 0.01 * losses[0]


def test_without_room_the_trial_learns_the_same_from_the_live_teacher(
    run: Run, tmp_path: Path
) -> None:
    cached = run("at", CacheConfig())
    live = run("at", CacheConfig(max_gb=0.0), tmp_path)
    assert {report.teacher for report in live} == {"live"}
    assert_alike(live, cached)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_value_beyond_the_range_of_float16_stays_finite(make: Make, precision: Precision) -> None:
    cache = make(execution=Execution(precision))
    with torch.no_grad():
        cache._teacher.backbone.fc.weight.mul_(1e8)
    assert given(cache.view(0, LOGITS)).at(torch.arange(9)).logits.isfinite().all()


# Computed once


def test_a_view_is_computed_once_and_then_found(make: Make) -> None:
    first, second = make().view(0, MAPS), make().view(0, MAPS)
    assert (given(first).computed, given(second).computed) == (True, False)
    assert given(second).seconds_saved > 0
    assert given(make().view(1, MAPS)).computed  # another view looks otherwise
    fewer = Wanted(MAPS.kinds, frozenset({"stage3"}))
    assert not given(make().view(0, fewer)).computed
    more = Wanted(MAPS.kinds, frozenset({"stage2", "stage3"}))
    assert given(make().view(0, more)).computed


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "float32"},
        {"execution": Execution(channels_last=True)},
        "views",
        "split",
    ],
    ids=str,
)
def test_another_precision_layout_recipe_or_split_is_another_cache(
    make: Make, digits: ImageData, change: Any
) -> None:
    settings = change if isinstance(change, dict) else {}
    if change == "views":
        settings = {"data": replace(digits, train=replace(digits.train, view_seed=9))}
    if change == "split":
        ids = digits.train.image_ids.flip(0)
        settings = {"data": replace(digits, train=replace(digits.train, image_ids=ids))}
    assert make(**settings).key != make().key


def test_other_weights_are_another_cache(
    make: Make, digits: ImageData, teacher_dir: Path, tmp_path: Path
) -> None:
    content = bytearray((teacher_dir / WEIGHTS).read_bytes())
    content[-1] ^= 1
    weights = tmp_path / WEIGHTS
    weights.write_bytes(content)
    teacher = load_teacher(teacher_dir)
    other = TeacherCache(
        CacheConfig(), tmp_path, teacher, weights, digits, device=CPU, execution=Execution()
    )
    assert other.key != make().key


def test_several_processes_compute_a_view_once(make: Make) -> None:
    with ThreadPoolExecutor(4) as pool:  # a lock of its own for each opened file
        views = list(pool.map(lambda _: given(make().view(0, MAPS)), range(4)))
    assert sum(view.computed for view in views) == 1
    for view in views[1:]:
        assert torch.equal(view.columns["logits"], views[0].columns["logits"])


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from kdcore import CacheConfig, DataConfig
from kdcore.data.image_data import open_data
from kdcore.contract.taps import Tap
from kdcore.execution.execution import Execution
from kdcore.teacher.teacher import WEIGHTS, load_teacher
from kdcore.teacher_cache.cache import TeacherCache, Wanted

class Dying(TeacherCache):
    def _pass(self, view, wanted):
        for taps in super()._pass(view, wanted):
            yield taps
            os.kill(os.getpid(), signal.SIGKILL)

config, tables, teacher, workspace = sys.argv[1:]
data = open_data(DataConfig.model_validate_json(config), Path(tables))
Dying(CacheConfig(), Path(workspace), load_teacher(Path(teacher)), Path(teacher) / WEIGHTS, data,
      device=torch.device("cpu"), execution=Execution()).view(
          0, Wanted(frozenset({Tap.LOGITS}), frozenset()))
"""


def test_a_process_killed_while_computing_leaves_nothing_that_is_believed(
    make: Make, digits_config: DataConfig, workspace: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    arguments = [digits_config.model_dump_json(), workspace, teacher_dir, tmp_path]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / FOLDER).iterdir())
    assert cached_files(tmp_path / FOLDER) == []
    assert given(make().view(0, LOGITS)).computed
    assert not list((tmp_path / FOLDER).glob("*/.*"))


# Damage


@pytest.mark.parametrize("damage", ["truncated", "one byte", "foreign", "empty"])
def test_a_damaged_or_foreign_file_is_computed_again_with_a_warning(
    make: Make, tmp_path: Path, damage: str
) -> None:
    intact = given(make().view(0, LOGITS)).columns["logits"].clone()
    (path,) = cached_files(tmp_path / FOLDER)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "one byte":
        content[len(content) // 3] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        other = tmp_path / "other"
        make(other, precision="float32").view(0, LOGITS)
        content = bytearray(cached_files(other / FOLDER)[0].read_bytes())
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))  # a clock may be too coarse to tell it from what was verified
    with pytest.warns(UserWarning, match=r"cached outputs .* are damaged .* computed again"):
        again = given(make().view(0, LOGITS))
    assert again.computed
    assert torch.equal(again.columns["logits"], intact)
    assert not given(make().view(0, LOGITS)).computed


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The checksums that are computed."""
    sums: list[int] = []

    def crc32(buffer: Any) -> int:
        sums.append(zlib.crc32(buffer))
        return sums[-1]

    monkeypatch.setattr(files, "zlib", SimpleNamespace(crc32=crc32))
    return sums


def test_a_file_is_verified_once_by_a_process(
    make: Make, summed: list[int], tmp_path: Path
) -> None:
    make().view(0, LOGITS)
    summed.clear()
    for _ in range(2):
        assert not given(make().view(0, LOGITS)).computed
    assert summed == []
    # Another file in its place is verified anew.
    (path,) = cached_files(tmp_path / FOLDER)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, 0))
    other.replace(path)
    assert not given(make().view(0, LOGITS)).computed
    assert len(summed) == 2  # logits and embedding


def test_damage_that_leaves_the_time_of_a_file_is_found_by_the_next_process(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().view(0, LOGITS)
    (path,) = cached_files(tmp_path / FOLDER)
    content, then = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert not given(make().view(0, LOGITS)).computed
    monkeypatch.setattr(files, "_verified", {})  # as in a new process
    with pytest.warns(UserWarning, match="damaged"):
        assert given(make().view(0, LOGITS)).computed


def test_nobody_waits_for_a_view_that_is_there(make: Make, tmp_path: Path) -> None:
    make().view(0, LOGITS)
    (path,) = cached_files(tmp_path / FOLDER)
    with ThreadPoolExecutor(1) as pool, FileLock(path.with_name("view0000.lock")):
        found = pool.submit(make().view, 0, LOGITS).result(timeout=20)
    assert not given(found).computed


# Room


def test_larger_outputs_make_room_for_smaller_ones_and_never_the_reverse(
    make: Make, tmp_path: Path
) -> None:
    make().view(0, MAPS)
    sizes = {path.name: path.stat().st_size for path in cached_files(tmp_path / FOLDER)}
    largest = max(sizes, key=sizes.__getitem__)
    room = (sum(sizes.values()) + 1000) / 1e9
    assert given(make(max_gb=room).view(1, LOGITS)).computed
    kept = {path.name for path in cached_files(tmp_path / FOLDER)}
    assert largest not in kept
    assert "view0000-outputs.arrow" in kept
    assert make(max_gb=room / 2).view(2, MAPS) is None


def test_on_a_full_disk_the_teacher_computes_in_every_step(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = run("kd", CacheConfig())
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(UserWarning, match="cannot be cached .* No space left"):
        live = run("kd", CacheConfig(), tmp_path)
    assert {report.teacher for report in live} == {"live"}
    assert_alike(live, expected)


# On the device


@pytest.mark.parametrize("method", ["kd", "at", "ofd"])
def test_views_too_large_for_the_device_come_by_batches_with_the_same_bits(
    method: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a device of a few bytes would have it; also in parts of a batch, and in other steps."""
    ways: list[dict[str, Any]] = [{}, {"batch_size": 100}, {"batch_size": 64, "accumulation": 3}]
    whole = [run(method, CacheConfig(), **way) for way in ways]
    begun: list[int] = []
    fetch = CachedView._fetch

    def noted(view: CachedView, positions: torch.Tensor) -> Any:
        assert not view.resident
        begun.append(len(positions))
        return fetch(view, positions)

    monkeypatch.setattr(CachedView, "_fetch", noted)
    monkeypatch.setattr(cache_module, "device_memory", lambda device: 1000)
    for way, expected in zip(ways, whole, strict=True):
        begun.clear()
        found = run(method, CacheConfig(), **way)
        size = way.get("batch_size", 192)
        assert begun == [size] * (EPOCHS * (384 // size))
        for one, other in zip(found, expected, strict=True):
            assert one.train_terms == other.train_terms
            assert one.heldout_loss == other.heldout_loss


def test_the_rows_of_a_batch_are_on_their_way_before_the_step_before_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[int]] = []
    fetch = CachedView._fetch

    def noted(view: CachedView, positions: torch.Tensor) -> Any:
        begun.append(positions.tolist())
        return fetch(view, positions)

    monkeypatch.setattr(CachedView, "_fetch", noted)
    resident = given(make().view(0, MAPS))
    view = replace(resident, resident=False)
    order, size = torch.randperm(10), 3
    batches = [batch.tolist() for batch in torch.split(order, size)]
    for number, rows in enumerate(view.ahead(order, size)):
        assert begun == batches[: number + 2], "the next one, and no other"
        assert rows is not None
        taps, expected = view.taps(rows), resident.at(torch.tensor(batches[number]))
        for one, other in zip(taps.tensors(), expected.tensors(), strict=True):
            assert torch.equal(one, other)
    assert begun == batches
    assert list(resident.ahead(order, size)) == [None] * 4


def test_a_share_of_the_devices_memory_decides_what_goes_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given(make(device_share=0.0).view(0, LOGITS)).resident, "a CPU has no other memory"
    size = sum(column.nbytes for column in given(make().view(0, LOGITS)).columns.values())
    for memory, share, resident in (
        (2 * size, 0.5, True),
        (2 * size - 1, 0.5, False),
        (size, 1.0, True),
        (100 * size, 0.0, False),
    ):
        monkeypatch.setattr(cache_module, "device_memory", lambda device, of=memory: of)
        assert given(make(device_share=share).view(0, LOGITS)).resident == resident
    assert "device_share" not in CacheConfig().model_dump()
    assert (
        CacheConfig.model_validate(CacheConfig(device_share=0.2).model_dump()).device_share == 0.2
    )


# Shared by machines


def test_machines_share_what_one_has_computed(make: Make, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    one, two = tmp_path / "one", tmp_path / "two"
    assert given(make(one, shared=shared).view(0, MAPS)).computed
    found = given(make(two, shared=shared).view(0, MAPS))
    assert not found.computed
    assert found.seconds_saved > 0
    # A damaged copy is computed again, and then whole for the others.
    for path in cached_files(tmp_path / "shared"):
        os.truncate(path, 100)
    three = make(tmp_path / "three", shared=shared)
    with pytest.warns(UserWarning, match="damaged"):
        assert given(three.view(0, LOGITS)).computed
    assert not given(make(tmp_path / "four", shared=shared).view(0, LOGITS)).computed


def test_machines_that_want_a_view_at_the_same_time_compute_it_once(
    make: Make, tmp_path: Path
) -> None:
    def on_machine(number: int) -> CachedView:
        cache = make(tmp_path / f"machine{number}", shared=str(tmp_path / "shared"))
        return given(cache.view(0, MAPS))

    with ThreadPoolExecutor(3) as pool:
        views = list(pool.map(on_machine, range(3)))
    assert sum(view.computed for view in views) == 1


@dataclass
class Share:
    """A shared folder on a file system that may fail, as an object store does.

    Args:
        failing: the operations that fail.
        failures: how often they do; none: always.
        asked: the operations that were asked for.
        waited: seconds of waiting that were pretended.
        folder: where it is.
    """

    folder: Path
    failing: set[str] = field(default_factory=set)
    failures: int | None = None
    asked: Counter[str] = field(default_factory=Counter)
    waited: float = 0.0

    def ask(self, operation: str) -> None:
        self.asked[operation] += 1
        if operation in self.failing and self.failures != 0:
            if self.failures is not None:
                self.failures -= 1
            raise OSError("AWS Error NETWORK_CONNECTION: curlCode 7, couldn't connect")

    def open(self, uri: str) -> tuple[fs.FileSystem, str]:
        self.ask("open")
        local = fs.LocalFileSystem()

        def operation(name: str) -> Callable[..., Any]:
            def act(handler: object, *arguments: Any) -> Any:
                self.ask(name)
                if name == "get_file_info_selector":
                    return local.get_file_info(*arguments)
                if name == "create_dir":
                    return local.create_dir(arguments[0], recursive=arguments[1])
                if name == "open_output_stream":
                    return local.open_output_stream(arguments[0])
                return getattr(local, name)(*arguments)

            return act

        operations = {name: operation(name) for name in fs.FileSystemHandler.__abstractmethods__}
        operations["get_type_name"] = lambda handler: "share"
        operations["normalize_path"] = lambda handler, path: path
        handler = type("Handler", (fs.FileSystemHandler,), operations)
        return fs.PyFileSystem(handler()), str(self.folder)


EVERYTHING = {"open", *fs.FileSystemHandler.__abstractmethods__} - {"get_type_name"}


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    """What `shared` opens; nobody waits for real."""
    share = Share(tmp_path / "shared")
    opened = SimpleNamespace(from_uri=share.open)
    replaced = SimpleNamespace(**vars(fs) | {"FileSystem": opened})
    monkeypatch.setattr("kdcore.teacher_cache.shared.fs", replaced)

    def sleep(seconds: float) -> None:
        share.waited += seconds

    clock = SimpleNamespace(monotonic=lambda: share.waited, sleep=sleep)
    monkeypatch.setattr("kdcore.teacher_cache.patience.time", clock)
    return share


URI = "s3://bucket/cache"


def test_trials_go_on_without_a_shared_cache_that_stays_away(
    run: Run, share: Share, tmp_path: Path
) -> None:
    share.failing = EVERYTHING
    with pytest.warns(UserWarning, match="shared cache") as caught:
        reports = run("kd", CacheConfig(shared=URI), tmp_path)
    assert [report.teacher for report in reports] == ["computed"] * EPOCHS
    (warning,) = caught
    assert str(warning.message).startswith(f"the shared cache {URI} fails (AWS Error NETWORK")
    assert PATIENCE_SECONDS < share.waited < 1.1 * PATIENCE_SECONDS, "once, not for every view"
    # Nor does another trial of this machine wait.
    reports = run("kd", CacheConfig(shared=URI, precision="float32"), tmp_path)
    assert {report.teacher for report in reports} == {"computed"}
    assert share.waited < 1.1 * PATIENCE_SECONDS


def test_a_shared_cache_that_comes_back_was_waited_for(
    make: Make, share: Share, tmp_path: Path
) -> None:
    make(tmp_path / "one", shared=URI).view(0, LOGITS)
    share.failing, share.failures = EVERYTHING, 3
    assert not given(make(tmp_path / "two", shared=URI).view(0, LOGITS)).computed
    assert 0 < share.waited < PATIENCE_SECONDS


def test_a_shared_cache_that_was_away_is_looked_for_again(
    make: Make, share: Share, tmp_path: Path
) -> None:
    for view in (0, 1):
        make(tmp_path / "one", shared=URI).view(view, LOGITS)
    share.failing = EVERYTHING
    with pytest.warns(UserWarning, match="goes on without it"):
        assert given(make(tmp_path / "two", shared=URI).view(0, LOGITS)).computed
    (mark,) = (tmp_path / "two" / FOLDER).glob("*.away")
    os.utime(mark, ns=(0, 0))
    waited = share.waited
    with pytest.warns(UserWarning, match="goes on without it"):
        assert given(make(tmp_path / "two", shared=URI).view(1, MAPS)).computed
    assert share.waited == waited, "it was looked for once, without waiting"
    share.failing = set()
    asked = share.asked.total()
    assert given(make(tmp_path / "two", shared=URI).view(2, LOGITS)).computed
    assert share.asked.total() == asked, "not so soon after"
    os.utime(mark, ns=(0, 0))
    make(tmp_path / "one", shared=URI).view(3, LOGITS)
    assert not given(make(tmp_path / "two", shared=URI).view(3, LOGITS)).computed
    assert not mark.exists()


@pytest.mark.parametrize(
    "operation",
    ["create_dir", "open_output_stream", "get_file_info_selector", "move", "delete_file"],
)
def test_whatever_fails_the_computed_view_is_kept(
    operation: str, make: Make, share: Share, tmp_path: Path
) -> None:
    share.failing = {operation}
    with pytest.warns(UserWarning, match="shared cache") as caught:
        view = given(make(shared=URI).view(0, LOGITS))
    assert view.computed
    assert len(caught) == 1
    assert not given(make().view(0, LOGITS)).computed
    assert share.asked[operation] > 0
    assert list(tmp_path.rglob(".*")) == []


def test_a_damaged_copy_that_cannot_be_removed_is_computed_again(
    make: Make, share: Share, tmp_path: Path
) -> None:
    make(tmp_path / "one", shared=URI).view(0, LOGITS)
    (copy,) = cached_files(tmp_path / "shared")
    os.truncate(copy, 100)
    share.failing = {"delete_file"}
    with pytest.warns(UserWarning, match=r"damaged|shared cache") as caught:
        assert given(make(tmp_path / "two", shared=URI).view(0, LOGITS)).computed
    damaged, failing = (str(warning.message) for warning in caught)
    assert "damaged" in damaged
    assert "goes on without it" in failing
    assert not given(make(tmp_path / "three", shared=URI).view(0, LOGITS)).computed
