"""What each method computes: golden values, and the papers' equations written out with loops.

Only here are methods named.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from kdcore.backbones import probe_shapes
from kdcore.layers import resolve_layers
from kdcore.methods import CATALOGUE
from kdcore.methods.at import AT, at_loss, attention
from kdcore.methods.fitnet import FitNet, hint_loss
from kdcore.methods.kd import kd_loss
from kdcore.methods.rkd import rkd_loss
from kdcore.taps import Batch, Setting, Shapes, Taps

# The loss of each method with its published settings, for the inputs of `_golden_inputs`.
GOLDEN = {
    "at": 6.17226628572356e-05,
    "fitnet": 0.22631682575347944,
    "kd": 4.137310399671012,
    "none": 0.0,
    "rkd": 8.120422459535998,
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
    where = Setting(_shapes("resnet8"), _shapes("resnet50"), train_images=32)
    method = CATALOGUE[name](CATALOGUE[name].Params(), where).double().train()
    with torch.no_grad():
        for number, parameter in enumerate(method.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(0.2 * _wave(*parameter.shape, frequency=1.3 + number))
    student = _wave_taps(where.student, 8, frequency=0.7)
    teacher = _wave_taps(where.teacher, 8, frequency=0.9)
    batch = Batch(torch.arange(8) % 10, torch.arange(8) * 4, epoch=2, epochs=5)
    return method(student, teacher, batch).item()


def test_every_method_has_a_golden_value() -> None:
    assert set(GOLDEN) == set(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_loss_has_its_golden_value(name: str) -> None:
    assert _golden_loss(name) == pytest.approx(GOLDEN[name], rel=1e-6, abs=1e-12)


# The papers' equations, written out


def _random(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _softened(logits: Tensor, temperature: float) -> list[float]:
    exponentials = [math.exp(logit / temperature) for logit in logits.tolist()]
    return [value / sum(exponentials) for value in exponentials]


def naive_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 / B * sum over images of sum_k p_k log(p_k / q_k), with softened p and q."""
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        p, q = _softened(teacher_row, temperature), _softened(student_row, temperature)
        total += sum(pk * math.log(pk / qk) for pk, qk in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 16.0])
@pytest.mark.parametrize(("images", "classes"), [(1, 2), (5, 10), (7, 3)])
def test_kd_is_the_divergence_of_softened_probabilities(
    images: int, classes: int, temperature: float
) -> None:
    student, teacher = _random(images, classes, seed=1), 3 * _random(images, classes, seed=2)
    expected = naive_kd(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature=temperature).item() == pytest.approx(
        expected, rel=1e-8
    )


def test_kd_does_not_see_a_shift_of_an_images_logits() -> None:
    student, teacher = _random(4, 6, seed=1), _random(4, 6, seed=2)
    straight = kd_loss(student, teacher, temperature=3.0)
    shifted = kd_loss(student + _random(4, 1, seed=3), teacher - 5, temperature=3.0)
    assert shifted.item() == pytest.approx(straight.item(), rel=1e-10)


def test_kd_weighs_by_the_teachers_probabilities() -> None:
    student, teacher = _random(4, 6, seed=1), _random(4, 6, seed=2)
    there = kd_loss(student, teacher, temperature=1.0).item()
    back = kd_loss(teacher, student, temperature=1.0).item()
    assert abs(there - back) > 1e-3


