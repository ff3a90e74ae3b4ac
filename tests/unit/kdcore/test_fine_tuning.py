"""Fine-tuning: which parts of a network move, how fast, and what is refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdcore import Recipe, StudentConfig, TeacherConfig, TrialConfig, distill
from kdcore.backbones.parts import parts_of
from kdcore.data.image_data import ImageData
from kdcore.distillation.start import start_in_words
from kdcore.errors import ConfigError
from kdcore.networks.classifier import build_classifier, describe_classifier, save_classifier
from kdcore.training.checkpoint import read_checkpoint
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.loop import train

CPU = torch.device("cpu")

UNTRACED = "timm/vit_tiny_patch16_dinov3_qkvb"


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {"epochs": 2, "batch_size": 64, "acceleration": "off", "learning_rate": 0.02} | changes
    )


def trained(
    network: str, data: ImageData, how: Recipe, seed: int = 0
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The weights before and after a training on labels."""
    student = build_classifier(network, data, seed=seed)
    before = {name: tensor.clone() for name, tensor in student.backbone.state_dict().items()}
    tuning = fine_tuning(how, network)
    options: dict[str, Any] = {"seed": 0, "identity": "", "device": CPU, "checkpoint_dir": None}
    list(train(student, (), None, data, how, tuning=tuning, **options))
    return before, student.backbone.state_dict()


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@contextmanager
def steps() -> Iterator[list[dict[int, float]]]:
    """At each optimiser step, the learning rate of each parameter, by its id."""
    found: list[dict[int, float]] = []

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        found.append({id(each): float(g["lr"]) for g in groups for each in g["params"]})

    hook = register_optimizer_step_pre_hook(before_step)
    yield found
    hook.remove()


# Parts


def test_every_parameter_has_the_stage_whose_map_first_depends_on_it() -> None:
    parts = parts_of("resnet8")
    assert (parts.stem, parts.stages) == ("stem", ("stage1", "stage2", "stage3"))
    assert parts.head == {"fc.weight", "fc.bias"}
    for name, stage in parts.stage_of.items():
        assert stage == (int(name[5]) if name.startswith("layer") else 0), name

    traced = parts_of("timm/mobilenetv3_small_050")
    assert traced.stage_of["network.conv_stem.weight"] == 0
    assert traced.stage_of["network.conv_head.weight"] == len(traced.stages)  # before the head
    blocks = [stage for name, stage in traced.stage_of.items() if ".blocks." in name]
    assert blocks == sorted(blocks)
    assert set(blocks) >= {1, 2, 3}


# Rates


def test_each_part_has_its_share_of_the_rate_over_the_whole_schedule(digits: ImageData) -> None:
    how = recipe(
        warmup_epochs=0.5, decay_norms_and_biases=False, head_learning_rate=5, layer_decay=0.5
    )
    student = build_classifier("resnet8", digits, seed=0)
    factors = {
        id(parameter): 5
        if name.startswith("fc.")
        else 0.5 ** (4 - parts_of("resnet8").stage_of[name])
        for name, parameter in student.backbone.named_parameters()
    }
    assert set(factors.values()) == {5, 0.5, 0.25, 0.125, 0.0625}
    with steps() as rates:
        reports = list(
            train(
                *(student, (), None, digits, how),
                seed=0,
                identity="",
                device=CPU,
                checkpoint_dir=None,
                tuning=fine_tuning(how, "resnet8"),
            )
        )
    per_epoch = len(digits.train) // 64
    assert len(rates) == 2 * per_epoch
    for number, by_parameter in enumerate(rates):
        rate = how.learning_rate_at((number + 0.5) / per_epoch)
        expected = {each: rate * factor for each, factor in factors.items()}
        assert by_parameter == pytest.approx(expected)
    assert reports[-1].learning_rate == pytest.approx(how.learning_rate_at(2 - 0.5 / per_epoch))


# What stays


@pytest.mark.parametrize("network", ["resnet8", "timm/test_resnet"])
@pytest.mark.parametrize("keys", [{"frozen_stages": 2}, {"linear_probe": True}], ids=str)
def test_what_is_frozen_does_not_move_and_all_else_does(
    network: str, keys: dict[str, Any], digits: ImageData
) -> None:
    """Running statistics and the count of batches included."""
    data = digits if network == "resnet8" else larger(digits)
    parts = parts_of(network)
    before, after = trained(network, data, recipe(**keys))
    last = 2 if "frozen_stages" in keys else len(parts.stages)
    frozen = {name for name, stage in parts.stage_of.items() if stage <= last}
    norms = {name.rpartition(".")[0] for name in before if name.endswith("running_mean")}
    statistics = {
        f"{norm}.{buffer}"
        for norm in norms
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
        if f"{norm}.weight" in frozen
    }
    assert frozen
    assert statistics
    assert moved(before, after) == before.keys() - frozen - statistics


def larger(digits: ImageData) -> ImageData:
    """A library's network needs larger images than digits."""
    split = digits.train
    few = {name: getattr(split, name)[:128] for name in ("labels", "image_ids")}
    images = split.images[:128].repeat_interleave(4, 2).repeat_interleave(4, 3)
    small = replace(split, images=images, **few)
    return replace(digits, train=small, heldout=small, image_size=(32, 32))


