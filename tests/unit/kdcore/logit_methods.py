"""What the tests of the methods that compare logits share: inputs, hard inputs, short trials."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcore import DataConfig, EpochReport, Recipe, TeacherConfig, TrialConfig, distill
from kdcore.backbones.probe import probe_shapes
from kdcore.contract.method import Method
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Batch, Taps
from kdcore.methods import CATALOGUE
from kdcore.training.checkpoint import read_checkpoint
from tests.cases import Case

Loss = Callable[[Tensor, Tensor], Tensor]

# Images and classes.
SIZES = [(1, 3), (2, 5), (5, 10), (7, 4)]


def random_logits(images: int, classes: int, *, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(images, classes, generator=generator, dtype=torch.float64)


def labels_of(images: int, classes: int) -> Tensor:
    """Every class in turn, from the last, so that both ends and the middle are targets."""
    return (classes - 1 - torch.arange(images)) % classes


def pair_of_networks(classes: int = 10, teacher_classes: int | None = None) -> NetworkPair:
    student, teacher = (
        probe_shapes(network, num_classes=count, in_channels=1, image_size=(8, 8))
        for network, count in (("resnet8", classes), ("resnet14", teacher_classes or classes))
    )
    return NetworkPair(student, teacher, torch.arange(12) % classes)


def build(name: str, classes: int = 10, **params: Any) -> Method:
    """A method of the catalogue, with its published settings but for those given."""
    method = CATALOGUE[name]
    return method(method.Params.model_validate(params), pair_of_networks(classes)).train()


def term(
    method: Method, student: Tensor, teacher: Tensor, *, epoch: int = 1, epochs: int = 1
) -> Tensor:
    """The method's term for these logits; embeddings are empty and labels as in `labels_of`."""
    images, classes = student.shape
    labels = labels_of(images, classes)
    batch = Batch(labels, torch.arange(images), epoch, epochs)
    empty = student.new_zeros(images, 0)
    return method(Taps(student, empty), Taps(teacher, empty), batch)


def _one_hot(images: int, classes: int, first: int) -> Tensor:
    logits = torch.full((images, classes), -1e4)
    logits[torch.arange(images), (torch.arange(images) + first) % classes] = 1e4
    return logits


_ORDINARY = random_logits(6, 10, seed=1).float(), random_logits(6, 10, seed=2).float()

# Logits of student and teacher, float32, [B, 10].
HARD = {
    "ordinary": _ORDINARY,
    "zero student": (torch.zeros(6, 10), _ORDINARY[1]),
    "zero teacher": (_ORDINARY[0], torch.zeros(6, 10)),
    "all zero": (torch.zeros(6, 10), torch.zeros(6, 10)),
    "constant": (torch.full((6, 10), 3.0), torch.full((6, 10), -7.0)),
    "nearly constant": (3 + 1e-6 * _ORDINARY[0], 3 + 1e-6 * _ORDINARY[1]),
    "saturated": (_ORDINARY[0].sign() * 1e4, _ORDINARY[1].sign() * 1e4),
    "sure and agreed": (_one_hot(6, 10, 0), _one_hot(6, 10, 0)),
    "sure and opposed": (_one_hot(6, 10, 0), _one_hot(6, 10, 1)),
    "sure teacher": (_ORDINARY[0], _one_hot(6, 10, 4)),
    "sure student": (_one_hot(6, 10, 4), _ORDINARY[1]),
    "identical rows": (_ORDINARY[0][:1].repeat(6, 1), _ORDINARY[1][:1].repeat(6, 1)),
    "two identical rows": (_ORDINARY[0][[0, 0, 2, 3, 4, 5]], _ORDINARY[1]),
    "one image": (_ORDINARY[0][:1], _ORDINARY[1][:1]),
    "two images": (_ORDINARY[0][:2], _ORDINARY[1][:2]),
}


def assert_sound(loss: Loss) -> None:
    """Of hard logits, it is a finite scalar with a gradient on no scale of 1 / rounding."""
    for hardness, (student_logits, teacher) in HARD.items():
        student = student_logits.clone().requires_grad_()
        with Case(hardness):
            value = loss(student, teacher)
            value.backward()
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert student.grad is not None
            assert student.grad.isfinite().all()
            assert student.grad.abs().max() < 1e4


def assert_computes_halves_in_full(loss: Loss) -> None:
    """Of halves, also under autocast, the loss is what float32 makes of their values."""
    for dtype in (torch.float16, torch.bfloat16):
        student, teacher = (logits.to(dtype) for logits in _ORDINARY)
        expected = loss(student.float(), teacher.float())
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(student, teacher)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)


def assert_no_gradient_for_the_teacher(method: Method) -> None:
    student, teacher = (logits.clone().requires_grad_() for logits in _ORDINARY)
    term(method, student, teacher).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None


class ShortTrial:
    """Three epochs of digits with one method: resnet8 learns from resnet14."""

    def __init__(
        self,
        name: str,
        data: DataConfig,
        teacher: TeacherConfig,
        workspace: Path,
        **params: Any,
    ) -> None:
        self.name, self.workspace = name, workspace
        self.config = TrialConfig.model_validate(
            {
                "data": data,
                "teacher": teacher,
                "student": "resnet8",
                "objective": [{"method": name, "params": params}],
                "training": Recipe(epochs=3, batch_size=32, acceleration="off"),
            }
        )

    def reports(self, folder: Path, count: int | None = None) -> list[EpochReport]:
        """Runs on from the folder's checkpoint, if any, for so many epochs, or to the end."""
        running = distill(
            self.config,
            workspace=self.workspace,
            checkpoint_dir=folder,
            device=torch.device("cpu"),
        )
        return list(islice(running, count))

    def assert_learns(self, folder: Path) -> None:
        """The method's own term falls from the first epoch to the last."""
        reports = self.reports(folder)
        terms = [report.train_terms[self.name] for report in reports]
        assert len(terms) == 3
        assert terms[-1] < terms[0]

    def helpers(self, folder: Path) -> dict[str, Tensor]:
        """The method's state in the folder's checkpoint, by name."""
        state = read_checkpoint(folder, torch.device("cpu"))
        assert state is not None
        return {name.removeprefix("0."): value for name, value in state["helpers"].items()}
