"""The training loop: recipes, evaluation, clipping, precision, and losses that explode."""

import copy
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore import Classifier, EpochReport, NonFiniteLossError, Recipe, TermConfig
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.probe import probe_shapes
from kdcore.backbones.resnet import BasicBlock, ResNet
from kdcore.contract.method import Method
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.split import TableSplit
from kdcore.distillation.distill import build_terms, network_pair
from kdcore.execution.execution import Execution, Precision
from kdcore.methods import CATALOGUE
from kdcore.teacher.teacher import load_teacher
from kdcore.training.checkpoint import FILE_NAME, read_checkpoint
from kdcore.training.evaluation import evaluate
from kdcore.training.loop import best_student, train
from kdcore.training.run import Term
from tests.cases import Case

CPU = torch.device("cpu")
NEEDY = [name for name, method in CATALOGUE.items() if method.needs]

# The others begin with a preparation, which has no weight.
JOINT = [name for name in NEEDY if not getattr(CATALOGUE[name].Params(), "preparation_share", 0)]

every_method = pytest.mark.parametrize("name", CATALOGUE)


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {"epochs": 1, "batch_size": 64, "schedule": "constant", "acceleration": "off"} | changes
    )


@pytest.fixture(scope="module")
def one_batch(digits: ImageData, workspace: Path) -> ImageData:
    """So few training images that an epoch is one step."""
    return open_data(digits.config.model_copy(update={"train_images": 64}), workspace)


@pytest.fixture
def student(digits: ImageData) -> Classifier:
    network = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
    return Classifier(network, digits.mean, digits.std)


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> Classifier:
    return load_teacher(teacher_dir)


def terms_of(names: Sequence[str], data: ImageData, **params: float) -> tuple[Term, ...]:
    objective = tuple(
        TermConfig.model_validate({"method": name, "params": params}) for name in names
    )
    return build_terms(objective, network_pair("resnet8", "resnet14", data), seed=0)


def train_of(
    student: Classifier,
    terms: Sequence[Term],
    teacher: Classifier | None,
    data: ImageData,
    how: Recipe,
    execution: Execution = Execution(),  # noqa: B008  (frozen)
    teacher_execution: Execution | None = None,
    *,
    checkpoint_dir: Path | None = None,
    device: torch.device = CPU,
) -> Iterator[EpochReport]:
    return train(
        student,
        terms,
        teacher,
        data,
        how,
        seed=0,
        identity="test",
        device=device,
        checkpoint_dir=checkpoint_dir,
        execution=execution,
        teacher_execution=teacher_execution or execution,
    )


def run(*arguments: Any, **options: Any) -> list[EpochReport]:
    """All reports of a training."""
    return list(train_of(*arguments, **options))


# Recipes


@pytest.mark.parametrize(
    ("progress", "share"), [(0, 1.0), (60, 0.5 + 0.5 * math.sqrt(0.5)), (120, 0.5), (240, 0.0)]
)
def test_the_cosine_falls_from_the_peak_to_zero(progress: float, share: float) -> None:
    how = recipe(epochs=240, learning_rate=0.4, schedule="cosine")
    assert how.learning_rate_at(progress) == pytest.approx(0.4 * share, abs=1e-12)


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 1), (149.99, 1), (150, 0.1), (179.99, 0.1), (180, 0.01), (210, 0.001), (240, 0.001)],
)
def test_steps_come_at_the_epochs_of_the_field(progress: float, share: float) -> None:
    how = recipe(epochs=240, learning_rate=0.05, schedule="step")
    assert how.learning_rate_at(progress) == pytest.approx(0.05 * share)


