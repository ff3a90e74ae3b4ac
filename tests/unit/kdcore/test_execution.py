"""Precision and layout: measured once, the same for all trials, and never a reason to fail."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdcore import execution
from kdcore.backbones import build_backbone
from kdcore.classifier import Classifier
from kdcore.execution import FILE_NAME, Execution, fastest_execution, usual_execution

CPU = torch.device("cpu")

# 64 MiB are 16,384 pages.
FAULTS = """
import resource, torch
from kdcore.execution import keep_freed_memory

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


def chosen(classifier: Classifier, workspace: Path, batch_size: int = 8) -> Execution:
    return fastest_execution("resnet8", classifier, (8, 8), batch_size, CPU, workspace)


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[Execution, float]) -> list[Execution]:
    """Lets each way take a given time; returns those that were measured."""
    measured: list[Execution] = []

    def step(network: object, images: object, way: Execution) -> Callable[[], float]:
        measured.append(way)
        return lambda: seconds.get(way, 9.0)

    monkeypatch.setattr(execution, "_step", step)
    monkeypatch.setattr(execution, "gains_by_bfloat16", lambda device: True)
    return measured


def test_the_fastest_way_is_taken_and_kept_for_the_workspace(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contiguous = Execution(bfloat16=True, channels_last=False)
    measured = pretend(monkeypatch, {usual_execution(CPU): 2.0, contiguous: 1.0})
    assert chosen(classifier, tmp_path) == contiguous
    assert len(measured) == 5
    assert chosen(classifier, tmp_path) == contiguous
    assert len(measured) == 5  # found
    chosen(classifier, tmp_path, batch_size=16)
    assert len(measured) == 10  # another case


def test_a_gain_within_the_noise_changes_nothing(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {usual_execution(CPU): 1.0, Execution(True, False): 0.97})
    assert chosen(classifier, tmp_path) == Execution(True, True, True)


def test_bfloat16_is_not_tried_where_the_hardware_lacks_it(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = pretend(monkeypatch, {})
    monkeypatch.setattr(execution, "gains_by_bfloat16", lambda device: False)
    chosen(classifier, tmp_path)
    assert measured == [Execution(), Execution(channels_last=True)]


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
