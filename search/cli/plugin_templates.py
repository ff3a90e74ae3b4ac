"""What `kdsearch new` writes, a file and its test of each kind; NAME and CLASS are replaced."""

METHOD = '''"""Say in a line what CLASS compares, and where it comes from."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.searched import Span
from kdcore.contract.taps import Batch, Tap, Taps


@full_precision  # float32 inside, whatever the networks compute in
def NAME_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Mean squared difference of softened probabilities.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: > 0.

    Returns:
        Scalar. Zero when both are equal.
    """
    student = (student_logits / temperature).softmax(1)
    teacher = (teacher_logits / temperature).softmax(1)
    return (student - teacher).square().sum(1).mean()


class CLASS(Method):
    """Say in a line what it compares."""

    needs: frozenset[Tap] = frozenset({Tap.LOGITS})  # further: EMBEDDING, MAPS, ...

    class Params(method.Params):
        # Field: what is legal. Span: what a search tries. The default comes first.
        weight: Annotated[float, Field(ge=0), Span(0.1, 100.0, log=True)] = 1.0
        temperature: Annotated[float, Field(gt=0), Span(1.0, 16.0, log=True)] = 4.0

    params: Params

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        return NAME_loss(student.logits, teacher.logits, temperature=self.params.temperature)

    def twin(self, student: Taps, teacher: Taps, batch: Batch) -> float:
        """The loss as the paper writes it, in float64; check-plugin compares both."""
        total, temperature = 0.0, self.params.temperature
        for s, t in zip(student.logits.double(), teacher.logits.double(), strict=True):
            p = (s / temperature).exp() / (s / temperature).exp().sum()
            q = (t / temperature).exp() / (t / temperature).exp().sum()
            total += sum(float(a - b) ** 2 for a, b in zip(p, q, strict=True))
        return total / len(student.logits)
'''

METHOD_TEST = '''"""NAME keeps the contract of methods, and its loss is what a hand computes."""

import math
from pathlib import Path

import torch

from kdcore.contract.plugged import read_plugin
from kdcore.distillation.plugin_contract import breaches_of
from NAME import NAME_loss


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    assert breaches_of(read_plugin("NAME.py", Path(__file__).parent), tmp_path) == []


def test_an_example_by_hand() -> None:
    # Probabilities 1/2, 1/2 and 3/4, 1/4: two differences of 1/4. Write yours here.
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    loss = NAME_loss(student, teacher, temperature=1.0)
    torch.testing.assert_close(loss, torch.tensor(2 / 16))
'''

NETWORK = '''"""Say in a line what CLASS is, and where it comes from."""

from collections import OrderedDict

from torch import Tensor, nn

from kdcore.contract.taps import TapInfo


def stage(inside: int, outside: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
    parts = [("conv", conv), ("norm", nn.BatchNorm2d(outside)), ("relu", nn.ReLU())]
    return nn.Sequential(OrderedDict(parts))


class CLASS(nn.Module):
    """Say in a line what it is."""

    # What methods read, the stem's first: the path of a submodule, the channels of the map that it
    # gives, and by how much that is smaller than the image. () for a network without maps.
    declared_taps = (
        TapInfo("stem.relu", 16, 1),
        TapInfo("stage1.relu", 32, 2),
        TapInfo("stage2.relu", 64, 4),
    )
    native_size = (32, 32)

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = stage(in_channels, 16, 1)
        self.stage1 = stage(16, 32, 2)
        self.stage2 = stage(32, 64, 2)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage2(self.stage1(self.stem(images)))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


NETWORKS = {"NAME": CLASS}
'''

NETWORK_TEST = '''"""NAME keeps the contract of networks, and its logits are those of its twin."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d

from kdcore.contract.plugged import read_plugin
from kdcore.distillation.plugin_contract import breaches_of
from NAME import CLASS


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    assert breaches_of(read_plugin("NAME.py", Path(__file__).parent), tmp_path) == []


def twin(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network as the paper draws it, by its weights alone. Write yours here."""
    maps = images
    for name, stride in (("stem", 1), ("stage1", 2), ("stage2", 2)):
        maps = conv2d(maps, weights[f"{name}.conv.weight"], stride=stride, padding=1)
        kept = ("running_mean", "running_var", "weight", "bias")
        maps = batch_norm(maps, *(weights[f"{name}.norm.{key}"] for key in kept)).clamp(min=0)
    return maps.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]


def test_its_logits_are_those_of_its_twin() -> None:
    torch.manual_seed(0)
    network = CLASS(num_classes=5, in_channels=3).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    network(images)  # in training, so that its norms have statistics
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), twin(network.state_dict(), images))
'''

DATA = '''"""Say in a line what NAME shows, and where it comes from."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset


class CLASS(Dataset[tuple[Tensor, int]]):
    """Noise, dark or light. An item is an image, [C, H, W] in uint8 or of PIL, and its class."""

    classes = ("dark", "light")

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        label = number % len(self.classes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        noise = torch.randint(0, 128, (1, 16, 16), generator=generator)
        return (noise + 100 * label).to(torch.uint8), label


def NAME(root: Path | None) -> tuple[CLASS, CLASS]:
    """The images for training and for the test; an experiment names the root of files, as in
    data: {name: NAME, root: images}.
    """
    return CLASS(400, seed=1), CLASS(100, seed=2)


DATA_SETS = {"NAME": NAME}
'''

DATA_TEST = '''"""NAME keeps the contract of data sets, and its images are what they should be."""

from pathlib import Path

from kdcore.contract.plugged import read_plugin
from kdcore.distillation.plugin_contract import breaches_of
from NAME import NAME


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    assert breaches_of(read_plugin("NAME.py", Path(__file__).parent), tmp_path) == []


def test_images_of_each_class_are_what_they_should_be() -> None:
    # Of files, the sums of some that you have looked at. Write yours here.
    for images in NAME(None):
        for number in range(4):
            image, label = images[number]
            low = 100 * label
            assert low <= int(image.min()) <= int(image.max()) < low + 128
'''
