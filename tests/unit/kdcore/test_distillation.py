"""Distilling one student: from a configuration to reports, and on after an interruption."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdcore import (
    CacheConfig,
    DataConfig,
    EpochReport,
    Recipe,
    TeacherConfig,
    TermConfig,
    TrialConfig,
    distill,
)
from kdcore.backbones.catalogue import build_backbone
from kdcore.data.image_data import ImageData
from kdcore.distillation.distill import build_terms, network_pair
from kdcore.execution.execution import Execution, Precision
from kdcore.methods import CATALOGUE
from kdcore.networks.config import StudentConfig
from kdcore.training.checkpoint import FILE_NAME, read_checkpoint
from kdcore.training.loop import best_student

CPU = torch.device("cpu")
CONTROL = next(name for name, method in CATALOGUE.items() if not method.needs)
SEARCHED = next(name for name, method in CATALOGUE.items() if method.Params.searched())
EPOCHS = 3

# All methods in one objective: few steps will do.
TOGETHER = {"batch_size": 96}

# Those that read the labels of mixed images.
READ_LABELS = [name for name, method in CATALOGUE.items() if method.mixing != "no labels"]

every_method = pytest.mark.parametrize("name", CATALOGUE)

Configure = Callable[..., TrialConfig]


@pytest.fixture(scope="module")
def configure(digits_config: DataConfig, teacher_config: TeacherConfig) -> Configure:
    """Makes a trial's configuration from the names of its methods."""

    def make(*methods: str, seed: int = 0, **recipe: Any) -> TrialConfig:
        training = Recipe.model_validate(
            {"epochs": EPOCHS, "batch_size": 32, "acceleration": "off"} | recipe
        )
        return TrialConfig(
            data=digits_config,
            teacher=teacher_config,
            student="resnet8",
            objective=tuple(TermConfig.model_validate({"method": name}) for name in methods),
            training=training,
            seed=seed,
        )

    return make


# The folder within a run's own that keeps its checkpoint after all epochs but the last.
INTERRUPTED = "interrupted"

Finished = Callable[..., tuple[list[EpochReport], Path]]


