"""Students and teachers that begin with weights, from the file to the leaderboard and the card."""

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from kdcore import distill
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.normalization import Normalization
from kdcore.data.image_data import ImageData
from kdcore.networks.classifier import (
    build_classifier,
    describe_classifier,
    load_card,
    save_classifier,
)
from search.cli.launching import check
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.space.point import IS_CONTROL
from search.experiment.space.trial_config import trial_config
from search.export.export import export_best
from search.leaderboard.formats import as_bytes
from search.leaderboard.ranking import leaderboard
from search.leaderboard.tables import leaderboard_table
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage
from search.record.trial_checkpoints import Checkpoints, trial_folder
from search.session.preflight import Plan, plan, starts
from tests.synthetic import finished_search


def weights(path: Path, network: str = "resnet8", classes: int = 10, channels: int = 1) -> Path:
    made = build_backbone(network, num_classes=classes, in_channels=channels, seed=3)
    save_file(made.state_dict(), path)
    return path


def planned(folder: Path, **changes: Any) -> Plan:
    content: dict[str, Any] = {
        "name": "task",
        "data": {"name": "digits"},
        "teacher": {"backbone": "resnet14", "training": {"epochs": 2}},
        "student": "resnet8",
        "objective": [["none", "kd"]],
        "training": {"epochs": 3},
        "search": {"trials": 4},
    }
    return plan(parse_experiment(content | changes, ""), Storage(str(folder)), "task.yaml")


def test_each_student_has_a_control_from_its_own_weights(tmp_path: Path) -> None:
    file = weights(tmp_path / "small.safetensors", classes=5, channels=3)
    pretrained = {"backbone": "resnet8", "weights": str(file)}
    prepared = planned(tmp_path, student=["resnet8", pretrained])
    assert dict(prepared.space.describe())["student"] == "resnet8, resnet8 (small.safetensors)"
    points = prepared.space.first_points()
    controls = [trial_config(prepared.experiment, p) for p in points if p.get(IS_CONTROL)]
    assert [control.student.label for control in controls] == [
        "resnet8",
        "resnet8 (small.safetensors)",
    ]
    assert [control.student.weights for control in controls] == [None, file]


def test_check_tells_what_is_kept_replaced_adapted_and_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = weights(tmp_path / "small.safetensors", classes=5, channels=3)
    big = weights(tmp_path / "big.safetensors", "resnet14", classes=5)
    (tmp_path / "task.yaml").write_text(
        "data: {name: digits}\n"
        f"teacher: {{backbone: resnet14, weights: {big}, training: {{epochs: 2, linear_probe: "
        "true}}\n"
        f"student: {{backbone: resnet8, weights: {small}}}\n"
        "objective: [[none, kd]]\nsearch: {trials: 4}\n"
        "training: {epochs: 2, acceleration: 'off', frozen_stages: 1, layer_decay: 0.8}\n"
    )
    threads = torch.get_num_threads()
    check(tmp_path / "task.yaml", storage=str(tmp_path))
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    new_head = "new head fc.weight, fc.bias for 10 classes instead of 5"
    assert (
        f"\nstart    teacher resnet14: weights file {big}: 75 of 77 tensors kept, {new_head}; "
        "trained: the head alone\n"
    ) in printed
    assert (
        f"\nstart    student resnet8 (small.safetensors): weights file {small}: 44 of 47 tensors "
        f"kept, {new_head}, conv1.weight adapted from 3 channels to 1; trained: all but stem, "
        "stage1\n"
    ) in printed
    assert "first 1 stages frozen" in printed