@pytest.mark.parametrize("progress", [0, 1.5, 3])
def test_a_constant_rate_is_constant(progress: float) -> None:
    assert recipe(epochs=3, learning_rate=0.02).learning_rate_at(progress) == 0.02


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant", "wsd"])
def test_a_warm_up_rises_linearly_from_zero_and_then_the_schedule_takes_over(
    schedule: str,
) -> None:
    warm = recipe(epochs=10, learning_rate=0.8, schedule=schedule, warmup_epochs=2)
    cold = recipe(epochs=8, learning_rate=0.8, schedule=schedule)
    assert [warm.learning_rate_at(progress) for progress in (0, 0.5, 1, 1.5)] == pytest.approx(
        [0, 0.2, 0.4, 0.6]
    )
    for progress in (2, 5, 7, 10):
        assert warm.learning_rate_at(progress) == cold.learning_rate_at(progress - 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"optimizer": "adam"},
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"momentum": 1},
        {"weight_decay": -1e-9},
        {"schedule": "linear"},
        {"warmup_epochs": -1},
        {"epochs": 3, "warmup_epochs": 3},
        {"gradient_clip_norm": 0},
        {"acceleration": "on"},
        {"lr": 0.1},
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        recipe(**wrong)


# Evaluation


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_agrees_with_a_loop_over_single_images(
    training: bool, student: Classifier, digits: ImageData, workspace: Path
) -> None:
    # More images than evaluation takes at once, and statistics that are not those of a fresh
    # network.
    data = open_data(digits.config.model_copy(update={"train_images": 700}), workspace)
    run(student, (), None, digits, recipe())
    student.train(training)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    accuracy, loss = evaluate(student, data.train)
    assert student.training == training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())

    student.eval()
    right = undecided = 0
    total = 0.0
    with torch.no_grad():
        for image, label in zip(data.train.images, data.train.labels, strict=True):
            (logits,) = student(image[None])
            first, second = logits.topk(2).values
            undecided += int(first - second < 1e-4)  # rounding decides
            right += int(logits.argmax() == label)
            total -= logits.log_softmax(0)[label].item()
    assert abs(accuracy * 700 - right) <= undecided + 1e-3
    assert loss == pytest.approx(total / 700, rel=1e-5)


def test_evaluation_of_one_image(student: Classifier, digits: ImageData) -> None:
    part = digits.heldout
    one = replace(
        part, images=part.images[:1], labels=part.labels[:1], image_ids=part.image_ids[:1]
    )
    accuracy, loss = evaluate(student, one)
    assert accuracy in (0.0, 1.0)
    logits = student.eval()(one.images)
    assert loss == pytest.approx(cross_entropy(logits, one.labels).item(), rel=1e-5)


# Steps


