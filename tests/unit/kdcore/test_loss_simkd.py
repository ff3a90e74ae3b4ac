"""The reused classifier: the twin, and the student that has it, trained, resumed and exported."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from feature_methods import build, pair_of_networks, random
from logit_methods import ShortTrial
from torch.autograd import gradcheck

from kdcore import DataConfig, TeacherConfig, load_student
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.names import check_backbone
from kdcore.backbones.parts import parts_of
from kdcore.backbones.probe import probe_shapes
from kdcore.backbones.reused_classifier import ReusedClassifier, with_classifier_of
from kdcore.contract.taps import Tap
from kdcore.data.image_data import ImageData
from kdcore.methods.simkd import simkd_loss
from kdcore.networks.classifier import describe_classifier, save_classifier
from kdcore.networks.initial_weights import initial_weights
from kdcore.networks.measurement import count_network
from kdcore.teacher.teacher import load_teacher
from kdcore.training.evaluation import evaluate
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.loop import best_classifier, best_student
from kdcore.training.recipe import Recipe
from tests.twins.simkd import naive_projection, naive_simkd

SIZES = [((2, 5, 4, 4), (2, 5, 4, 4)), ((3, 4, 8, 6), (3, 4, 4, 3)), ((1, 3, 2, 6), (1, 3, 4, 3))]


@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
def test_the_loss_and_its_gradient_are_the_twins(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...]
) -> None:
    student, teacher = random(*student_size, seed=1).requires_grad_(), random(*teacher_size, seed=2)
    loss, naive = simkd_loss(student, teacher), naive_simkd(student, teacher)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, student)
    (theirs,) = torch.autograd.grad(naive, student)
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)
    assert gradcheck(lambda maps: simkd_loss(maps, teacher), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_full(dtype: torch.dtype) -> None:
    strong = torch.full((1, 2, 2, 2), 300.0).to(dtype)  # 600^2 is beyond float16
    with torch.autocast("cpu", torch.bfloat16):
        loss = simkd_loss(strong, -strong)
    assert loss.item() == pytest.approx(600.0**2)


# The network


def whole(body: str = "resnet8", width: int = 24, pooling: int = 1) -> ReusedClassifier:
    backbone = build_backbone(body, num_classes=5, in_channels=1, seed=0)
    return ReusedClassifier(backbone, width, pooling)


@pytest.mark.parametrize("pooling", [1, 2])
def test_the_student_is_body_projector_and_the_teachers_classifier(pooling: int) -> None:
    backbone, images = whole(pooling=pooling).double().train(), random(3, 1, 16, 24, seed=1)
    kinds = frozenset({Tap.MAPS, Tap.POOLED_MAP, Tap.CLASS_MAPS})
    taps = backbone.taps(images, kinds)
    body_map = taps.maps["stage3"]
    if pooling > 1:
        body_map = body_map.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
    projected = naive_projection(backbone.state_dict(), body_map)
    assert taps.pooled_map is not None
    assert taps.class_maps is not None
    assert torch.allclose(taps.pooled_map, projected, rtol=1e-8)
    logits = projected.mean((2, 3)) @ backbone.fc.weight.T + backbone.fc.bias
    assert torch.allclose(taps.logits, logits, rtol=1e-8)
    assert torch.allclose(taps.class_maps.mean((2, 3)), logits, rtol=1e-8)
    assert torch.equal(backbone(images), taps.logits)


def test_its_own_classifier_is_gone_and_the_other_one_is_not_trained() -> None:
    backbone = whole()
    plain = build_backbone("resnet8", num_classes=5, in_channels=1, seed=0)
    own = dict(plain.named_parameters())
    trained = {name for name, each in backbone.named_parameters() if each.requires_grad}
    assert {name for name in trained if name.startswith("body.")} == {
        f"body.{name}" for name in own if not name.startswith("fc.")
    }
    assert not {"fc.weight", "fc.bias"} & trained


@pytest.mark.parametrize("name", ["inception_v1_cifar", "timm/resnet10t"])
def test_what_it_costs_counts_all_three(name: str) -> None:
    classes, width, size = 5, 32, (64, 64)
    asked = {"num_classes": classes, "in_channels": 3, "image_size": size}
    shapes = probe_shapes(name, **asked)
    teacher = dataclasses.replace(shapes, embedding_width=width)
    plain, reused = (
        count_network(each, **asked) for each in (name, with_classifier_of(shapes, teacher))
    )
    channels = shapes.embedding_width
    assert shapes.class_map is not None
    projector = channels * 16 + 9 * 16 * 16 + 16 * width
    before, after = (d * classes for d in (channels, width))
    norms, biases = 2 * (16 + 16 + width), 0  # both classifiers have their biases
    assert reused[0] == plain[0] - before + projector + norms + after + biases
    places = shapes.class_map[0] * shapes.class_map[1]
    assert reused[1] == plain[1] - before + projector * places + after


def test_a_larger_map_is_pooled_and_a_network_without_one_refused() -> None:
    small = probe_shapes("resnet8", num_classes=5, in_channels=1, image_size=(32, 32))
    assert with_classifier_of(small, small) == "resnet8+projector64"
    half = dataclasses.replace(small, class_map=(4, 3), embedding_width=100)
    assert with_classifier_of(small, half) == "resnet8+projector100/2"
    assert with_classifier_of(half, small) == "resnet8+projector64"
    without = dataclasses.replace(small, class_map=None)
    for role, pair in {"student": (without, small), "teacher": (small, without)}.items():
        with pytest.raises(ValueError, match=f"that of the {role} resnet8 does not read the mean"):
            with_classifier_of(*pair)


def test_such_a_name_is_no_network_of_a_configuration() -> None:
    with pytest.raises(ValueError, match="unknown backbone"):
        check_backbone("resnet8+projector64")


def test_the_projector_belongs_to_the_last_stage_and_is_trained_by_no_linear_probe() -> None:
    parts = parts_of("resnet8+projector16")
    assert parts.head == {"fc.weight", "fc.bias"}
    projector = {n: stage for n, stage in parts.stage_of.items() if n.startswith("projector.")}
    assert set(projector.values()) == {3}
    assert parts.stage_of["body.conv1.weight"] == 0
    where = pair_of_networks()
    probe = fine_tuning(Recipe(epochs=1, linear_probe=True), "resnet8+projector16")
    assert "which linear_probe leaves as they are" in probe.refusal(build("simkd", where))


# A trial


def test_a_trial_trains_resumes_and_exports_the_whole(
    digits: ImageData,
    digits_config: DataConfig,
    teacher_config: TeacherConfig,
    teacher_dir: Path,
    workspace: Path,
    tmp_path: Path,
) -> None:
    trial = ShortTrial("simkd", digits_config, teacher_config, workspace)
    trial.assert_learns(tmp_path / "all")
    trial.reports(tmp_path / "cut", 1)
    reports = trial.reports(tmp_path / "cut")
    best, cut = (best_student(tmp_path / folder) for folder in ("all", "cut"))
    assert [report.epoch for report in reports] == [2, 3]
    assert all(torch.equal(best["student"][name], cut["student"][name]) for name in best["student"])

    student, teacher = best_classifier("resnet8", digits, best), load_teacher(teacher_dir)
    assert isinstance(student.backbone, ReusedClassifier)
    assert torch.equal(student.backbone.fc.weight, teacher.backbone.fc.weight)
    assert torch.equal(student.backbone.fc.bias, teacher.backbone.fc.bias)
    card = describe_classifier(student, "resnet8", digits, metrics={}, made_by={})
    assert card.backbone == "resnet8+projector64"
    save_classifier(tmp_path / "best", "student", student, card)
    loaded = load_student(tmp_path / "best")
    assert evaluate(loaded, digits.heldout)[0] == best["accuracy"]
    with pytest.raises(ValueError, match="a student with its teacher's classifier, resnet8"):
        initial_weights("resnet8", tmp_path / "best")
    again = copy.deepcopy(loaded)
    program = torch.export.export(again, (next(digits.heldout.batches(2)),))
    images = next(digits.heldout.batches(2))
    assert torch.allclose(program.module()(images), loaded(images), atol=1e-5)
