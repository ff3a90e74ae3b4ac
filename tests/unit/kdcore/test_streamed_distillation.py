"""Distilling on images that are decoded while training: the same numbers whoever decodes them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore import DataConfig, EpochReport, Recipe, TeacherConfig, TermConfig, TrialConfig, distill
from kdcore.data import decoding_pool
from tests.unit.kdcore.photographs import rows_of, write_folders, write_parquet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in both forms."""
    folder = write_folders(tmp_path_factory.mktemp("files"), {"train": 24, "test": 4})
    rows = tmp_path_factory.mktemp("rows")
    for part in ("train", "test"):
        write_parquet(rows / f"{part}-{{}}.parquet", rows_of(folder / part), files=2)
    return {"image_folder": folder, "parquet": rows}


Run = Callable[..., Iterator[EpochReport]]


@pytest.fixture(scope="module")
def run(roots: dict[str, Path], workspace: Path) -> Run:
    def start(name: str, checkpoint_dir: Path | None = None) -> Iterator[EpochReport]:
        recipe = Recipe(epochs=2, batch_size=16, acceleration="off")
        config = TrialConfig(
            data=DataConfig(
                name=name, root=roots[name], image_size=(32, 32), heldout_fraction=0.25
            ),
            teacher=TeacherConfig(backbone="resnet14", training=recipe),
            student="resnet8",
            objective=(TermConfig.model_validate({"method": "kd"}),),
            training=recipe,
        )
        return distill(config, workspace=workspace, checkpoint_dir=checkpoint_dir, device=CPU)

    return start


def timeless(reports: Iterator[EpochReport]) -> list[dict[str, Any]]:
    return [asdict(report) | {"epoch_seconds": None, "seconds_by_part": None} for report in reports]


@pytest.fixture(scope="module")
def expected(run: Run) -> list[dict[str, Any]]:
    return timeless(run("image_folder"))


def test_files_and_rows_give_the_same_reports(run: Run, expected: list[dict[str, Any]]) -> None:
    assert timeless(run("parquet")) == expected
    assert expected[1]["train_loss"] < expected[0]["train_loss"]
    assert expected[1]["heldout_accuracy"] > 1 / 3


def test_processes_that_decode_change_nothing(
    run: Run, expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by more threads: sums come out in the same bits only for one number of threads.
    monkeypatch.setattr("kdcore.data.streamed_split._processes", lambda device: 2)
    assert timeless(run("image_folder")) == expected
    assert 2 in decoding_pool._pools


@pytest.mark.parametrize("name", ["image_folder", "parquet"])
def test_an_interrupted_run_goes_on_to_the_same_reports(
    name: str, run: Run, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    reports = run(name, tmp_path)
    first = next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert timeless(iter([first])) + timeless(run(name, tmp_path)) == expected
    assert os.listdir(tmp_path)