@pytest.mark.parametrize(
    ("names", "optimizer"),
    [*(([name], "sgd") for name in CATALOGUE), (list(CATALOGUE), "adamw")],
    ids=[*CATALOGUE, "all"],
)
def test_a_step_moves_every_parameter_of_student_and_helpers_and_none_of_the_teacher(
    names: list[str], optimizer: str, student: Classifier, teacher: Classifier, one_batch: ImageData
) -> None:
    terms = terms_of(names, one_batch)
    trained = nn.ModuleList([student, *(term.method for term in terms)])
    before = {key: value.clone() for key, value in trained.named_parameters()}
    frozen = {key: value.clone() for key, value in teacher.state_dict().items()}
    # The second epoch is for methods whose first one prepares, the third for those whose last one
    # has no weight.
    run(student, terms, teacher, one_batch, recipe(optimizer=optimizer, epochs=3))
    for key, value in trained.named_parameters():
        assert not torch.equal(value, before[key]), key
    assert all(torch.equal(value, frozen[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("names", [[], list(CATALOGUE)], ids=["student", "helpers"])
@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_clipping_limits_the_norm_of_the_gradient_of_student_and_helpers_together(
    names: list[str], clip: float, student: Classifier, teacher: Classifier, one_batch: ImageData
) -> None:
    terms = terms_of(names, one_batch)
    parameters = [
        parameter
        for module in (student, *(term.method for term in terms))
        for parameter in module.parameters()
    ]
    before = [parameter.detach().clone() for parameter in parameters]
    # Without momentum and decay a step of rate 1 is the gradient itself.
    how = recipe(learning_rate=1, momentum=0, weight_decay=0, gradient_clip_norm=clip)
    run(student, terms, teacher, one_batch, how)
    steps = [now.detach() - then for now, then in zip(parameters, before, strict=True)]
    norm = torch.cat([step.flatten() for step in steps]).double().norm().item()
    if clip < 1:
        assert norm == pytest.approx(clip, rel=1e-2)
    else:
        assert 0.1 < norm < clip


def test_cross_entropy_has_the_largest_factor_of_an_objectives_methods(
    student: Classifier, teacher: Classifier, digits: ImageData
) -> None:
    first = copy.deepcopy(student)
    objectives: list[tuple[dict[str, dict[str, float]], float]] = [
        ({}, 1),
        ({"kd": {}}, 0.1),
        ({"kd": {"cross_entropy": 0.7}}, 0.7),
        ({"kd": {}, "pkt": {}}, 1),
        ({"kd": {"cross_entropy": 0.2}, "pkt": {"cross_entropy": 0.0}}, 0.2),
        ({"kd": {"cross_entropy": 0.0}}, 0),
    ]
    for objective, factor in objectives:
        terms = [
            term for name, given in objective.items() for term in terms_of([name], digits, **given)
        ]
        (report,) = run(copy.deepcopy(first), terms, teacher, digits, recipe())
        values = dict(report.train_terms)
        expected = factor * values.pop("cross_entropy") + sum(
            term.method.params.weight * values[term.name] for term in terms
        )
        with Case(objective):
            assert report.train_loss == pytest.approx(expected, rel=1e-5)


def test_without_cross_entropy_labels_do_not_matter(
    student: Classifier, teacher: Classifier, digits: ImageData
) -> None:
    train_split = digits.train
    assert isinstance(train_split, TableSplit)
    wrong = replace(digits, train=replace(train_split, labels=train_split.labels.flip(0)))
    ends: dict[float, list[dict[str, Tensor]]] = {}
    for factor in (0.0, 0.1):
        for data in (digits, wrong):
            trained = copy.deepcopy(student)
            run(trained, terms_of(["kd"], data, cross_entropy=factor), teacher, data, recipe())
            ends.setdefault(factor, []).append(trained.state_dict())
    for factor, (one, other) in ends.items():
        assert all(torch.equal(one[key], other[key]) for key in one) == (factor == 0)


def test_the_last_incomplete_batch_is_left_out(student: Classifier, digits: ImageData) -> None:
    (report,) = run(student, (), None, digits, recipe(batch_size=100))
    seen = report.train_accuracy * 300  # of 384 images
    assert seen == pytest.approx(round(seen))


def test_a_batch_is_never_larger_than_the_training_split(
    student: Classifier, one_batch: ImageData
) -> None:
    (report,) = run(student, (), None, one_batch, recipe(batch_size=1000))
    assert report.train_terms["cross_entropy"] > 0
    assert report.train_accuracy * 64 == pytest.approx(round(report.train_accuracy * 64))


class _Recorder(Method):
    """Remembers what every step knew."""

    paper: ClassVar[str] = "-"
    needs: ClassVar[frozenset[Tap]] = frozenset({Tap.LOGITS})
    seen: list[tuple[Batch, Taps, Taps]]

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        self.seen.append((batch, student, teacher))
        return student.logits.float().sum() * 0


def pair_of_networks(data: ImageData) -> NetworkPair:
    shapes = probe_shapes("resnet8", num_classes=10, in_channels=1, image_size=data.image_size)
    return NetworkPair(shapes, shapes, len(data.train))


def test_a_method_is_told_labels_positions_and_progress_and_sees_the_teachers_answers(
    student: Classifier, teacher: Classifier, digits: ImageData
) -> None:
    recorder = _Recorder(_Recorder.Params(), pair_of_networks(digits))
    recorder.seen = []
    how = recipe(epochs=2, batch_size=96)
    run(student, [Term("recorder", recorder)], teacher, digits, how)
    assert [batch.epoch for batch, _, _ in recorder.seen] == [1] * 4 + [2] * 4
    for epoch in (1, 2):
        batches = [batch for batch, _, _ in recorder.seen if batch.epoch == epoch]
        assert all(batch.epochs == 2 for batch in batches)
        positions = torch.cat([batch.indices for batch in batches])
        assert sorted(positions.tolist()) == list(range(384))
        assert positions.tolist() != sorted(positions.tolist())
        labels = torch.cat([batch.labels for batch in batches])
        assert torch.equal(labels, digits.train.labels[positions])
    first, second = recorder.seen[0][0].indices, recorder.seen[4][0].indices
    assert not torch.equal(first, second)
    for batch, _, taught in recorder.seen:
        (images,) = digits.train.views(
            batch.indices, digits.view_of(batch.epoch), len(batch.indices)
        )
        with torch.no_grad():
            assert torch.equal(taught.logits, teacher(images))


# Precision


class _Types(TorchDispatchMode):
    """Notes the type of every tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        outputs = result if isinstance(result, list | tuple) else [result]
        self.seen |= {value.dtype for value in outputs if isinstance(value, Tensor)}
        return result


@pytest.mark.parametrize("precision", get_args(Precision))
def test_networks_compute_in_the_precision_that_is_asked_for(
    precision: Precision, student: Classifier, teacher: Classifier, one_batch: ImageData
) -> None:
    way = Execution(precision)
    with _Types() as types:
        run(student, terms_of(list(CATALOGUE), one_batch), teacher, one_batch, recipe(), way)
    halves = {torch.bfloat16, torch.float16}
    assert types.seen & halves == {getattr(torch, precision)} - {torch.float32}
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_the_teacher_may_compute_in_another_way_than_the_student(
    student: Classifier, teacher: Classifier, one_batch: ImageData
) -> None:
    ways = (Execution(), Execution("bfloat16"))
    with _Types() as types:
        run(student, terms_of(["kd"], one_batch), teacher, one_batch, recipe(), *ways)
    assert torch.bfloat16 in types.seen
    with _Types() as types:
        run(student, (), None, one_batch, recipe(), *ways)
    assert torch.bfloat16 not in types.seen


@every_method
def test_every_method_learns_in_bfloat16(
    name: str, student: Classifier, teacher: Classifier, one_batch: ImageData
) -> None:
    way = Execution("bfloat16", channels_last=True)
    how = recipe(epochs=4)
    first, *_, last = run(student, terms_of([name], one_batch), teacher, one_batch, how, way)
    # A strong term may hold cross-entropy back, and contrast with fresh banks rises at first.
    crosses = [report.train_terms["cross_entropy"] for report in (first, last)]
    assert last.train_loss < first.train_loss or crosses[1] < crosses[0]
    accuracy, loss = evaluate(student, one_batch.heldout)  # in float32, as reports promise
    assert (last.heldout_accuracy, last.heldout_loss) == (accuracy, loss)


def test_float16_learns_resumes_with_its_scale_and_clips_true_gradients(
    student: Classifier, teacher: Classifier, one_batch: ImageData, tmp_path: Path
) -> None:
    how = recipe(epochs=5, batch_size=32, gradient_clip_norm=1.0)
    ways = Execution("float16"), Execution()
    fresh = student, terms_of(["kd"], one_batch)

    def start(*how_both_compute: Execution, folder: str) -> Iterator[EpochReport]:
        network, terms = copy.deepcopy(fresh)
        return train_of(
            network,
            terms,
            teacher,
            one_batch,
            how,
            *how_both_compute,
            checkpoint_dir=tmp_path / folder,
        )

    losses = [report.train_loss for report in start(*ways, folder="whole")]
    exact = [report.train_loss for report in start(Execution(), folder="exact")]
    assert losses[-1] < losses[0]
    # Eleven bits, and gradients whose norm is the clipped one whatever they were scaled by.
    assert losses == pytest.approx(exact, rel=0.05)

    next(start(*ways, folder="cut"))
    assert [report.train_loss for report in start(*ways, folder="cut")] == losses[1:]
    state = read_checkpoint(tmp_path / "cut", CPU)
    assert state is not None
    assert state["scaler"]["scale"] > 1


# Losses that explode


def test_a_rate_that_is_too_high_ends_the_run(student: Classifier, digits: ImageData) -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"the term cross_entropy is not finite at epoch 1, step 2;"
    ):
        run(student, (), None, digits, recipe(epochs=3, learning_rate=1e30))


@pytest.mark.parametrize("name", ["kd", "at", "vid", "crd"])
def test_a_weight_that_is_too_high_ends_the_run(
    name: str, student: Classifier, teacher: Classifier, digits: ImageData
) -> None:
    terms = terms_of([name], digits, weight=1e30)
    with pytest.raises(
        NonFiniteLossError,
        match=rf"the term (cross_entropy|{name}) is not finite at epoch [12], step \d+; lower the",
    ):
        run(student, terms, teacher, digits, recipe(epochs=3))


@pytest.mark.parametrize("name", JOINT)
def test_a_term_that_its_weight_lifts_out_of_float32_is_named(
    name: str, student: Classifier, teacher: Classifier, one_batch: ImageData
) -> None:
    terms = terms_of([name], one_batch, weight=1e39)
    with pytest.raises(
        NonFiniteLossError, match=f"the term {name} is not finite at epoch 1, step 1;"
    ):
        run(student, terms, teacher, one_batch, recipe())


def test_no_epoch_is_reported_whose_student_is_broken(
    student: Classifier, one_batch: ImageData, tmp_path: Path
) -> None:
    # The loss of the only step is finite; what the step leaves is not.
    reports = train(
        student,
        (),
        None,
        one_batch,
        recipe(learning_rate=1e30),
        seed=0,
        identity="test",
        device=CPU,
        checkpoint_dir=tmp_path,
    )
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        next(reports)
    assert not (tmp_path / FILE_NAME).exists()


class _Breaks(Method):
    """Is not a number in the third step of the second epoch."""

    paper: ClassVar[str] = "-"
    needs: ClassVar[frozenset[Tap]] = frozenset({Tap.LOGITS})
    value: float
    step = 0

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        self.step = self.step + 1 if batch.epoch == 2 else 0
        return student.logits.sum() * (self.value if self.step == 3 else 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_the_first_term_that_is_not_finite_is_named_and_the_last_good_epoch_is_kept(
    value: float, student: Classifier, teacher: Classifier, digits: ImageData, tmp_path: Path
) -> None:
    breaks = _Breaks(_Breaks.Params(), pair_of_networks(digits))
    breaks.value = value
    terms = [*terms_of(["kd", "at", "vid"], digits), Term("breaks", breaks)]
    with pytest.raises(
        NonFiniteLossError, match=r"^the term breaks is not finite at epoch 2, step 3;"
    ):
        run(student, terms, teacher, digits, recipe(epochs=3), checkpoint_dir=tmp_path)
    state = read_checkpoint(tmp_path, CPU)
    assert state is not None
    assert state["epoch"] == 1


@pytest.mark.parametrize(("lesson", "best_epoch"), [("the same class", 3), ("all others", 1)])
def test_of_equally_accurate_epochs_the_one_of_lower_loss_is_best(
    lesson: str, best_epoch: int, student: Classifier, digits: ImageData, tmp_path: Path
) -> None:
    # Held out are noughts only, and the student says nought to everything: every epoch is right,
    # and surer of itself or less so, depending on what it learns.
    def part(split: TableSplit, chosen: Tensor) -> TableSplit:
        return replace(
            split,
            images=split.images[chosen],
            labels=split.labels[chosen],
            image_ids=split.image_ids[chosen],
        )

    noughts = digits.train.labels == 0
    data = replace(
        digits,
        train=part(digits.train, noughts if lesson == "the same class" else ~noughts),
        heldout=part(digits.heldout, digits.heldout.labels == 0),
    )
    with torch.no_grad():
        student.backbone.fc.bias[0] = 6.0
    how = recipe(epochs=3, batch_size=32, learning_rate=1e-4)
    reports = run(student, (), None, data, how, checkpoint_dir=tmp_path)
    assert [report.heldout_accuracy for report in reports] == [1.0] * 3
    losses = [report.heldout_loss for report in reports]
    assert losses.index(min(losses)) == best_epoch - 1
    assert reports[-1].best_epoch == best_epoch
    best = best_student(tmp_path)
    assert (best["epoch"], best["accuracy"], best["loss"]) == (best_epoch, 1.0, min(losses))
    student.backbone.load_state_dict(best["student"])
    assert evaluate(student, data.heldout) == (1.0, min(losses))


# Options


@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="torch.compile needs a C++ compiler; install Debian's package g++",
)
def test_a_compiled_student_learns_what_it_learns_otherwise(
    teacher: Classifier, digits: ImageData
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # One block: the compiler takes its seconds for every layer.
        network = ResNet(
            10, 1, block=BasicBlock, depths=(1,), stem_width=4, widths=(4,), small_images=True
        )
    student = Classifier(network, digits.mean, digits.std)
    twin = copy.deepcopy(student)
    terms = terms_of(["kd"], digits)
    usual = run(student, terms, teacher, digits, recipe(epochs=2))
    compiled = run(twin, terms, teacher, digits, recipe(epochs=2, compile=True))
    for one, other in zip(usual, compiled, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="CUDA graphs need an NVIDIA GPU; run this on a machine that has one",
)
def test_steps_captured_in_a_graph_learn_what_they_learn_otherwise(
    student: Classifier, teacher: Classifier, digits: ImageData
) -> None:
    gpu = torch.device("cuda")
    for name, optimizer in product(CATALOGUE, ("sgd", "adamw")):
        reports = []
        for cuda_graph in (False, True):
            how = recipe(epochs=3, optimizer=optimizer, learning_rate=0.01, cuda_graph=cuda_graph)
            learner = copy.deepcopy(student)
            terms = terms_of([name], digits)
            reports.append(run(learner, terms, teacher, digits, how, device=gpu))
        for one, other in zip(*reports, strict=True):
            loss = pytest.approx(other.train_loss, rel=1e-3)
            assert one.train_loss == loss, (name, optimizer)


# Batches in parts


@pytest.mark.parametrize(("name", "parts"), [("kd", 2), ("kd", 3), ("at", 3), ("vid", 3)])
def test_a_batch_in_parts_gives_the_same_step_where_images_do_not_mix(
    name: str, parts: int, one_batch: ImageData, teacher: Classifier
) -> None:
    def learned(parts: int) -> tuple[list[EpochReport], Tensor]:
        network = build_backbone("resnet8", num_classes=10, in_channels=1, seed=0)
        for module in network.modules():  # batch norms mix the images of a part
            for child, inner in list(module.named_children()):
                if isinstance(inner, nn.BatchNorm2d):
                    setattr(module, child, nn.GroupNorm(4, inner.num_features))
        student = Classifier(network, one_batch.mean, one_batch.std)
        reports = list(
            train(
                student,
                terms_of([name], one_batch),
                teacher,
                one_batch,
                recipe(learning_rate=0.01),
                seed=0,
                identity="test",
                device=CPU,
                checkpoint_dir=None,
                parts=parts,
            )
        )
        return reports, torch.cat([weights.flatten() for weights in student.parameters()])

    (whole,), weights = learned(1)
    (parted,), weights_of_parts = learned(parts)
    assert (whole.parts, parted.parts) == (1, parts)
    torch.testing.assert_close(weights_of_parts, weights, rtol=1e-3, atol=1e-5)
    assert parted.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert parted.train_terms == pytest.approx(whole.train_terms, rel=1e-4)
    # Where two logits are all but equal, rounding decides which is larger.
    assert parted.train_accuracy == pytest.approx(whole.train_accuracy, abs=1 / 64)


@every_method
def test_every_method_learns_from_a_batch_in_parts(
    name: str, one_batch: ImageData, student: Classifier, teacher: Classifier
) -> None:
    reports = train(
        student,
        terms_of([name], one_batch),
        teacher,
        one_batch,
        recipe(epochs=2),
        seed=0,
        identity="test",
        device=CPU,
        checkpoint_dir=None,
        parts=2,
    )
    assert all(math.isfinite(report.train_loss) for report in reports)
