"""Precision and layout: measured once, the same for all trials, and never a reason to fail."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import FILE_NAME, candidates, fastest_execution, fastest_training
from kdcore.networks.classifier import Classifier
from kdcore.networks.cost import TrainingCost

CPU = torch.device("cpu")

# 64 MiB are 16,384 pages.
FAULTS = """
import resource, torch
from kdcore.execution.fastest import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(2 * 2**20) for _ in range(8)]
    del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print([faults() for _ in range(12)])
"""


@pytest.fixture
def classifier() -> Classifier:
    network = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
    return Classifier(network, (0.5,), (0.25,))


def chosen(classifier: Classifier, workspace: Path, batch_size: int | None = 16) -> Execution:
    return fastest_execution("resnet8", classifier, (8, 8), CPU, workspace, batch_size=batch_size)


@dataclass
class Pretended:
    """A processor that takes given seconds for an image in each way; else nine."""

    seconds: dict[Execution, float]
    images: dict[Execution, list[int]] = field(default_factory=dict)

    def step(
        self, network: object, way: Execution, device: object, *, learns: bool
    ) -> Callable[[Tensor], float]:
        def step(images: Tensor) -> float:
            self.images.setdefault(way, []).append(len(images))
            return len(images) * self.seconds.get(way, 9.0)

        return step


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[Execution, float]], Pretended]:
    def start(seconds: dict[Execution, float]) -> Pretended:
        processor = Pretended(seconds)
        monkeypatch.setattr("kdcore.execution.fastest._step", processor.step)
        return processor

    return start


Pretend = Callable[[dict[Execution, float]], Pretended]


def test_the_fastest_way_is_taken_and_kept_for_the_workspace(
    classifier: Classifier, tmp_path: Path, pretend: Pretend
) -> None:
    for fastest in candidates(CPU):
        workspace = tmp_path / str(fastest)
        processor = pretend(dict.fromkeys(candidates(CPU), 1.0) | {fastest: 0.9})
        assert chosen(classifier, workspace) == fastest
        assert processor.images.keys() == set(candidates(CPU))
        processor.images.clear()
        assert chosen(classifier, workspace) == fastest
        assert not processor.images  # found
        chosen(classifier, workspace, batch_size=32)
        assert max(processor.images[fastest]) == 32  # another case
        chosen(classifier, workspace, batch_size=None)
        assert max(processor.images[fastest]) > 32  # and another


def test_another_version_of_torch_is_measured_anew(
    classifier: Classifier, tmp_path: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = pretend({})
    for version in ("2.8.0", "2.9.0"):
        monkeypatch.setattr(torch, "__version__", version)
        processor.images.clear()
        chosen(classifier, tmp_path)
        assert processor.images


def test_a_gain_within_the_noise_changes_nothing(
    classifier: Classifier, tmp_path: Path, pretend: Pretend
) -> None:
    pretend(dict.fromkeys(candidates(CPU), 0.97) | {Execution(): 1.0})
    assert chosen(classifier, tmp_path) == Execution()


def test_an_unknown_precision_costs_one_step_of_few_images(
    classifier: Classifier, tmp_path: Path, pretend: Pretend
) -> None:
    processor = pretend(
        {way: 20.0 if way.precision == "bfloat16" else 1.0 for way in candidates(CPU)}
    )
    assert chosen(classifier, tmp_path, batch_size=64) == Execution()
    (tried,) = (images for way, images in processor.images.items() if way.precision == "bfloat16")
    assert tried == [8]


def test_what_is_far_behind_gets_no_whole_batch(
    classifier: Classifier, tmp_path: Path, pretend: Pretend
) -> None:
    slow = Execution("float32", channels_last=True)
    processor = pretend(dict.fromkeys(candidates(CPU), 1.0) | {slow: 1.6})
    chosen(classifier, tmp_path, batch_size=64)
    assert processor.images[slow] == [8, 8]


def test_an_estimate_measures_a_step_in_the_ways_that_a_training_would_choose_from(
    classifier: Classifier, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[torch.memory_format, bool]] = []

    def cost(network: Backbone, size: object, batch: int, device: object) -> TrainingCost:
        weight = next(
            each for each in network.parameters() if each.dim() == 4 and each.shape[1] > 1
        )
        last = weight.is_contiguous(memory_format=torch.channels_last)
        placed.append((last, torch.is_autocast_enabled("cpu")))
        return TrainingCost(float(10 - len(placed)), batch)

    monkeypatch.setattr("kdcore.execution.fastest.measure_training", cost)
    half = Execution("bfloat16", channels_last=True)
    pretend({half: 1.0, Execution("float32", channels_last=True): 1.2})
    found = fastest_training(classifier.backbone, (8, 8), 64, CPU)
    assert placed == [(True, False), (True, True)]
    assert found == TrainingCost(8.0, 64)
    placed.clear()
    fastest_training(classifier.backbone, (8, 8), 64, CPU, accelerated=False)
    assert placed == [(False, False)]


@pytest.mark.parametrize("learns", [True, False])
def test_measuring_works_on_this_machine(
    learns: bool, classifier: Classifier, tmp_path: Path
) -> None:
    assert chosen(classifier, tmp_path, 16 if learns else None) in candidates(CPU)


def test_gpus_without_bfloat16_compute_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, half in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda known=supported, **options: known
        )
        ways = candidates(torch.device("cuda"))
        assert ways[0] == Execution()
        assert {way.precision for way in ways} == {"float32", half}
        assert not any(way.side_by_side for way in ways)


def test_a_way_is_restored_from_a_checkpoint_also_of_the_first_version() -> None:
    for way in (*candidates(CPU), Execution("float16")):
        assert Execution.restored(asdict(way)) == way
    for bfloat16, precision in ((True, "bfloat16"), (False, "float32")):
        stored = {"bfloat16": bfloat16, "channels_last": True, "side_by_side": False}
        assert Execution.restored(stored) == Execution(precision, True, False)  # type: ignore[arg-type]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^precision is 'float8', but must be one of float32, "):
        Execution("float8")  # type: ignore[arg-type]


def test_measuring_leaves_the_network_and_the_random_state_as_they_were(
    classifier: Classifier, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    state = torch.get_rng_state()
    chosen(classifier, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"case": {"unknown": 1}}'])
def test_damaged_answers_are_measured_again(
    classifier: Classifier, tmp_path: Path, content: str
) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    assert chosen(classifier, tmp_path) == chosen(classifier, tmp_path)
    assert "resnet8" in (tmp_path / FILE_NAME).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    command = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    *_, last = json.loads(printed)
    assert last < 100
