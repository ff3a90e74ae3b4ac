"""An ensemble of teachers: what it answers, where it lies, and what can learn from it."""

from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from kdcore import CacheConfig, EnsembleConfig, Recipe, TeacherConfig, TrialConfig, distill
from kdcore.backbones.catalogue import constructor_of
from kdcore.backbones.ensemble import log_mean_probabilities
from kdcore.contract.taps import STUDENTS_ALONE, Tap
from kdcore.data.config import DataConfig
from kdcore.data.image_data import ImageData
from kdcore.distillation.config import TermConfig
from kdcore.distillation.distill import build_terms, network_pair
from kdcore.distillation.method_check import MethodCheck
from kdcore.errors import NetworkError
from kdcore.execution.execution import Execution
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import build_classifier
from kdcore.teacher.teacher import load_teacher, prepare_teacher, teacher_folder
from tests.cases import Case

CPU = torch.device("cpu")
NAME = "ensemble(resnet14,resnet8)"


@pytest.fixture(scope="session")
def ensemble_config(teacher_config: TeacherConfig) -> EnsembleConfig:
    """Of two networks with different normalisations."""
    recipe = Recipe(epochs=1, batch_size=32, acceleration="off")
    other = TeacherConfig(backbone="resnet8", training=recipe, mean=(0.25,), std=(0.5,))
    return EnsembleConfig(ensemble=(teacher_config, other))


@pytest.fixture(scope="session")
def ensemble_dir(
    ensemble_config: EnsembleConfig, teacher_dir: Path, digits: ImageData, workspace: Path
) -> Path:
    reports = list(prepare_teacher(ensemble_config, digits, workspace, CPU))
    assert [report.epochs for report in reports] == [1], "the first of its teachers was there"
    return teacher_folder(ensemble_config, digits, workspace)


def test_its_logits_are_the_logarithm_of_the_mean_of_probabilities() -> None:
    draw = torch.Generator().manual_seed(0)
    for size in (1, 2, 5):
        logits = 9 * torch.randn(size, 4, 7, generator=draw)
        found = log_mean_probabilities(list(logits))
        mean = torch.stack([torch.softmax(each.double(), 1) for each in logits]).mean(0)
        torch.testing.assert_close(found.double(), mean.log(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.exp().sum(1), torch.ones(4))
    far = log_mean_probabilities([torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])])
    torch.testing.assert_close(far, torch.full((1, 2), 0.5).log())


def test_each_network_sees_the_pixels_as_it_does_alone(
    ensemble_config: EnsembleConfig, ensemble_dir: Path, digits: ImageData, workspace: Path
) -> None:
    images = next(digits.heldout.batches(16))
    ensemble = load_teacher(ensemble_dir)
    folders = [teacher_folder(each, digits, workspace) for each in ensemble_config.ensemble]
    alone = [load_teacher(folder) for folder in folders]
    assert alone[0].normalization != alone[1].normalization
    probabilities = torch.stack([torch.softmax(each(images).double(), 1) for each in alone])
    answered = torch.softmax(ensemble(images).double(), 1)
    torch.testing.assert_close(answered, probabilities.mean(0), rtol=1e-5, atol=1e-6)
    for execution in (Execution(channels_last=True, side_by_side=True), Execution("bfloat16")):
        execution.place(ensemble, CPU)
        with execution.autocast(CPU):
            logits = ensemble(images)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.softmax(1).double(), answered, rtol=0.05, atol=0.02)
    assert ensemble.backbone.logits_only
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())


def test_it_is_one_teacher_that_is_made_once(
    ensemble_config: EnsembleConfig, ensemble_dir: Path, digits: ImageData, workspace: Path
) -> None:
    assert ensemble_config.network == ensemble_config.name == NAME
    assert ensemble_dir.name.startswith("digits-ensemble-")
    assert list(prepare_teacher(ensemble_config, digits, workspace, CPU)) == []
    first, second = ensemble_config.ensemble
    assert teacher_folder(first, digits, workspace).is_dir()
    turned = EnsembleConfig(ensemble=(second, first))
    longer = second.model_copy(update={"seed": 5})
    for other in (turned, EnsembleConfig(ensemble=(first, longer))):
        assert teacher_folder(other, digits, workspace) != ensemble_dir


def test_its_cached_outputs_are_those_of_the_live_ensemble(
    ensemble_config: EnsembleConfig,
    ensemble_dir: Path,
    digits_config: DataConfig,
    workspace: Path,
) -> None:
    recipe = Recipe(epochs=2, batch_size=32, acceleration="off")
    config = TrialConfig(
        data=digits_config,
        teacher=ensemble_config,
        student={"backbone": "resnet8"},
        objective=(TermConfig.model_validate({"method": "kd"}),),
        training=recipe,
    )
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config
    live, cached = (
        list(distill(config.model_copy(update={"cache": cache}), workspace=workspace, device=CPU))
        for cache in (None, CacheConfig(precision="float32"))
    )
    assert [report.teacher for report in cached] == ["computed", "computed"]
    for one, other in zip(live, cached, strict=True):
        fields = {"epoch_seconds": 0.0, "teacher": "", "teacher_seconds_saved": 0.0}
        fields |= {"seconds_by_part": {}}
        assert astuple(replace(one, **fields)) == astuple(replace(other, **fields))


def test_what_reads_logits_learns_from_it_and_all_else_is_refused(digits: ImageData) -> None:
    networks = network_pair("resnet8", NAME, digits)
    images = next(digits.train.views(torch.arange(8), 0, 8))
    check = MethodCheck(
        build_classifier("resnet8", digits, seed=0),
        build_classifier(NAME, digits, seed=0),
        networks,
        images,
        torch.arange(8) % 3,
    )
    of_logits = {Tap.LOGITS, Tap.STRONG_LOGITS} | STUDENTS_ALONE
    learned = set()
    for name, method in CATALOGUE.items():
        term = TermConfig.model_validate({"method": name})
        with Case(name):
            reason = check.attempt(term)
            if not reason:
                assert method.needs <= of_logits
                learned.add(name)
                continue
            if method.reuses_classifier:
                taken = (
                    f"takes over the teacher's classifier, but that of the teacher {NAME} does not"
                )
                assert taken in reason
            else:
                assert reason.startswith("it reads ")
                assert f"but {NAME} has logits alone; use " in reason
                assert reason.endswith(" that read logits with it, or one of its networks")
            with pytest.raises(NetworkError, match="has logits alone"):
                build_terms((term,), networks, seed=0)
    reading = {name for name, method in CATALOGUE.items() if method.needs <= of_logits}
    assert reading - learned == {"wkd_l"}  # it reads the classifier too


def test_an_ensemble_needs_two_different_teachers(teacher_config: TeacherConfig) -> None:
    for members, words in (
        ((teacher_config,), "at least 2"),
        ((teacher_config, teacher_config), "lists the same resnet14 twice; list each once"),
    ):
        with pytest.raises(ValidationError, match=words):
            EnsembleConfig(ensemble=members)
    with pytest.raises(NetworkError, match="unknown backbone"):
        constructor_of("ensemble(resnet8,resnet9)")
    with pytest.raises(ValidationError, match="unknown backbone"):
        TeacherConfig(backbone=NAME, training=Recipe(epochs=1))