def test_a_fine_tuning_that_was_cut_off_continues_to_the_bit(
    digits: ImageData, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    start = build_classifier("resnet8", digits, seed=5)
    save_classifier(
        tmp_path / "best", "student", start, describe_classifier(start, "resnet8", digits, {}, {})
    )
    config = TrialConfig(
        data=digits.config,
        teacher=teacher_config,
        student={"backbone": "resnet8", "weights": tmp_path / "best"},
        objective=[{"method": "kd"}],
        training=recipe(frozen_stages=1, head_learning_rate=3, layer_decay=0.7),
    )
    runs = [tmp_path / "whole", tmp_path / "parts"]
    whole = list(distill(config, workspace=workspace, checkpoint_dir=runs[0]))
    begun = distill(config, workspace=workspace, checkpoint_dir=runs[1])
    first = next(begun)
    begun.close()  # type: ignore[attr-defined]
    parts = [first, *distill(config, workspace=workspace, checkpoint_dir=runs[1])]
    assert [r.train_loss for r in parts] == [r.train_loss for r in whole]
    ends = [read_checkpoint(run, CPU) for run in runs]
    assert all(end is not None for end in ends)
    one, other = (end["student"] for end in ends if end is not None)
    assert not moved(one, other)
    kept = start.backbone.state_dict()
    assert all(torch.equal(one[n], kept[n]) for n in kept if n.startswith(("conv1", "layer1")))


# Refusals


@pytest.mark.parametrize(
    ("network", "keys", "message"),
    [
        ("resnet8", {"frozen_stages": 3}, "resnet8 has 3 stages, so at most 2; linear_probe: true"),
        ("resnet8", {"frozen_stages": 9}, r"frozen_stages is 9, but resnet8 has 3 stages"),
        (UNTRACED, {"frozen_stages": 1}, f"{UNTRACED} has no stages; leave it out"),
        (UNTRACED, {"layer_decay": 0.9}, f"layer_decay is 0.9, but {UNTRACED} has no"),
    ],
)
def test_stages_that_are_not_there_cannot_be_frozen(
    network: str, keys: dict[str, Any], message: str, digits: ImageData
) -> None:
    with pytest.raises(ConfigError, match=message):
        start_in_words(StudentConfig(backbone=network), recipe(**keys), digits)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"frozen_stages": 1},
            "training.frozen_stages is 1, but student resnet8 begins with fresh",
        ),
        ({"linear_probe": True}, "training.linear_probe is true, but student resnet8 begins"),
        ({"layer_decay": 0.5}, "give it weights, or leave layer_decay out"),
        (
            {"linear_probe": True, "frozen_stages": 1},
            "frozen_stages is 1, but linear_probe is true",
        ),
        ({"linear_probe": True, "layer_decay": 0.5}, "layer_decay is 0.5, but linear_probe is"),
        ({"head_learning_rate": 0}, "head_learning_rate"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"frozen_stages": -1}, "frozen_stages"),
    ],
    ids=str,
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any], message: str) -> None:
    content = {
        "data": {"name": "digits"},
        "teacher": {"backbone": "resnet8", "training": {"epochs": 1}},
        "student": "resnet8",
        "training": {"epochs": 1} | keys,
    }
    with pytest.raises(ValueError, match=message):
        TrialConfig.model_validate(content)


def test_a_method_that_could_change_nothing_is_refused(
    digits: ImageData, teacher_config: TeacherConfig, workspace: Path, tmp_path: Path
) -> None:
    start = build_classifier("resnet8", digits, seed=5)
    card = describe_classifier(start, "resnet8", digits, {}, {})
    save_classifier(tmp_path, "student", start, card)
    for keys, method, params, message in (
        ({"linear_probe": True}, "rkd", {}, "it reads embedding, which linear_probe leaves"),
        (
            {"frozen_stages": 1},
            "at",
            {"layers": "stage1:stage1"},
            "stage1 of the student is frozen",
        ),
        ({"frozen_stages": 1}, "at", {"layers": "all"}, ""),
        ({"linear_probe": True}, "kd", {}, ""),
    ):
        config = TrialConfig(
            data=digits.config,
            teacher=teacher_config,
            student={"backbone": "resnet8", "weights": tmp_path},
            objective=[{"method": method, "params": params}],
            training=recipe(epochs=1, **keys),
        )
        if message:
            with pytest.raises(ConfigError, match=f"{method} cannot teach resnet8 .*{message}"):
                next(distill(config, workspace=workspace))
        else:
            assert next(distill(config, workspace=workspace)).epoch == 1


def test_a_recipe_tells_what_it_trains_and_writes_only_what_was_changed() -> None:
    plain, probe = recipe(), recipe(linear_probe=True, head_learning_rate=2)
    assert not {"head_learning_rate", "linear_probe"} & plain.model_dump().keys()
    assert Recipe.model_validate(probe.model_dump()) == probe
    assert str(probe).endswith(", times 2 for the head, only the head")
    assert str(recipe(frozen_stages=2, layer_decay=0.7)).endswith(
        ", times 0.7 for each stage before it, first 2 stages frozen"
    )
