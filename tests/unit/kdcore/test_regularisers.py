"""Regularisers of a recipe, beside those of PyTorch, torchvision and timm, in float64."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.optim import Lamb as TimmsLamb
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from kdcore import Classifier, EpochReport, Recipe, TeacherConfig
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.drop_path import DropPath
from kdcore.data.image_data import ImageData, open_data
from kdcore.errors import NetworkError
from kdcore.operations.labels import label_loss
from kdcore.teacher.teacher import load_teacher, prepare_teacher, teacher_folder
from kdcore.training.average import WeightAverage
from kdcore.training.checkpoint import read_checkpoint
from kdcore.training.evaluation import evaluate
from kdcore.training.lamb import Lamb
from kdcore.training.loop import best_student, train
from tests.cases import Case

CPU = torch.device("cpu")


def recipe(**keys: Any) -> Recipe:
    plain = {"epochs": 1, "batch_size": 64, "schedule": "constant", "acceleration": "off"}
    return Recipe.model_validate(plain | keys)


def fresh(data: ImageData) -> Classifier:
    network = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
    return Classifier(network, data.mean, data.std)


def start(
    student: Classifier, data: ImageData, how: Recipe, folder: Path | None = None
) -> Iterator[EpochReport]:
    return train(
        student, (), None, data, how, seed=0, identity="", device=CPU, checkpoint_dir=folder
    )


def weights_of(network: nn.Module) -> list[Tensor]:
    return [each.detach().clone() for each in network.parameters()]


# Smoothed labels


def test_smoothed_labels_are_those_of_pytorch_in_training_and_not_in_evaluation(
    digits: ImageData,
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    expected = cross_entropy(logits, labels, label_smoothing=0.3)
    assert label_loss(logits, labels, smoothing=0.3).item() == pytest.approx(expected.item())
    # At a rate of almost 0 the student stays as it is, but for its batch norms.
    (plain,), (smooth,) = (
        list(start(fresh(digits), digits, recipe(learning_rate=1e-30, label_smoothing=share)))
        for share in (0.0, 0.5)
    )
    assert smooth.train_loss != plain.train_loss
    assert smooth.train_loss == smooth.train_terms["cross_entropy"]
    assert smooth.heldout_loss == plain.heldout_loss


# The moving average of the weights


def test_the_average_is_that_of_pytorch_with_buffers(digits: ImageData) -> None:
    student = fresh(digits).double()
    ours = WeightAverage(student, 0.7)

    def averaged(average: Tensor, now: Tensor, number: Tensor) -> Tensor:
        done = float(number) - 1  # PyTorch has the first for granted, as we have the fresh student
        decay = min(0.7, (1 + done) / (10 + done))
        return decay * average + (1 - decay) * now

    theirs = AveragedModel(student, avg_fn=averaged, use_buffers=True)
    theirs.update_parameters(student)
    torch.manual_seed(0)
    for _ in range(40):  # beyond the warm-up of the decay: (1 + 20) / (10 + 20) = 0.7
        with torch.no_grad():
            for value in (*student.parameters(), *student.buffers()):
                value.add_(torch.randn(value.shape)) if value.is_floating_point() else value.add_(1)
        ours.update()
        theirs.update_parameters(student)
    pairs = zip(
        (*ours.network.parameters(), *ours.network.buffers()),
        (*theirs.module.parameters(), *theirs.module.buffers()),
        strict=True,
    )
    for one, other in pairs:
        if one.is_floating_point():
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
        else:
            assert one == 40  # copied, which PyTorch averages too


def test_the_better_of_average_and_weights_is_reported_and_kept(
    digits: ImageData, tmp_path: Path
) -> None:
    seen = set()
    for rate in (0.02, 2.0):
        how = recipe(epochs=4, batch_size=32, learning_rate=rate, ema_decay=0.95)
        student, folder = fresh(digits), tmp_path / str(rate)
        kept = fresh(digits)
        for report in start(student, digits, how, folder):
            state = read_checkpoint(folder, CPU)
            assert state is not None
            kept.backbone.load_state_dict(state["average"]["network"])
            averaged, raw = evaluate(kept, digits.heldout), evaluate(student, digits.heldout)
            best = max(averaged, raw, key=lambda each: (each[0], -each[1]))
            assert (report.heldout_accuracy, report.heldout_loss) == best
            assert report.of_average == (best == averaged)
            seen.add(report.of_average)
            if report.best_epoch == report.epoch:
                kept.backbone.load_state_dict(best_student(folder)["student"])
                assert evaluate(kept, digits.heldout) == best
    assert seen == {True, False}


def test_where_nothing_is_held_out_the_average_is_the_result(
    digits: ImageData, workspace: Path, tmp_path: Path
) -> None:
    config = digits.config.model_copy(update={"heldout_fraction": 0.0, "train_images": 64})
    data = open_data(config, workspace)
    how = recipe(epochs=2, batch_size=32, ema_decay=0.9)
    student = fresh(data)
    reports = list(start(student, data, how, tmp_path / "student"))
    assert all(report.of_average for report in reports)
    last = evaluate(student, data.heldout)
    assert last == (reports[-1].heldout_accuracy, reports[-1].heldout_loss)
    teacher = TeacherConfig(backbone="resnet8", training=how)
    list(prepare_teacher(teacher, data, workspace, CPU))
    loaded = load_teacher(teacher_folder(teacher, data, workspace))
    assert evaluate(loaded, data.heldout) == last


# Accumulation


def test_a_step_over_several_batches_is_that_of_their_mean_gradient(
    digits: ImageData, workspace: Path
) -> None:
    data = open_data(digits.config.model_copy(update={"train_images": 160}), workspace)
    keys = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    how = recipe(batch_size=32, accumulation=2, **keys)
    student = fresh(data).double()
    twin = copy.deepcopy(student)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # of the first epoch
        order = data.train.shuffled()
    batches = list(data.train.views(order, 0, 32))
    losses = []
    for step in (0, 2):  # the fifth batch would begin a third step
        twin.zero_grad()
        for number in (step, step + 1):
            labels = data.train.labels[order[32 * number : 32 * (number + 1)]]
            loss = cross_entropy(twin(batches[number]), labels)
            (loss / 2).backward()
            losses.append(loss.item())
        with torch.no_grad():
            for each in twin.parameters():
                each.sub_(0.1 * each.grad)
    (report,) = start(student, data, how)
    for one, other in zip(weights_of(student), weights_of(twin), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    assert report.train_loss == pytest.approx(sum(losses) / 4)
    assert 0 < report.train_accuracy <= 1
    # More batches than there are make one step of all.
    (report,) = start(fresh(data), data, recipe(batch_size=32, accumulation=99, **keys))
    assert report.train_loss > 0


# LAMB


def test_lamb_is_that_of_timm() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(shape, dtype=torch.float64) for shape in ((4, 3), (5,), (2, 2), (3,))]
    ours[2].zero_()  # without a norm there is nothing to scale by
    theirs = [each.clone() for each in ours]
    (mine, reference) = (
        [
            {"params": parameters[::2], "weight_decay": 0.1},
            {"params": parameters[1::2], "weight_decay": 0.0},
        ]
        for parameters in (ours, theirs)
    )
    lamb = Lamb(mine, 0.01, (0.8, 0.95))
    twin = TimmsLamb(reference, 0.01, betas=(0.8, 0.95), eps=1e-6, max_grad_norm=None)
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        lamb.step()
        twin.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=0)


def test_a_late_first_gradient_counts_its_own_steps() -> None:
    early, late, alone = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))
    lamb = Lamb([{"params": [early, late], "weight_decay": 0.1}], 0.01, (0.9, 0.999))
    early.grad = torch.ones_like(early)
    for _ in range(3):
        lamb.step()
    single = Lamb([{"params": [alone], "weight_decay": 0.1}], 0.01, (0.9, 0.999))
    late.grad, alone.grad = torch.full_like(late, 2.0), torch.full_like(alone, 2.0)
    lamb.step()
    single.step()
    assert torch.equal(late, alone)


# Stochastic depth


def visible(network: nn.Module) -> None:
    """Changes what libraries initialise so that every branch of a block counts."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 or "gamma" in name or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1.0)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_a_librarys_network_drops_what_the_library_drops() -> None:
    for name, option in (
        ("timm/resnet18", "drop_path_rate"),
        ("timm/mobilenetv3_small_050", "drop_path_rate"),
        ("timm/test_convnext", "drop_path_rate"),
        ("torchvision/efficientnet_b0", "stochastic_depth_prob"),
    ):
        with Case(name):
            build = timm.create_model
            if name.startswith("torchvision"):
                build = torchvision.models.get_model
            theirs = build(name.partition("/")[2], num_classes=7, **{option: 0.6})
            visible(theirs)
            ours = build_backbone(name, num_classes=7, in_channels=3, seed=0)
            ours.set_drop_path(0.6)
            for module in ours.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            keys = {f"network.{key}": value for key, value in theirs.state_dict().items()}
            ours.load_state_dict(keys)
            images = torch.randn(3, 3, 64, 64)
            outputs = []
            for network, seed in ((theirs, 3), (ours, 3), (ours, 4)):
                torch.manual_seed(seed)
                with torch.no_grad():
                    outputs.append(network.train()(images))
            assert torch.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(outputs[1], outputs[2], rtol=1e-2)