@pytest.fixture(scope="module")
def finished(
    configure: Configure, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Runs an objective without interruption, once for all tests that look at it."""
    runs: dict[tuple[str, ...], tuple[list[EpochReport], Path]] = {}

    def run(*methods: str, **recipe: Any) -> tuple[list[EpochReport], Path]:
        if methods not in runs:
            folder = tmp_path_factory.mktemp("finished")
            reports = []
            config = configure(*methods, **recipe)
            for report in distill(config, workspace=workspace, checkpoint_dir=folder, device=CPU):
                reports.append(report)
                if report.epoch == EPOCHS - 1:
                    shutil.copytree(folder, folder / INTERRUPTED)
            runs[methods] = (reports, folder)
        return runs[methods]

    return run


def timeless(reports: list[EpochReport]) -> list[dict[str, Any]]:
    """The reports without the times, which no two runs share."""
    times = {"epoch_seconds", "seconds_by_part"}
    return [
        {field: value for field, value in asdict(report).items() if field not in times}
        for report in reports
    ]


def assert_same(one: Any, two: Any) -> None:
    """Equal to the last bit, tensors in nested containers included."""
    assert type(one) is type(two)
    if isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_same(first, second)
    else:
        assert one == two


# Reports


@every_method
def test_it_learns_from_the_labels_and_from_the_teacher(
    name: str, finished: Finished, digits: ImageData
) -> None:
    reports, _ = finished(name)
    first, *_, last = (report.train_terms["cross_entropy"] for report in reports)
    assert last < first or not CATALOGUE[name].Params().cross_entropy
    networks = network_pair("resnet8", "resnet14", digits)
    (term,) = build_terms((TermConfig.model_validate({"method": name}),), networks, seed=0)
    # What a memory holds in the first epoch is random, and easy to tell from anything.
    remembers = any(len(digits.train) in buffer.shape for buffer in term.method.buffers())
    if term.method.needs and not remembers:
        assert reports[-1].train_terms[name] < reports[0].train_terms[name]


@every_method
def test_reports_are_consistent(
    name: str, finished: Finished, configure: Configure, digits: ImageData
) -> None:
    config = configure(name)
    reports, _ = finished(name)
    assert [report.epoch for report in reports] == list(range(1, EPOCHS + 1))
    (published,) = config.objective
    weights = {"cross_entropy": published.params.cross_entropy, name: published.params.weight}
    steps = len(digits.train) // config.training.batch_size
    networks = network_pair("resnet8", "resnet14", digits)
    (term,) = build_terms(config.objective, networks, seed=0)
    for number, report in enumerate(reports, start=1):
        assert report.epochs == EPOCHS
        assert list(report.train_terms) == ["cross_entropy", name]
        assert report.teacher == ("live" if term.method.needs else "none")
        values = [*asdict(report).values(), *report.train_terms.values()]
        values += report.seconds_by_part.values()
        numbers = [value for value in values if isinstance(value, (int, float))]
        assert all(map(math.isfinite, numbers))
        expected = sum(weights[key] * value for key, value in report.train_terms.items())
        if number <= term.method.preparation_epochs(EPOCHS):
            expected = report.train_terms[name]
        assert report.train_loss == pytest.approx(expected, rel=1e-5)
        assert report.train_accuracy * len(digits.train) == pytest.approx(
            round(report.train_accuracy * len(digits.train))
        )
        assert report.heldout_accuracy * len(digits.heldout) == pytest.approx(
            round(report.heldout_accuracy * len(digits.heldout))
        )
        best = max(reports[:number], key=lambda seen: (seen.heldout_accuracy, -seen.heldout_loss))
        assert report.best_epoch == best.epoch
        assert report.best_heldout_accuracy == best.heldout_accuracy
        assert report.learning_rate == pytest.approx(
            config.training.learning_rate_at(number - 0.5 / steps)
        )
        assert report.epoch_seconds > 0


@every_method
def test_a_method_changes_the_student_unless_it_is_the_control(
    name: str, finished: Finished
) -> None:
    alone, _ = finished()
    reports, _ = finished(name)
    same = [report.heldout_loss for report in reports] == [report.heldout_loss for report in alone]
    assert same == (name == CONTROL)


@every_method
def test_the_best_student_is_the_network_alone_without_helpers(
    name: str, finished: Finished
) -> None:
    reports, folder = finished(name)
    best = best_student(folder)
    assert best["epoch"] == reports[-1].best_epoch
    assert best["accuracy"] == reports[-1].best_heldout_accuracy
    suffix = best.get("suffix", "")
    assert bool(suffix) == CATALOGUE[name].reuses_classifier
    network = build_backbone(f"resnet8{suffix}", num_classes=10, in_channels=1, seed=0)
    assert list(best["student"]) == list(network.state_dict())
    state = read_checkpoint(folder, CPU)
    assert state is not None
    assert list(state["student"]) == list(network.state_dict())
    network.load_state_dict(best["student"])


def test_other_seeds_give_other_students(
    configure: Configure, workspace: Path, finished: Finished
) -> None:
    other = next(distill(configure(seed=1), workspace=workspace, device=CPU))
    assert other.heldout_loss != finished()[0][0].heldout_loss


@pytest.mark.parametrize("acceleration", ["auto", "off"])
def test_student_and_teacher_compute_in_what_was_measured_for_each_unless_it_is_switched_off(
    acceleration: str,
    configure: Configure,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = {"resnet8": Execution("bfloat16"), "resnet14": Execution(channels_last=True)}

    def measured(name: str, *what: object, **how: object) -> Execution:
        return ways[name]

    monkeypatch.setattr("kdcore.distillation.distill.fastest_execution", measured)
    config = configure(SEARCHED, epochs=1, acceleration=acceleration)
    list(distill(config, workspace=workspace, checkpoint_dir=tmp_path, device=CPU))
    state = read_checkpoint(tmp_path, CPU)
    assert state is not None
    for key, network in (("execution", "resnet8"), ("teacher_execution", "resnet14")):
        expected = ways[network] if acceleration == "auto" else Execution()
        assert Execution.restored(state[key]) == expected


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_given_precision_and_layout_is_used_on_any_machine_and_nothing_is_measured(
    precision: Precision, configure: Configure, workspace: Path, tmp_path: Path
) -> None:
    given = Execution(precision), Execution(precision, channels_last=True)
    reports = distill(
        configure(SEARCHED, epochs=1),
        workspace=workspace,
        checkpoint_dir=tmp_path,
        device=CPU,
        execution=given[0],
        teacher_execution=given[1],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("kdcore.distillation.distill.fastest_execution")
        (report,) = reports
    assert math.isfinite(report.train_loss)
    state = read_checkpoint(tmp_path, CPU)
    assert state is not None
    found = [Execution.restored(state[key]) for key in ("execution", "teacher_execution")]
    assert tuple(found) == given


@pytest.mark.parametrize("seed", [0, 5])
def test_the_seed_decides_the_students_first_weights(
    seed: int, configure: Configure, workspace: Path, tmp_path: Path
) -> None:
    # At such a rate the first epoch leaves them where they were.
    config = configure(seed=seed, epochs=1, learning_rate=1e-12)
    next(distill(config, workspace=workspace, checkpoint_dir=tmp_path, device=CPU))
    trained = best_student(tmp_path)["student"]
    fresh = build_backbone("resnet8", num_classes=10, in_channels=1, seed=seed)
    for name, weight in fresh.named_parameters():
        assert torch.allclose(trained[name], weight, atol=1e-6), name


@pytest.mark.parametrize("seed", [2**32 - 1, 2**62, 2**63, 2**64])
def test_every_seed_that_is_accepted_works(
    seed: int, configure: Configure, workspace: Path
) -> None:
    try:
        config = configure(*CATALOGUE, seed=seed, epochs=1, **TOGETHER)
    except ValidationError:
        return  # refused where it is read: that is in order
    assert [report.epoch for report in distill(config, workspace=workspace, device=CPU)] == [1]


@pytest.mark.parametrize("objective", [(), (CONTROL,)], ids=["nothing", "control"])
def test_the_control_never_makes_a_teacher(
    objective: tuple[str, ...], configure: Configure, tmp_path: Path
) -> None:
    config = configure(*objective, epochs=1)
    assert len(list(distill(config, workspace=tmp_path, device=CPU))) == 1
    assert not (tmp_path / "teachers").exists()


def test_a_missing_teacher_is_trained_first_and_only_once(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(SEARCHED, epochs=1)
    first = list(distill(config, workspace=tmp_path, device=CPU))
    made = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "teachers").rglob("*.safetensors")
    }
    assert len(made) == 1
    again = list(distill(config, workspace=tmp_path, device=CPU))
    assert timeless(again) == timeless(first)
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_teacher_that_saw_other_views_is_the_same_for_all_students(
    configure: Configure, tmp_path: Path
) -> None:
    plain = configure(SEARCHED, epochs=1)
    assert plain.data_of_teacher == plain.data
    assert "teacher_data" not in plain.identity + plain.model_dump_json()
    mixed = DataConfig.model_validate({**plain.data.model_dump(), "augmentation": ["mixup"]})
    other = plain.model_copy(update={"data": mixed, "teacher_data": plain.data})
    assert TrialConfig.model_validate_json(other.model_dump_json()) == other
    assert other.identity != plain.model_copy(update={"data": mixed}).identity
    first = list(distill(plain, workspace=tmp_path, device=CPU))
    (made,) = (tmp_path / "teachers").glob("*/*.safetensors")
    written = made.read_bytes()
    live = list(distill(other, workspace=tmp_path, device=CPU))
    assert [*(tmp_path / "teachers").glob("*/*.safetensors")] == [made]
    assert made.read_bytes() == written
    assert [each.train_loss for each in live] != [each.train_loss for each in first]
    exact = CacheConfig(precision="float32")
    cached = list(
        distill(other.model_copy(update={"cache": exact}), workspace=tmp_path, device=CPU)
    )
    assert [each.train_loss for each in cached] == [each.train_loss for each in live]
    for changes in ({"split_seed": 1}, {"train_images": 64, "heldout_fraction": 0.3}):
        content = {**plain.model_dump(), "teacher_data": plain.data.model_copy(update=changes)}
        with pytest.raises(ValidationError, match=f"another .*{next(iter(changes))}.* than data"):
            TrialConfig.model_validate(content)


def test_a_setting_is_measured_on_the_data(digits: ImageData) -> None:
    networks = network_pair("resnet8", "resnet14", digits)
    assert networks.train_images == len(digits.train) == 384
    assert (networks.student.network, networks.teacher.network) == ("resnet8", "resnet14")
    assert networks.student.num_classes == networks.teacher.num_classes == 10
    assert networks.student.maps["stage1"] == (16, 8, 8)


# Interruptions


@every_method
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    name: str, configure: Configure, finished: Finished, workspace: Path, tmp_path: Path
) -> None:
    expected, folder = finished(name)
    shutil.copytree(folder / INTERRUPTED, tmp_path, dirs_exist_ok=True)

    def start() -> Iterator[EpochReport]:
        return distill(configure(name), workspace=workspace, checkpoint_dir=tmp_path, device=CPU)

    torch.manual_seed(12345)  # a new process has another random state
    assert timeless(list(start())) == timeless(expected[-1:])
    assert_same(read_checkpoint(tmp_path, CPU), read_checkpoint(folder, CPU))
    assert list(start()) == []


def test_neither_checkpoints_nor_a_consumer_that_draws_between_epochs_change_anything(
    configure: Configure, finished: Finished, workspace: Path
) -> None:
    reports = []
    for report in distill(configure(*CATALOGUE, **TOGETHER), workspace=workspace, device=CPU):
        reports.append(report)
        torch.manual_seed(report.epoch)
        torch.rand(7)
    assert timeless(reports) == timeless(finished(*CATALOGUE, **TOGETHER)[0])


RUN_AND_DIE = """
import os
import signal
import sys
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from kdcore import TrialConfig, distill

torch.set_num_threads(1)
steps = []

def die_in_the_second_step(*arguments):
    steps.append(arguments)
    if len(steps) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

config = TrialConfig.model_validate_json(sys.argv[1])
device = torch.device("cpu")
for report in distill(config, workspace=sys.argv[2], checkpoint_dir=sys.argv[3], device=device):
    print(report.epoch, flush=True)
    if report.epoch == 2:
        register_optimizer_step_post_hook(die_in_the_second_step)
"""


def test_a_run_that_was_killed_in_an_epoch_goes_on_with_the_same_bits(
    configure: Configure, finished: Finished, workspace: Path, tmp_path: Path
) -> None:
    expected, _ = finished(*CATALOGUE, **TOGETHER)
    config = configure(*CATALOGUE, **TOGETHER)
    killed = subprocess.run(
        [
            *(sys.executable, "-c", RUN_AND_DIE),
            *(config.model_dump_json(), str(workspace), str(tmp_path)),
        ],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout == "1\n2\n"

    resumed = list(distill(config, workspace=workspace, checkpoint_dir=tmp_path, device=CPU))
    assert [report.epoch for report in resumed] == [3]
    assert timeless(resumed) == timeless(expected)[2:]


def test_with_mixed_images_a_run_goes_on_with_the_same_bits(
    configure: Configure, workspace: Path, tmp_path: Path
) -> None:
    content = configure(*READ_LABELS).model_dump()
    content["data"] |= {"augmentation": "strong", "train_images": 96}
    config = TrialConfig.model_validate(content)
    whole = list(distill(config, workspace=workspace, device=CPU))
    first = distill(config, workspace=workspace, checkpoint_dir=tmp_path, device=CPU)
    begun = list(islice(first, 1))
    first.close()
    rest = list(distill(config, workspace=workspace, checkpoint_dir=tmp_path, device=CPU))
    assert timeless([*begun, *rest]) == timeless(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"student": StudentConfig(backbone="resnet14")},
        {"objective": ()},
        {"training": Recipe(epochs=EPOCHS, batch_size=96, learning_rate=0.01)},
        {"data": DataConfig(name="digits", heldout_fraction=0.2, train_images=384, view_seed=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_run_is_refused(
    change: dict[str, Any], configure: Configure, finished: Finished, workspace: Path
) -> None:
    _, folder = finished(*CATALOGUE, **TOGETHER)
    before = (folder / FILE_NAME).read_bytes()
    other = configure(*CATALOGUE, **TOGETHER).model_copy(update=change)
    with pytest.raises(ValueError, match=f"checkpoint in {folder} belongs to another run"):
        next(distill(other, workspace=workspace, checkpoint_dir=folder, device=CPU))
    assert (folder / FILE_NAME).read_bytes() == before


def test_a_truncated_checkpoint_is_refused_by_name(
    configure: Configure, finished: Finished, workspace: Path, tmp_path: Path
) -> None:
    _, folder = finished(*CATALOGUE, **TOGETHER)
    whole = (folder / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"checkpoint {tmp_path / FILE_NAME} is damaged"):
        next(
            distill(
                configure(*CATALOGUE, **TOGETHER),
                workspace=workspace,
                checkpoint_dir=tmp_path,
                device=CPU,
            )
        )


# Configuration


def test_a_term_without_settings_has_the_published_ones() -> None:
    for name, method in CATALOGUE.items():
        term = TermConfig.model_validate({"method": name})
        assert term.params == method.Params()
        assert type(term.params) is method.Params


def test_a_configuration_survives_json(configure: Configure) -> None:
    config = configure(*CATALOGUE, **TOGETHER)
    again = TrialConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert [type(term.params) for term in again.objective] == [
        method.Params for method in CATALOGUE.values()
    ]


def test_a_term_is_written_with_what_is_searched() -> None:
    for name, method in CATALOGUE.items():
        written = str(TermConfig.model_validate({"method": name}))
        searched = method.Params.searched()
        assert written.startswith(f"{name}(" if searched else name)
        assert all(f"{field}=" in written for field in searched)
    assert str(TermConfig.model_validate({"method": CONTROL})) == CONTROL


@pytest.mark.parametrize(
    "wrong", [f"{SEARCHED}x", "", 3, None, [SEARCHED], {SEARCHED: {}}], ids=str
)
def test_a_term_of_no_known_method_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError, match="method"):
        TermConfig.model_validate({"method": wrong})


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"weight": -1}, ("params", "weight")),
        ({"wieght": 1}, ("params", "wieght")),
        ("heavy", ("params",)),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_with_the_path_to_it(
    params: object, where: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        TermConfig.model_validate({"method": SEARCHED, "params": params})
    assert [error["loc"] for error in caught.value.errors()] == [where]


def test_settings_of_another_method_are_refused() -> None:
    first, second = [name for name in CATALOGUE if CATALOGUE[name].needs][:2]
    with pytest.raises(ValidationError, match="params"):
        TermConfig.model_validate({"method": first, "params": CATALOGUE[second].Params()})


def with_settings(config: TrialConfig, **params: float) -> TrialConfig:
    """The same trial, with these settings of its only method."""
    content = config.model_dump()
    content["objective"][0]["params"] |= params
    return TrialConfig.model_validate(content)


def test_an_objective_of_nothing_is_refused_and_one_without_labels_is_not(
    configure: Configure,
) -> None:
    without_labels = with_settings(configure(SEARCHED), cross_entropy=0)
    assert without_labels.objective[0].params.cross_entropy == 0
    with pytest.raises(ValidationError, match="which trains nothing"):
        with_settings(without_labels, weight=0)


def test_a_factor_of_one_has_the_identity_of_a_trial_that_had_none(configure: Configure) -> None:
    published = configure("kd")
    with_one = with_settings(published, cross_entropy=1)
    (content,) = json.loads(with_one.identity)
    assert content["objective"][0]["params"] == {
        "weight": 0.9,
        "temperature": 4.0,
        "standardize": False,
    }
    assert published.identity != with_one.identity


def test_a_method_may_stand_in_an_objective_only_once(configure: Configure) -> None:
    with pytest.raises(ValidationError, match=r"objective lists .* twice; list each method once"):
        configure(SEARCHED, SEARCHED)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"student": "resnet9"}, "unknown backbone 'resnet9'; did you mean 'resnet"),
        ({"seed": -1}, "seed"),
        ({"sead": 1}, "sead"),
    ],
)
def test_impossible_trials_are_refused(
    wrong: dict[str, object], message: str, configure: Configure
) -> None:
    with pytest.raises(ValidationError, match=message):
        TrialConfig.model_validate(configure().model_dump() | wrong)