def _pooled(feature_map: Tensor, height: int, width: int) -> Tensor:
    """Means over windows from floor(i * H / h) to ceil((i + 1) * H / h), like adaptive pooling."""
    images, channels, rows, columns = feature_map.shape
    out = torch.empty(images, channels, height, width, dtype=feature_map.dtype)
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -(-(i + 1) * rows // height)
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            out[:, :, i, j] = feature_map[:, :, top:bottom, left:right].mean((2, 3))
    return out


def _to_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return _pooled(student, height, width), _pooled(teacher, height, width)


def _naive_attention(feature_map: Tensor, power: int) -> list[float]:
    """The attention of one image, [C, H, W], row by row."""
    channels, height, width = feature_map.shape
    values = []
    for i in range(height):
        for j in range(width):
            column = feature_map[:, i, j].tolist()
            values.append(sum(abs(value) ** power for value in column) / channels)
    length = math.sqrt(sum(value**2 for value in values))
    return [value / length for value in values]


def naive_at(student: Tensor, teacher: Tensor, power: int) -> float:
    """Mean over images and positions of the squared difference of unit attention vectors."""
    student, teacher = _to_one_size(student, teacher)
    total, count = 0.0, 0
    for student_map, teacher_map in zip(student, teacher, strict=True):
        for a, b in zip(
            _naive_attention(student_map, power), _naive_attention(teacher_map, power), strict=True
        ):
            total += (a - b) ** 2
            count += 1
    return total / count


MAP_SIZES = [
    ((2, 3, 4, 4), (2, 5, 4, 4)),
    ((1, 4, 8, 6), (1, 2, 4, 3)),
    ((3, 2, 3, 8), (3, 2, 6, 4)),
    ((2, 3, 5, 7), (2, 3, 3, 2)),
]


@pytest.mark.parametrize("power", [1, 2, 3, 4])
@pytest.mark.parametrize(("student_size", "teacher_size"), MAP_SIZES)
def test_at_is_the_squared_distance_of_attention_maps(
    student_size: tuple[int, ...], teacher_size: tuple[int, ...], power: int
) -> None:
    student, teacher = _random(*student_size, seed=1), _random(*teacher_size, seed=2)
    expected = naive_at(student, teacher, power)
    assert at_loss(student, teacher, power=power).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("layers", ["all", "middle", "stage2:stage4", "stem:stage1"])
def test_at_adds_up_over_its_pairs_of_layers(layers: str) -> None:
    where = Setting(_shapes("resnet8"), _shapes("resnet50"), train_images=32)
    student = _wave_taps(where.student, 3, frequency=0.7)
    teacher = _wave_taps(where.teacher, 3, frequency=0.9)
    expected = sum(
        naive_at(student.maps[pair.student], teacher.maps[pair.teacher], power=2)
        for pair in resolve_layers(layers, where.student, where.teacher)
    )
    method = AT(AT.Params(layers=layers), where)
    batch = Batch(torch.zeros(3, dtype=torch.int64), torch.arange(3), 1, 1)
    assert method(student, teacher, batch).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("power", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_attention_has_length_one_however_strong_the_map(scale: float, power: int) -> None:
    # Activations of 0.001 or 1,000 occur; to the power of 4 they come near float32's limits.
    feature_map = _random(2, 8, 4, 4, seed=1).relu().float() * scale
    lengths = attention(feature_map, power=power).double().norm(dim=1)
    assert lengths.tolist() == pytest.approx([1.0, 1.0], rel=1e-4)


def test_a_zero_map_has_zero_attention() -> None:
    assert not attention(torch.zeros(2, 3, 4, 4), power=2).any()


def naive_fitnet(
    student: Tensor, teacher: Tensor, kernel: Tensor, scale: Tensor, shift: Tensor, relu: bool
) -> float:
    """Mean square of r(student) - teacher; r: a 1x1 convolution, batch norm and maybe a ReLU."""
    student, teacher = _to_one_size(student, teacher)
    images, out_channels, height, width = teacher.shape
    total, count = 0.0, 0
    for channel in range(out_channels):
        regressed = torch.zeros(images, height, width, dtype=torch.float64)
        for source in range(student.shape[1]):
            regressed += kernel[channel, source, 0, 0] * student[:, source]
        mean = regressed.mean()
        variance = ((regressed - mean) ** 2).mean()
        regressed = (regressed - mean) / (variance + 1e-5) ** 0.5 * scale[channel] + shift[channel]
        if relu:
            regressed = torch.where(regressed > 0, regressed, 0.0)
        total += ((regressed - teacher[:, channel]) ** 2).sum().item()
        count += images * height * width
    return total / count


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layers", ["middle", "stem:stage2", "stage3:stage1"])
@pytest.mark.parametrize("networks", [("resnet8", "resnet50"), ("resnet8x4", "resnet8")])
def test_fitnet_is_the_mean_square_behind_its_regressor(
    networks: tuple[str, str], layers: str, relu: bool
) -> None:
    where = Setting(_shapes(networks[0]), _shapes(networks[1]), train_images=32)
    method = FitNet(FitNet.Params(relu=relu, layers=layers), where).double().train()
    convolution, norm = method.regressors[0][0], method.regressors[0][1]
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * _wave(*norm.weight.shape, frequency=1.1))
        norm.bias.copy_(0.3 * _wave(*norm.bias.shape, frequency=1.7))
    (pair,) = resolve_layers(layers, where.student, where.teacher)
    student = _wave_taps(where.student, 3, frequency=0.7)
    teacher = _wave_taps(where.teacher, 3, frequency=0.9)
    expected = naive_fitnet(
        student.maps[pair.student],
        teacher.maps[pair.teacher],
        convolution.weight.detach(),
        norm.weight.detach(),
        norm.bias.detach(),
        relu,
    )
    batch = Batch(torch.zeros(3, dtype=torch.int64), torch.arange(3), 1, 1)
    assert method(student, teacher, batch).item() == pytest.approx(expected, rel=1e-8)


def _huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def _naive_distances(rows: list[list[float]]) -> list[list[float]]:
    """Equations 6 and 7: distances over the mean of those that are not zero."""
    distances = [[math.dist(a, b) for b in rows] for a in rows]
    nonzero = [value for line in distances for value in line if value > 0]
    mean = sum(nonzero) / len(nonzero)
    return [[value / mean for value in line] for line in distances]


def _naive_cosine(a: list[float], corner: list[float], b: list[float]) -> float:
    """Equation 8: the cosine of the angle at the corner; 0 where a point lies in it."""
    to_a = [x - y for x, y in zip(a, corner, strict=True)]
    to_b = [x - y for x, y in zip(b, corner, strict=True)]
    lengths = math.hypot(*to_a) * math.hypot(*to_b)
    return sum(x * y for x, y in zip(to_a, to_b, strict=True)) / lengths if lengths else 0.0


def naive_rkd(
    student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float
) -> float:
    """Means over all pairs and all triplets, those of equal images included."""
    s, t = student.tolist(), teacher.tolist()
    images = range(len(s))
    student_distances, teacher_distances = _naive_distances(s), _naive_distances(t)
    distance = sum(
        _huber(student_distances[i][j] - teacher_distances[i][j]) for i in images for j in images
    )
    angle = sum(
        _huber(_naive_cosine(s[i], s[j], s[k]) - _naive_cosine(t[i], t[j], t[k]))
        for i in images
        for j in images
        for k in images
    )
    return distance_weight * distance / len(s) ** 2 + angle_weight * angle / len(s) ** 3


def _two_equal_rows(rows: Tensor) -> Tensor:
    return torch.cat([rows[:1], rows[:1], rows[2:]])


RKD_EMBEDDINGS = {
    "two images": (_random(2, 3, seed=1), _random(2, 5, seed=2)),
    "ordinary": (_random(5, 4, seed=1), _random(5, 4, seed=2)),
    "wider teacher": (_random(7, 3, seed=1), 10 * _random(7, 12, seed=2)),
    "two equal students": (_two_equal_rows(_random(6, 4, seed=1)), _random(6, 5, seed=2)),
    "two equal teachers": (_random(6, 4, seed=1), _two_equal_rows(_random(6, 5, seed=2))),
    # One far point, so that some differences are beyond the Huber loss's corner.
    "far point": (
        _random(6, 4, seed=1) + 30 * torch.eye(6, 4, dtype=torch.float64)[[0, 5, 5, 5, 5, 5]],
        _random(6, 5, seed=2),
    ),
    "far from the origin": (_random(5, 4, seed=1) + 100, _random(5, 4, seed=2) - 50),
}


@pytest.mark.parametrize(
    ("distance_weight", "angle_weight"), [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)]
)
@pytest.mark.parametrize("case", RKD_EMBEDDINGS)
def test_rkd_is_the_huber_distance_of_distances_and_angles(
    case: str, distance_weight: float, angle_weight: float
) -> None:
    student, teacher = RKD_EMBEDDINGS[case]
    loss = rkd_loss(
        student, teacher, distance_weight=distance_weight, angle_weight=angle_weight
    ).item()
    expected = naive_rkd(student, teacher, distance_weight, angle_weight)
    # Two points know one distance and no angle: both sides are then nought but for rounding.
    assert loss == pytest.approx(expected, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("equal", [2, 3, 8])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rkd_has_moderate_gradients_for_equal_rows(equal: int, offset: float) -> None:
    # Normalising a zero difference the usual way gives gradients of 1e11.
    embedding = _random(8, 16, seed=1).float() + offset
    embedding[:equal] = embedding[0]
    student = embedding.requires_grad_()
    rkd_loss(
        student, _random(8, 32, seed=2).float(), distance_weight=25.0, angle_weight=50.0
    ).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10


def test_rkd_keeps_its_digits_far_from_the_origin() -> None:
    # |a|^2 + |b|^2 - 2ab without centring has an error of 593 percent here.
    student = (100 + 0.01 * _random(8, 32, seed=1)).float()
    teacher = (100 + 0.01 * _random(8, 64, seed=2)).float()
    weights = {"distance_weight": 25.0, "angle_weight": 50.0}
    centred = rkd_loss(
        student.double() - student.double().mean(0),
        teacher.double() - teacher.double().mean(0),
        **weights,
    )
    assert rkd_loss(student, teacher, **weights).item() == pytest.approx(centred.item(), rel=1e-3)


def test_rkd_does_not_see_shift_rotation_and_scale() -> None:
    student, teacher = _random(6, 4, seed=1), _random(6, 4, seed=2)
    rotation = torch.linalg.qr(_random(4, 4, seed=3)).Q
    weights = {"distance_weight": 25.0, "angle_weight": 50.0}
    moved = rkd_loss(7 * student @ rotation + 3, teacher, **weights)
    assert moved.item() == pytest.approx(rkd_loss(student, teacher, **weights).item(), rel=1e-8)
    assert abs(rkd_loss(7 * student @ rotation + 3, student, **weights).item()) <= 1e-10


def test_rkd_of_one_image_is_zero_and_has_a_gradient() -> None:
    student = _random(1, 4, seed=1).requires_grad_()
    loss = rkd_loss(student, _random(1, 6, seed=2), distance_weight=25.0, angle_weight=50.0)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


# Rules for every pure loss function

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: Mapping[str, tuple[Loss, tuple[int, ...], tuple[int, ...]]] = {
    "kd": (lambda s, t: kd_loss(s, t, temperature=3.0), (4, 5), (4, 5)),
    "at power 1": (lambda s, t: at_loss(s, t, power=1), (2, 3, 4, 3), (2, 2, 2, 6)),
    "at power 2": (lambda s, t: at_loss(s, t, power=2), (2, 3, 4, 4), (2, 2, 2, 2)),
    "at power 4": (lambda s, t: at_loss(s, t, power=4), (2, 3, 3, 3), (2, 2, 3, 3)),
    "hint": (hint_loss, (2, 3, 4, 4), (2, 3, 4, 4)),
    "rkd distance": (
        lambda s, t: rkd_loss(s, t, distance_weight=1.0, angle_weight=0.0),
        (5, 3),
        (5, 4),
    ),
    "rkd angle": (
        lambda s, t: rkd_loss(s, t, distance_weight=0.0, angle_weight=1.0),
        (5, 3),
        (5, 4),
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    loss, student_size, teacher_size = LOSSES[case]
    student = _random(*student_size, seed=11).requires_grad_()
    teacher = _random(*teacher_size, seed=12).requires_grad_()
    assert gradcheck(loss, (student, teacher))


@pytest.mark.parametrize("case", LOSSES)
def test_a_divergence_is_zero_at_equality_and_positive_elsewhere(case: str) -> None:
    loss, size, _ = LOSSES[case]
    student = _random(*size, seed=11)
    assert abs(loss(student, student.clone()).item()) <= 1e-10
    assert loss(student, _random(*size, seed=12)).item() > 1e-4


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_widened_before_anything_is_computed(
    case: str, dtype: torch.dtype
) -> None:
    loss, student_size, teacher_size = LOSSES[case]
    student = _random(*student_size, seed=11).to(dtype)
    teacher = _random(*teacher_size, seed=12).to(dtype)
    expected = loss(student.double(), teacher.double()).item()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(student, teacher)
    assert under_autocast.dtype == torch.float32
    assert under_autocast.item() == pytest.approx(expected, rel=1e-4)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_losses_take_their_tensors_by_name_too() -> None:
    student, teacher = _random(4, 5, seed=1).bfloat16(), _random(4, 5, seed=2).bfloat16()
    by_name = kd_loss(student_logits=student, teacher_logits=teacher, temperature=2.0)
    assert by_name.item() == kd_loss(student, teacher, temperature=2.0).item()