def test_rates_rise_with_depth_and_what_remains_is_scaled_up() -> None:
    for name, blocks in (("resnet14", 6), ("wrn_16_1", 6), ("mobilenetv2", 10)):
        with Case(name):
            network = build_backbone(name, num_classes=7, in_channels=3, seed=0)
            network.set_drop_path(0.5)
            rates = [each.rate for each in network.modules() if isinstance(each, DropPath)]
            assert rates == pytest.approx([0.5 * k / (blocks - 1) for k in range(blocks)])
    branch = DropPath(0.25)
    torch.manual_seed(0)
    kept = branch(torch.ones(4000, 2, 1, 1))
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(branch.eval()(kept), kept)


def test_a_network_without_residual_branches_refuses_to_drop_them() -> None:
    for name in ("vgg8", "torchvision/squeezenet1_1", "timm/ghostnet_100"):
        with Case(name):
            network = build_backbone(name, num_classes=7, in_channels=3, seed=0)
            network.set_drop_path(0.0)
            with pytest.raises(NetworkError, match=r"drop_path is 0\.1, but the network has no"):
                network.set_drop_path(0.1)


def test_dropping_paths_trains_with_maps_and_leaves_evaluation_alone(digits: ImageData) -> None:
    student = fresh(digits)
    before = evaluate(student, digits.heldout)
    student.backbone.set_drop_path(0.9)
    assert evaluate(student, digits.heldout) == before
    plain, dropped = (
        [replace(each, epoch_seconds=0) for each in start(fresh(digits), digits, how)]
        for how in (recipe(), recipe(drop_path=0.9))
    )
    assert plain != dropped
    off = [
        replace(each, epoch_seconds=0) for each in start(fresh(digits), digits, recipe(drop_path=0))
    ]
    assert off == plain
