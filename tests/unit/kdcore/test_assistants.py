"""Assistants between teacher and student: how they learn, and that they then are teachers."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from kdcore import EpochReport, Recipe, TeacherConfig, TrialConfig, distill
from kdcore.data.config import DataConfig
from kdcore.data.image_data import ImageData
from kdcore.distillation.config import TermConfig
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import load_card
from kdcore.teacher.teacher import load_teacher, prepare_teacher, teacher_folder
from kdcore.training.loop import best_student
from tests.cases import Case

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def assisted(teacher_config: TeacherConfig) -> TeacherConfig:
    return TeacherConfig.model_validate(
        teacher_config.model_dump(mode="json") | {"assistants": ["resnet8"]}
    )


def timeless(reports: list[EpochReport]) -> list[dict[str, Any]]:
    times = {"epoch_seconds", "seconds_by_part"}
    return [
        {field: value for field, value in asdict(report).items() if field not in times}
        for report in reports
    ]


def test_an_assistant_is_a_student_of_kd_as_published(
    assisted: TeacherConfig,
    teacher_config: TeacherConfig,
    teacher_dir: Path,
    digits: ImageData,
    digits_config: DataConfig,
    workspace: Path,
    tmp_path: Path,
) -> None:
    reports = list(prepare_teacher(assisted, digits, workspace, CPU))
    folder = teacher_folder(assisted, digits, workspace)
    assert folder.name.startswith("digits-resnet8-")
    assert load_card(folder, "teacher").backbone == "resnet8"
    assert list(prepare_teacher(assisted, digits, workspace, CPU)) == []
    settings = CATALOGUE["kd"].published_on("cifar").settings
    assert teacher_config.training is not None
    alone = TrialConfig(
        data=digits_config,
        teacher=teacher_config,
        student={"backbone": "resnet8"},
        objective=(TermConfig.model_validate({"method": "kd", "params": settings}),),
        training=teacher_config.training,
        seed=teacher_config.seed,
    )
    again = list(distill(alone, workspace=workspace, checkpoint_dir=tmp_path, device=CPU))
    assert timeless(reports) == timeless(again)
    best = best_student(tmp_path)["student"]
    weights = load_teacher(folder).backbone.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in best.items())


def test_a_chain_has_each_of_its_networks_once_and_goes_on_where_it_was_cut_off(
    assisted: TeacherConfig, digits: ImageData, tmp_path: Path
) -> None:
    chain = assisted.model_copy(update={"assistants": ("resnet14", "resnet8")})
    whole = list(prepare_teacher(chain, digits, tmp_path / "whole", CPU))
    assert [report.epoch for report in whole] == [1, 2] * 3
    assert chain.above.above == assisted.above
    folders = sorted(path.name for path in (tmp_path / "whole/teachers").iterdir() if path.is_dir())
    assert len(folders) == 3
    assert teacher_folder(chain, digits, tmp_path / "whole").name in folders
    # Cut off in the second of the three trainings.
    begun = list(islice(prepare_teacher(chain, digits, tmp_path / "cut", CPU), 3))
    later = list(prepare_teacher(chain, digits, tmp_path / "cut", CPU))
    assert timeless(begun + later) == timeless(whole)


def test_a_student_learns_from_the_last_assistant(
    assisted: TeacherConfig, digits_config: DataConfig, workspace: Path
) -> None:
    config = TrialConfig(
        data=digits_config,
        teacher=assisted,
        student={"backbone": "resnet8"},
        # Its maps are of as many channels as the student's, unlike the teacher's.
        objective=(TermConfig.model_validate({"method": "at"}),),
        training=Recipe(epochs=1, batch_size=32, acceleration="off"),
    )
    (report,) = distill(config, workspace=workspace, device=CPU)
    assert report.train_terms["at"] > 0
    assert config.teacher.network == "resnet8"
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config


def test_without_assistants_a_teacher_is_written_as_before(
    teacher_config: TeacherConfig, assisted: TeacherConfig, digits: ImageData, tmp_path: Path
) -> None:
    assert "assistants" not in teacher_config.model_dump()
    assert assisted.above == teacher_config
    names = [
        teacher_folder(each, digits, tmp_path).name
        for each in (
            teacher_config,
            assisted,
            assisted.model_copy(update={"seed": 1}),
            assisted.model_copy(update={"assistants": ("resnet14", "resnet8")}),
        )
    ]
    assert len(set(names)) == 4
    assert assisted.name == "resnet14 via resnet8"
    assert teacher_config.name == teacher_config.network == "resnet14"


def test_assistants_need_a_known_network_and_a_recipe_for_fresh_weights(tmp_path: Path) -> None:
    recipe = {"epochs": 2}
    for keys, words in (
        ({"training": recipe, "assistants": ["resnet9"]}, "did you mean 'resnet"),
        ({"weights": str(tmp_path / "w.pt"), "assistants": ["resnet8"]}, "that is missing; give"),
        (
            {
                "weights": str(tmp_path / "w.pt"),
                "training": recipe | {"linear_probe": True},
                "assistants": ["resnet8"],
            },
            "assistant resnet8",
        ),
        ({"training": recipe, "assistants": "resnet8"}, "tuple"),
    ):
        with Case(keys), pytest.raises(ValidationError, match=words):
            TeacherConfig.model_validate({"backbone": "resnet14"} | keys)
