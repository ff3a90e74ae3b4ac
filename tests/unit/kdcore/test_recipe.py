"""The recipe: its keys, names and identity, against rates and steps written out here in float64."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcore import (
    Classifier,
    DataConfig,
    EpochReport,
    Recipe,
    TeacherConfig,
    TermConfig,
    TrialConfig,
    distill,
)
from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.method import Method
from kdcore.contract.taps import Batch
from kdcore.data.image_data import ImageData, open_data
from kdcore.distillation.distill import build_terms, network_pair
from kdcore.teacher.teacher import load_teacher
from kdcore.training.checkpoint import read_checkpoint
from kdcore.training.loop import train
from kdcore.training.named_recipes import NAMED_RECIPES
from kdcore.training.run import Term
from tests.cases import Case

CPU = torch.device("cpu")

# As version 0.1.0 wrote a recipe.
EARLIER: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 64,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "schedule": "cosine",
    "warmup_epochs": 0.0,
    "gradient_clip_norm": None,
    "acceleration": "auto",
    "compile": False,
    "cuda_graph": False,
    "learning_rate": 0.05,
}

# Every key that came later, at another value than its default.
LATER: tuple[dict[str, Any], ...] = (
    {"nesterov": True},
    {"decay_norms_and_biases": False},
    {"optimizer": "adamw", "betas": (0.8, 0.95)},
    {"schedule": "step", "milestones": (1, 2), "gamma": 0.3, "minimum_learning_rate": 0.001},
    {"preparation_on_top": True},
    {"optimizer": "lamb", "label_smoothing": 0.1},
    {"ema_decay": 0.9, "drop_path": 0.5},
    {"accumulation": 2},
)


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate(keys)


def refusal(**keys: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        recipe(**keys)
    (error,) = caught.value.errors()
    return str(error["msg"]).removeprefix("Value error, ")


# Identity


def test_a_recipe_without_later_keys_is_written_and_known_as_before() -> None:
    later = {"nesterov": False, "gamma": 0.1, "schedule": "step", "minimum_learning_rate": 0}
    for keys, expected in (({}, EARLIER), (later, EARLIER | {"schedule": "step"})):
        how = recipe(epochs=3, **keys)
        assert how.model_dump() == expected
        assert json.loads(how.model_dump_json()) == expected
        assert recipe(**expected) == how


def test_later_keys_are_written_and_make_another_recipe() -> None:
    for keys in LATER:
        with Case(keys):
            how = recipe(epochs=3, **keys)
            written = how.model_dump()
            assert written == EARLIER | keys
            assert Recipe.model_validate_json(how.model_dump_json()) == how


def test_a_trial_of_version_0_1_0_has_the_identity_that_its_checkpoint_bears() -> None:
    before = {
        "data": {"name": "digits"},
        "teacher": {"backbone": "resnet14", "training": EARLIER},
        "student": "resnet8",
        "training": EARLIER | {"schedule": "step"},
    }
    (written,) = json.loads(TrialConfig.model_validate(before).identity)
    assert written["teacher"]["training"] == EARLIER
    assert written["training"] == EARLIER | {"schedule": "step"}
    # Of a trial without a method, as it was before these keys.
    content = {
        "data": {"name": "digits", "heldout_fraction": 0.2, "train_images": 192},
        "teacher": {
            "backbone": "resnet14",
            "training": {
                "epochs": 1,
                "batch_size": 64,
                "acceleration": "off",
                "schedule": "step",
            },
        },
        "student": "resnet8",
        "training": {
            "epochs": 4,
            "batch_size": 96,
            "acceleration": "off",
            "schedule": "constant",
            "gradient_clip_norm": 1,
        },
    }
    identity = TrialConfig.model_validate(content).identity
    assert hashlib.sha256(identity.encode()).hexdigest()[:16] == "f1fc1d2dff1b5daa"


# Schedules


def rates(how: Recipe, steps: int) -> list[float]:
    """The rate of each step of a training."""
    places = range(how.epochs * steps)
    return [how.learning_rate_at((place + 0.5) / steps) for place in places]


def test_every_steps_rate_is_that_of_the_schedules_formula() -> None:
    epochs, steps, peak = 12, 7, 0.4
    for schedule, warmup, minimum in (
        ("cosine", 0, 0.0),
        ("cosine", 2.5, 0.03),
        ("step", 0, 0.0),
        ("step", 1, 0.03),
        ("constant", 3, 0.0),
        ("wsd", 0, 0.0),
        ("wsd", 2, 0.03),
    ):
        keys: dict[str, Any] = {"schedule": schedule, "warmup_epochs": warmup}
        if schedule == "step":
            keys |= {"milestones": (2, 5.5, 9), "gamma": 0.25}
        if schedule == "wsd" and warmup:
            keys["decay_share"] = 0.5
        if minimum:
            keys["minimum_learning_rate"] = minimum
        expected = []
        for place in range(epochs * steps):
            epoch = (place + 0.5) / steps
            if epoch < warmup:
                rate = peak * epoch / warmup
            elif schedule == "cosine":
                angle = math.pi * (epoch - warmup) / (epochs - warmup)
                rate = minimum + (peak - minimum) * (1 + math.cos(angle)) / 2
            elif schedule == "step":
                falls = (epoch >= 2) + (epoch >= 5.5) + (epoch >= 9)
                rate = max(minimum, peak * [1, 0.25, 0.0625, 0.015625][falls])
            elif schedule == "wsd":  # 2.4 of 12 epochs, or 5 of 10
                left, falling = 12 - epoch, 5 if warmup else 2.4
                part = 1 - min(1, left / falling)
                rate = minimum + (peak - minimum) * (1 - part**0.5)
            else:
                rate = peak
            expected.append(rate)
        with Case(keys):
            how = recipe(epochs=epochs, learning_rate=peak, **keys)
            assert rates(how, steps) == pytest.approx(expected, rel=1e-12)


def test_epochs_30_60_and_90_of_100_can_be_written() -> None:
    how = recipe(epochs=100, learning_rate=0.1, schedule="step", milestones=[30, 60, 90], gamma=0.1)
    for epoch, rate in ((0, 0.1), (29.9, 0.1), (30, 0.01), (60, 1e-3), (89.9, 1e-3), (90, 1e-4)):
        assert how.learning_rate_at(epoch) == pytest.approx(rate), epoch


# What is refused


def test_a_key_that_nothing_uses_or_that_cannot_be_is_refused_with_the_reason() -> None:
    step = {"epochs": 10, "schedule": "step"}
    order = "must rise from above warmup_epochs, which is"
    for keys, words in (
        ({"epochs": 9, "milestones": [3]}, "milestones is [3], but only schedule step uses it"),
        ({"epochs": 9, "gamma": 0.1}, "gamma is 0.1, but only schedule step uses it, and schedule"),
        (
            {"epochs": 9, "schedule": "constant", "minimum_learning_rate": 0.001},
            "only schedule cosine or step or wsd uses it, and schedule is constant; leave it out",
        ),
        ({"epochs": 9, "decay_share": 0.1}, "only schedule wsd uses it, and schedule is cosine"),
        ({"epochs": 9, "schedule": "wsd", "decay_share": 0}, "greater than 0"),
        ({"epochs": 9, "optimizer": "adamw", "nesterov": True}, "only optimizer sgd uses it"),
        ({"epochs": 9, "nesterov": True, "momentum": 0}, "needs momentum > 0"),
        (
            {"epochs": 9, "betas": [0.8, 0.9]},
            "[0.8, 0.9], but only optimizer adamw or lamb uses it",
        ),
        ({"epochs": 9, "optimizer": "adamw", "betas": [0.9, 1]}, "less than 1"),
        ({"epochs": 9, "minimum_learning_rate": 0.05}, "must be below learning_rate"),
        (step | {"milestones": []}, "at least 1 item"),
        (step | {"milestones": [3, 10]}, f"[3, 10], but they {order} 0, to below epochs, which is"),
        (step | {"milestones": [0, 3]}, order),
        (step | {"milestones": [5, 3]}, order),
        (step | {"milestones": [3, 3]}, order),
        (step | {"milestones": [2, 5], "warmup_epochs": 2}, f"{order} 2"),
        (step | {"gamma": 1}, "less than 1"),
        ({"epochs": 9, "label_smoothing": 1}, "less than 1"),
        ({"epochs": 9, "ema_decay": 1}, "less than 1"),
        ({"epochs": 9, "ema_decay": 0}, "greater than 0"),
        ({"epochs": 9, "drop_path": 1}, "less than 1"),
        ({"epochs": 9, "drop_path": -0.1}, "greater than or equal to 0"),
        ({"epochs": 9, "accumulation": 0}, "greater than or equal to 1"),
    ):
        with Case(keys):
            assert words in refusal(**keys)


# Names


def test_every_named_recipe_stands_for_plain_keys() -> None:
    for name, named in NAMED_RECIPES.items():
        with Case(name):
            how = recipe(recipe=name)
            assert how == recipe(**named.keys)
            assert recipe(**how.model_dump()) == how
            assert "recipe" not in how.model_dump()


def test_keys_beside_a_name_take_precedence_and_milestones_keep_their_share() -> None:
    given = {"recipe": "imagenet_100", "epochs": 50, "learning_rate": 0.2}
    how = recipe(**given)
    assert (how.learning_rate, how.weight_decay) == (0.2, 1e-4)
    assert how.milestones == (15, 30, 45)
    assert recipe(**given | {"milestones": [40]}).milestones == (40,)
    assert recipe(recipe="quick", epochs=60).warmup_epochs == 4
    # What the name brings along and the given keys do not use is no mistake of its user.
    assert recipe(recipe="imagenet_100", schedule="cosine").milestones is None
    # What stands beside the name is.
    words = refusal(recipe="imagenet_100", schedule="cosine", milestones=[30])
    assert "only schedule step uses it" in words


def test_an_unknown_name_says_the_known_ones() -> None:
    assert refusal(recipe="cifar_24O") == (
        "unknown recipe 'cifar_24O'; did you mean 'cifar_240'? "
        f"The recipes are {', '.join(NAMED_RECIPES)}"
    )
    assert "unknown recipe 3." in refusal(recipe=3)


def test_a_recipe_in_words() -> None:
    assert str(recipe(recipe="cifar_240")) == (
        "240 epochs, batch 64, sgd 0.05, momentum 0.9, weight decay 0.0005, step, times 0.1 after "
        "epochs 150, 180, 210"
    )
    keys = {"optimizer": "adamw", "decay_norms_and_biases": False, "warmup_epochs": 2}
    assert str(recipe(epochs=10, minimum_learning_rate=1e-5, gradient_clip_norm=1, **keys)) == (
        "10 epochs, batch 64, adamw 0.05, betas 0.9 and 0.999, weight decay 0.0005 but not of "
        "norms and biases, warm-up 2, cosine to 1e-05, clipped at 1"
    )
    assert str(
        recipe(epochs=2, accumulation=4, label_smoothing=0.1, ema_decay=0.99, drop_path=0)
    ) == (
        "2 epochs, batch 64 times 4 a step, sgd 0.05, momentum 0.9, weight decay 0.0005, cosine, "
        "labels smoothed by 0.1, moving average of weights 0.99, drop path 0"
    )
    assert "step, times 0.1 after epochs 7, 8, 9" in str(
        recipe(epochs=10, warmup_epochs=2, schedule="step")
    )


# Steps


@pytest.fixture(scope="module")
def one_batch(digits: ImageData, workspace: Path) -> ImageData:
    """So few training images that an epoch is one step."""
    return open_data(digits.config.model_copy(update={"train_images": 64}), workspace)


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> Classifier:
    return load_teacher(teacher_dir)


def fresh(data: ImageData) -> tuple[Classifier, tuple[Term, ...]]:
    """A student, and a method with norms and biases and a parameter that never decays."""
    network = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
    objective = (TermConfig.model_validate({"method": "vid"}),)
    terms = build_terms(objective, network_pair("resnet8", "resnet14", data), seed=0)
    return Classifier(network, data.mean, data.std), terms


def start(
    trained: tuple[Classifier, tuple[Term, ...]],
    teacher: Classifier,
    data: ImageData,
    how: Recipe,
    folder: Path | None = None,
) -> Iterator[EpochReport]:
    return train(
        *trained,
        teacher,
        data,
        how,
        seed=0,
        identity="test",
        device=CPU,
        checkpoint_dir=folder,
    )


def in_float64(
    student: Classifier, method: Method, teacher: Classifier, data: ImageData, how: Recipe
) -> list[Tensor]:
    """The parameters after a training of which each epoch is one step, by the equations of SGD
    (Sutskever et al., 2013, as PyTorch writes them), of AdamW (arXiv:1711.05101) and of LAMB
    (arXiv:1904.00962)."""
    student, method, teacher = student.double(), method.double(), teacher.double()
    parameters = [*student.parameters(), *method.parameters()]
    never = {id(each) for name, each in method.named_parameters() if name in method.undecayed}
    first = [torch.zeros_like(each) for each in parameters]
    second = [torch.zeros_like(each) for each in parameters]
    places = torch.arange(len(data.train))
    for epoch in range(1, how.epochs + 1):
        (images,) = data.train.views(places, data.view_of(epoch), len(places))
        labels = data.train.labels
        taps = student.taps(images, method.needs, labels)
        with torch.no_grad():
            taught = teacher.taps(images, method.needs, labels)
        term = method(taps, taught, Batch(labels, places, epoch, how.epochs))
        hard = cross_entropy(taps.logits, labels)
        even = -taps.logits.log_softmax(1).mean()  # over images and classes
        labelled = (1 - how.label_smoothing) * hard + how.label_smoothing * even
        loss = labelled + method.params.weight * term
        gradients = torch.autograd.grad(loss, parameters)
        rate = how.learning_rate_at(epoch - 0.5)
        with torch.no_grad():
            for each, slope, mean, square in zip(parameters, gradients, first, second, strict=True):
                spared = id(each) in never or (not how.decay_norms_and_biases and each.ndim <= 1)
                decay = 0.0 if spared else how.weight_decay
                if how.optimizer == "sgd":
                    pull = slope + decay * each
                    mean.copy_(how.momentum * mean + pull)
                    step = pull + how.momentum * mean if how.nesterov else mean
                    each.sub_(rate * step)
                else:
                    one, two = how.betas
                    mean.copy_(one * mean + (1 - one) * slope)
                    square.copy_(two * square + (1 - two) * slope**2)
                    straight = (square / (1 - two**epoch)).sqrt()
                    if how.optimizer == "lamb":
                        change = mean / (1 - one**epoch) / (straight + 1e-6)
                        if decay:
                            change += decay * each
                            change *= each.norm() / change.norm() if each.norm() else 1
                        each.sub_(rate * change)
                        continue
                    straight += 1e-8
                    each.copy_(
                        (1 - rate * decay) * each - rate * mean / (1 - one**epoch) / straight
                    )
    return parameters


def test_steps_are_those_of_a_loop_in_float64(teacher: Classifier, one_batch: ImageData) -> None:
    for keys in (
        {},
        {"nesterov": True},
        {"decay_norms_and_biases": False},
        {"nesterov": True, "decay_norms_and_biases": False, "momentum": 0.7},
        {"schedule": "step", "milestones": (1, 2), "gamma": 0.3},
        {"optimizer": "adamw", "betas": (0.6, 0.9), "decay_norms_and_biases": False},
        {"optimizer": "lamb", "betas": (0.6, 0.9), "decay_norms_and_biases": False},
        {"optimizer": "lamb", "label_smoothing": 0.2},
    ):
        with Case(keys):
            how = recipe(epochs=4, learning_rate=0.02, weight_decay=0.5, **keys)
            student, (term,) = fresh(one_batch)
            # AdamW makes a whole step of a slope that is all rounding, so ours has float64 too.
            teaching = copy.deepcopy(teacher)
            for module in (student, term.method, teaching):
                module.double()
            before = [
                each.detach().clone() for each in (*student.parameters(), *term.method.parameters())
            ]
            twins = in_float64(*copy.deepcopy((student, term.method, teaching)), one_batch, how)
            list(start((student, (term,)), teaching, one_batch, how))
            now = [*student.parameters(), *term.method.parameters()]
            for one, other, then in zip(now, twins, before, strict=True):
                moved, expected = one.detach() - then, other.detach() - then
                error = (moved - expected).norm() / expected.norm()
                assert error < 1e-3, (tuple(one.shape), error)


def test_a_resumed_training_gives_the_same_bits_with_every_later_key(
    teacher: Classifier, one_batch: ImageData, tmp_path: Path
) -> None:
    for number, keys in enumerate((*LATER, {**LATER[0], **LATER[1], **LATER[3]})):
        with Case(keys):
            how = recipe(epochs=3, batch_size=32, **keys)
            whole, cut = tmp_path / f"whole{number}", tmp_path / f"cut{number}"
            expected = list(start(fresh(one_batch), teacher, one_batch, how, whole))
            next(start(fresh(one_batch), teacher, one_batch, how, cut))
            torch.manual_seed(12345)  # a new process has another random state
            resumed = list(start(fresh(one_batch), teacher, one_batch, how, cut))
            assert [each.epoch for each in resumed] == [2, 3]
            assert [each.train_loss for each in resumed] == [
                each.train_loss for each in expected[1:]
            ]
            states = [read_checkpoint(folder, CPU) for folder in (whole, cut)]
            assert all(state is not None for state in states)
            one, other = (bits(state) for state in states)
            assert one == other


# Preparatory epochs on top


@pytest.fixture(scope="module")
def on_top(digits_config: DataConfig, teacher_config: TeacherConfig) -> TrialConfig:
    """Two methods that prepare, for two and for one of four epochs, and a schedule that falls."""
    content = {
        "data": digits_config,
        "teacher": teacher_config,
        "student": "resnet8",
        "objective": [
            {"method": "fitnet", "params": {"preparation_share": 0.5}},
            {"method": "ft", "params": {"preparation_share": 0.25}},
            {"method": "kd"},
        ],
        "training": {
            "epochs": 4,
            "batch_size": 96,
            "learning_rate": 0.02,
            "warmup_epochs": 1,
            "schedule": "step",
            "milestones": [2, 3],
            "preparation_on_top": True,
            "acceleration": "off",
        },
    }
    return TrialConfig.model_validate(content)


def test_preparatory_epochs_on_top_come_before_the_budget_and_its_schedule(
    on_top: TrialConfig, workspace: Path
) -> None:
    reports = list(distill(on_top, workspace=workspace, device=CPU))
    assert on_top.epochs_on_top == 2
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    assert {report.epochs for report in reports} == {on_top.training.epochs + 2}
    terms = [report.train_terms for report in reports]
    # First both prepare, then fitnet alone; after that it contributes nothing.
    assert reports[0].train_loss == pytest.approx(terms[0]["fitnet"] + terms[0]["ft"], rel=1e-5)
    assert reports[1].train_loss == pytest.approx(terms[1]["fitnet"], rel=1e-5)
    assert all(later["fitnet"] == 0 for later in terms[2:])
    assert all(report.train_loss > report.train_terms["cross_entropy"] for report in reports[2:])
    steps = 384 // 96
    last = [on_top.training.learning_rate_at(epoch - 0.5 / steps) for epoch in (1, 2, 3, 4)]
    rates = [report.learning_rate for report in reports]
    assert rates == pytest.approx([0.02, 0.02, *last])
    assert last == pytest.approx([0.02 * 0.875, 0.02, 0.002, 0.0002])


def test_only_what_prepares_has_epochs_on_top(on_top: TrialConfig) -> None:
    def changed(training: dict[str, Any], methods: slice) -> int:
        how = recipe(**on_top.training.model_dump() | training)
        objective = on_top.objective[methods]
        return on_top.model_copy(update={"training": how, "objective": objective}).epochs_on_top

    assert changed({}, slice(0)) == 0
    assert changed({}, slice(1, 3)) == 1
    assert changed({}, slice(2, 3)) == 0
    assert changed({"epochs": 240}, slice(1)) == 120
    assert changed({"preparation_on_top": False}, slice(3)) == 0


def test_a_run_cut_off_while_it_prepares_gives_the_same_bits(
    on_top: TrialConfig, workspace: Path, tmp_path: Path
) -> None:
    def start(folder: str) -> Iterator[EpochReport]:
        return distill(on_top, workspace=workspace, checkpoint_dir=tmp_path / folder, device=CPU)

    expected = list(start("whole"))
    for epochs in (1, 3):
        with Case(epochs):
            folder = f"cut{epochs}"
            cut = start(folder)
            for _ in range(epochs):
                next(cut)
            torch.manual_seed(12345)
            resumed = list(start(folder))
            assert [replace(each, epoch_seconds=0) for each in resumed] == [
                replace(each, epoch_seconds=0) for each in expected[epochs:]
            ]
            states = (read_checkpoint(tmp_path / name, CPU) for name in ("whole", folder))
            whole, other = (bits(state) for state in states)
            assert whole == other


def test_a_teacher_has_nothing_to_prepare() -> None:
    with pytest.raises(ValidationError, match="preparation_on_top is true, but a teacher"):
        TeacherConfig(backbone="resnet14", training=recipe(epochs=4, preparation_on_top=True))


def bits(state: Any) -> Any:
    """A checkpoint in a form that compares."""
    if isinstance(state, Tensor):
        return state.dtype, state.flatten().tolist()
    if isinstance(state, dict):
        return {key: bits(each) for key, each in state.items()}
    return [bits(each) for each in state] if isinstance(state, list | tuple) else state
