"""What each method computes at its published settings: one number a method, and it stays."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from kdcore.backbones import probe_shapes
from kdcore.methods import CATALOGUE
from kdcore.taps import Batch, Setting, Shapes, Taps

# The loss of each method with its published settings, for the inputs of `_golden_inputs`.
GOLDEN = {
    "ab": 134.50604649021136,
    "at": 6.172266285723559e-05,
    "cc": 0.056693821492941304,
    "crd": 9.567072088724725,
    "ctkd": 4.413716985734604,
    "dist": 32.33355732040921,
    "dkd": 33.94236872685878,
    "fitnet": 0.22631682575347947,
    "fsp": 0.27057120651081923,
    "ft": 0.9646549187212974,
    "itrd": 22.26489589305416,
    "kd": 4.137310399671012,
    "mgd": 2800.641140842765,
    "nkd": 6.105856561092212,
    "none": 0.0,
    "nst": 1.3800328769215857,
    "ofd": 27617.7338840708,
    "pkt": 0.008053814212812666,
    "reviewkd": 4.452841200706171,
    "rkd": 8.120422459535998,
    "sp": 0.06443280771807561,
    "srd": 11.93051675200552,
    "vid": 2.4892963933868995,
    "wsld": 2.812598222212355,
    "wttm": 8.442905117934977,
}


def _wave(*size: int, frequency: float) -> Tensor:
    """Numbers from a formula: no version of a random generator decides the golden values."""
    steps = torch.arange(math.prod(size), dtype=torch.float64)
    return (frequency * steps + 0.01 * steps.sqrt()).sin().reshape(size)


@cache
def _shapes(network: str) -> Shapes:
    # So large that ResNet-50's last maps have more than one position.
    return probe_shapes(network, num_classes=10, in_channels=1, image_size=(64, 48))


def _wave_taps(shapes: Shapes, images: int, frequency: float) -> Taps:
    preactivations = {
        tap: _wave(images, *size, frequency=frequency) for tap, size in shapes.maps.items()
    }
    return Taps(
        3 * _wave(images, shapes.num_classes, frequency=frequency),
        _wave(images, shapes.embedding_width, frequency=frequency).relu(),
        {tap: value.relu() for tap, value in preactivations.items()},
        preactivations,
    )


def _golden_loss(name: str) -> float:
    where = Setting(_shapes("resnet8"), _shapes("resnet50"), torch.arange(32) % 10)
    torch.manual_seed(0)  # for the few methods that draw
    method = CATALOGUE[name](CATALOGUE[name].Params(), where).double().train()
    with torch.no_grad():
        for number, parameter in enumerate(method.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(0.2 * _wave(*parameter.shape, frequency=1.3 + number))
    student = _wave_taps(where.student, 8, frequency=0.7)
    teacher = _wave_taps(where.teacher, 8, frequency=0.9)
    # A method that prepares is judged by its preparation.
    epoch = 1 if method.preparation_epochs(5) else 2
    indices = torch.arange(8) * 4
    batch = Batch(indices % 10, indices, epoch=epoch, epochs=5)
    return method(student, teacher, batch).item()


def test_every_method_has_a_golden_value() -> None:
    assert set(GOLDEN) == set(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_loss_has_its_golden_value(name: str) -> None:
    assert _golden_loss(name) == pytest.approx(GOLDEN[name], rel=1e-6, abs=1e-12)
