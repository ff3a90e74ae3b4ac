"""Where the time of an epoch goes."""

import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdcore import DataConfig, Recipe, TeacherConfig, TermConfig, TrialConfig, distill
from kdcore.data import decoding
from kdcore.teacher_cache.config import CacheConfig
from kdcore.training import loop
from kdcore.training.timeline import Timeline
from tests.unit.kdcore.photographs import write_folders

CPU = torch.device("cpu")


def test_each_mark_ends_a_part_and_the_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    timeline = Timeline(CPU)

    def batches() -> Any:
        nonlocal now
        for _ in range(3):
            now += 10
            yield torch.zeros(1)

    for _ in timeline.steps(batches()):
        now += 1
        timeline.mark("student")
        now += 2
        timeline.mark("teacher")
        now += 4
    now += 100
    timeline.mark("evaluation")
    parts = timeline.seconds(decoding_share=0.9)
    expected = {
        "decoding": 27.0,
        "augmenting": 3.0,
        "teacher": 6.0,
        "student": 15.0,
        "evaluation": 100.0,
    }
    assert parts == pytest.approx(expected)
    assert sum(parts.values()) == pytest.approx(now)


def test_on_a_gpu_marks_are_events_that_are_read_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, waited = count(), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.place = next(clock)

        def synchronize(self) -> None:
            waited.append(self.place)

        def elapsed_time(self, end: "Event") -> float:
            return 1000.0 * (end.place - self.place)

    capturing = False
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    timeline = Timeline(SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    for number, _ in enumerate(timeline.steps([torch.zeros(1)] * 4)):
        capturing = number >= 2  # a graph's step has no events inside
        timeline.mark("student")
        timeline.mark("teacher")
        capturing = False
    timeline.mark("evaluation")
    assert waited == []
    parts = timeline.seconds(decoding_share=0.5)
    expected = {"decoding": 2, "augmenting": 2, "student": 6, "teacher": 2, "evaluation": 1}
    assert parts == pytest.approx(expected)
    assert len(waited) == 1


def test_a_trial_reports_what_is_slow_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    """Each part sleeps for a time of its own, which is the least that it can take."""
    root = write_folders(tmp_path / "root", {"train": 16, "test": 4})
    monkeypatch.setattr("kdcore.data.streamed_split._processes", lambda device: 0)
    opened, evaluate = decoding.opened_image, loop.evaluate_classes
    slow = {"decoding": 0.0, "evaluation": 0.0}

    def slowly_opened(*arguments: Any) -> Any:
        time.sleep(slow["decoding"])
        return opened(*arguments)

    def slowly_evaluated(*arguments: Any) -> Any:
        time.sleep(slow["evaluation"])
        return evaluate(*arguments)

    monkeypatch.setattr(decoding, "opened_image", slowly_opened)
    monkeypatch.setattr(loop, "evaluate_classes", slowly_evaluated)
    recipe = Recipe(epochs=1, batch_size=12, acceleration="off")
    config = TrialConfig(
        data=DataConfig(
            name="image_folder", root=root, image_size=(32, 32), heldout_fraction=0.25, views=1
        ),
        teacher=TeacherConfig(backbone="resnet8", training=recipe),
        student="resnet8",
        objective=(TermConfig.model_validate({"method": "kd"}),),
        training=recipe,
        cache=CacheConfig(),
    )
    (computed,) = distill(config, workspace=workspace, device=CPU)
    slow |= {"decoding": 0.01, "evaluation": 0.3}
    (report,) = distill(config, workspace=workspace, checkpoint_dir=tmp_path / "c", device=CPU)
    parts = report.seconds_by_part
    assert computed.teacher == "computed"
    assert report.teacher == "cached"
    assert set(parts) == {
        *("decoding", "augmenting", "teacher", "student", "evaluation", "checkpoint")
    }
    assert min(parts.values()) > 0
    assert parts["decoding"] >= 36 * 0.01
    assert parts["evaluation"] >= 0.3 + 12 * 0.01
    assert sum(parts.values()) <= report.epoch_seconds
    assert sum(parts.values()) > 0.9 * report.epoch_seconds
