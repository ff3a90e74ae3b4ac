"""What each method computes at its published settings: one number a method, and it stays."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from kdcore.backbones.probe import probe_shapes
from kdcore.contract.network_pair import NetworkPair, Shapes
from kdcore.contract.taps import Batch, Taps
from kdcore.methods import CATALOGUE

# The loss of each method with its published settings, for the inputs of `_golden_inputs`.
GOLDEN = {
    "ab": 6.524452000319101,
    "at": 0.001881748383003446,
    "catkd": 4.540267569478827,
    "cc": 0.06826504981646807,
    "crd": 9.005933390437102,
    "ctkd": 4.413716985734604,
    "cwd": 0.05462954322767069,
    "deit": 4.351091204814907,
    "dist": 32.33355732040921,
    "dkd": 33.94236872685878,
    "fitnet": 0.22681228702223957,
    "fsp": 0.27434201341725206,
    "ft": 0.977584806648357,
    "itrd": 14.43932782451628,
    "kd": 4.137310399671012,
    "mgd": 128.0856639506827,
    "mlld": 20.004316496373452,
    "nkd": 6.105856561092212,
    "none": 0.0,
    "nst": 1.5698813776407454,
    "ofa": 10.853935880919234,
    "ofd": 1729.3213600705913,
    "pkt": 0.008562263852046493,
    "reviewkd": 4.449137155224831,
    "rkd": 10.927157208657897,
    "rld": 19.043213037644804,
    "sdd": 2.191508902582489,
    "simkd": 0.14903554954188308,
    "sp": 0.07432348372777152,
    "srd": 9.201072659149382,
    "vid": 2.4891592729030902,
    "vkd": 0.5116089964132057,
    "wkd_f": 52.16322782619517,
    "wkd_l": 21.547829237003896,
    "wsld": 2.812598222212355,
    "wttm": 8.442905117934977,
}


def _wave(*size: int, frequency: float) -> Tensor:
    """Numbers from a formula: no version of a random generator decides the golden values."""
    steps = torch.arange(math.prod(size), dtype=torch.float64)
    return (frequency * steps + 0.01 * steps.sqrt()).sin().reshape(size)


@cache
def _shapes(network: str, share: int = 1) -> Shapes:
    """A network's shapes with this share of its channels."""
    # So large that ResNet-50's last maps have more than one position.
    probed = probe_shapes(network, num_classes=10, in_channels=1, image_size=(64, 48))
    maps = {tap: (size[0] // share, *size[1:]) for tap, size in probed.maps.items()}
    return replace(probed, maps=maps, embedding_width=probed.embedding_width // share)


def _wave_taps(shapes: Shapes, images: int, frequency: float, teacher: Shapes) -> Taps:
    preactivations = {
        tap: _wave(images, *size, frequency=frequency) for tap, size in shapes.maps.items()
    }
    return Taps(
        3 * _wave(images, shapes.num_classes, frequency=frequency),
        _wave(images, shapes.embedding_width, frequency=frequency).relu(),
        {tap: value.relu() for tap, value in preactivations.items()},
        preactivations,
        class_maps=None
        if shapes.class_map is None
        else 3 * _wave(images, shapes.num_classes, *shapes.class_map, frequency=frequency),
        pooled_map=None
        if shapes.class_map is None
        else _wave(images, teacher.embedding_width, *shapes.class_map, frequency=frequency).relu(),
        strong_logits=3 * _wave(images, shapes.num_classes, frequency=frequency + 0.1),
    )


def _golden_loss(name: str) -> float:
    where = NetworkPair(_shapes("resnet8"), _shapes("resnet50", 16), torch.arange(32) % 10)
    torch.manual_seed(0)  # for the few methods that draw
    method = CATALOGUE[name](CATALOGUE[name].Params(), where).double().train()
    with torch.no_grad():
        for number, parameter in enumerate(method.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(0.2 * _wave(*parameter.shape, frequency=1.3 + number))
    student = _wave_taps(where.student, 8, 0.7, where.teacher)
    teacher = _wave_taps(where.teacher, 8, 0.9, where.teacher)
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