def test_what_cannot_work_is_told_before_anything_is_launched(tmp_path: Path) -> None:
    fine = weights(tmp_path / "fine.safetensors")
    others = weights(tmp_path / "others.safetensors", classes=5)
    coloured = weights(tmp_path / "coloured.safetensors", channels=3)
    foreign = weights(tmp_path / "foreign.safetensors", "resnet20")
    missing = tmp_path / "missing.pt"
    adapts = "Add training, which adapts the weights"
    student = {"backbone": "resnet8", "weights": fine}
    for changes, key, words in (
        ({"teacher": {"backbone": "resnet8", "weights": others}}, "teacher.weights", adapts),
        ({"teacher": {"backbone": "resnet8", "weights": coloured}}, "teacher.weights", adapts),
        ({"teacher": {"backbone": "resnet8", "weights": foreign}}, "teacher.weights", "unexpected"),
        ({"teacher": {"backbone": "resnet8", "weights": missing}}, "teacher.weights", "no such"),
        (
            {
                "teacher": {
                    "backbone": "resnet8",
                    "weights": fine,
                    "training": {"epochs": 1, "frozen_stages": 3},
                }
            },
            "teacher",
            "frozen_stages is 3, but resnet8 has 3 stages, so at most 2; linear_probe: true",
        ),
        ({"student": {"backbone": "resnet8", "weights": foreign}}, "student", "unexpected"),
        ({"student": {"backbone": "resnet8", "weights": missing}}, "student", "no such file"),
        (
            {"student": student, "training": {"epochs": 3, "frozen_stages": 7}},
            "student",
            "frozen_stages is 7, but resnet8 has 3 stages",
        ),
        (
            {
                "student": student,
                "training": {"epochs": 3, "linear_probe": True},
                "objective": [["none", "kd", "rkd"]],
            },
            "objective",
            "rkd cannot teach resnet8: it reads embedding, which linear_probe leaves",
        ),
        (
            {
                "student": student,
                "training": {"epochs": 3, "linear_probe": [False, True]},
                "objective": [["none", "kd", "rkd"]],
            },
            "objective",
            "rkd cannot teach resnet8: it reads embedding, which linear_probe leaves",
        ),
        (
            {
                "student": student,
                "training": {"epochs": 3, "frozen_stages": {"low": 0, "high": 3, "log": False}},
            },
            "student",
            "frozen_stages is 3, but resnet8 has 3 stages, so at most 2",
        ),
        (
            {
                "student": student,
                "training": {"epochs": 3, "frozen_stages": 1},
                "objective": [["none", "at"]],
                "narrow": {"at.layers": ["stage1:stage1"]},
            },
            "objective",
            "at cannot teach resnet8: stage1 of the student is frozen; freeze fewer stages",
        ),
    ):
        with pytest.raises(ExperimentError) as caught:
            planned(tmp_path, **changes)
        (problem,) = caught.value.problems
        assert problem.key == key
        assert words in problem.message
    assert starts(planned(tmp_path, student=student)) == [
        f"start    student resnet8 (fine.safetensors): weights file {fine}: 47 of 47 tensors kept; "
        "trained: all of it"
    ]
    assert starts(planned(tmp_path)) == []


# Results


def trial(number: int, student: str, accuracy: float = 0.9) -> TrialRecord:
    return TrialRecord(
        number=number,
        student=student,
        point={"objective.1": "none", "student": student},
        objective="none",
        state="finished",
        epochs=2,
        epochs_done=2,
        best_epoch=1,
        heldout_accuracy=accuracy,
    )


def shown(record: SearchRecord) -> str:
    console = Console(width=140, file=io.StringIO())
    with console.capture() as captured:
        console.print(leaderboard_table(record))
    return captured.get()


def test_the_leaderboard_says_who_is_pretrained_where_somebody_is() -> None:
    label = "timm/mobilenetv3_small_050 (DEFAULT)"
    students = ["resnet8", {"backbone": "timm/mobilenetv3_small_050", "weights": "DEFAULT"}]
    trials = trial(0, "resnet8"), trial(1, label, 0.95)
    record = finished_search(trials, {"student": students})
    assert {row.trial: row.pretrained for row in leaderboard(record)} == {0: False, 1: True}
    lines = shown(record).splitlines()
    (row,) = (line for line in lines if label in line)
    assert "yes" in row
    assert any("student" in line and "pretrained" in line for line in lines)
    assert b"| pretrained |" in as_bytes(record, "markdown")
    assert [row["pretrained"] for row in json.loads(as_bytes(record, "json"))] == [True, False]
    plain = finished_search(trials[:1])
    assert "pretrained" not in shown(plain)
    assert b"pretrained" not in as_bytes(plain, "markdown")


def test_an_exported_student_tells_where_it_began_and_needs_those_weights_no_more(
    digits: ImageData, tmp_path: Path
) -> None:
    first = tmp_path / "first-1" / "best"
    own = Normalization((0.25,), (0.5,))
    given = build_classifier("resnet8", digits, seed=3, normalization=own)
    card = describe_classifier(given, "resnet8", digits, {}, {"search": "first-1", "trial": "3"})
    save_classifier(first, "student", given, card)
    experiment = {
        "data": digits.config.model_dump(mode="json"),
        "student": {"backbone": "resnet8", "weights": str(first)},
        "training": {"epochs": 2, "acceleration": "off"},
    }
    label = "resnet8 (first-1/best)"
    config = trial_config(finished_search((), experiment).experiment, trial(0, label).point)
    reports = list(distill(config, workspace=tmp_path / "runs", checkpoint_dir=tmp_path / "run"))
    storage, place = Storage(str(tmp_path / "runs")), trial_folder("task-1", 0)
    Checkpoints(storage, place).save(tmp_path / "run", [asdict(report) for report in reports])
    best = reports[-1]
    trained = trial(0, label, best.best_heldout_accuracy).model_copy(
        update={"checkpoint": place, "best_epoch": best.best_epoch}
    )
    shutil.rmtree(first)
    exported = export_best(
        finished_search((trained,), experiment), storage, tmp_path / "best", open_test=False
    )
    card = load_card(exported.folder, "student")
    assert (card.backbone, card.mean, card.std) == ("resnet8", *own)
    assert card.start["weights"] == "first-1/best"
    assert (card.start["search"], card.start["trial"]) == ("first-1", "3")
    text = (exported.folder / "README.md").read_text()
    assert f"# {label}, trained without a teacher" in text
    assert "- began with: weights first-1/best (sha256 " in text
    assert "search first-1, trial 3): 47 of 47 tensors kept\n" in text
