"""`search.points`: trials that a user asks for, from a file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from kdcore.contract.network_pair import NetworkPair
from kdcore.data.image_data import open_data
from kdcore.distillation.distill import network_pair
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.experiment.space.asked_points import asked_points, points_caution
from search.experiment.space.derivation import derive_space
from search.experiment.space.point import IS_CONTROL, NUMBER, settings_of
from search.experiment.space.trial_config import trial_config
from search.session.preflight import plan
from search.session.sampler import OptunaSampler
from tests.cases import Case
from tests.unit.search.test_experiment import problems
from tests.unit.search.test_preflight import planned
from tests.unit.search.test_sampler import recorded
from tests.unit.search.test_space import experiment_of

TASK: dict[str, Any] = {
    "student": ["resnet8", "resnet14"],
    "objective": [["none", "kd"], ["none", "at", "fitnet"]],
    "training": {"epochs": 3, "learning_rate": {"low": 0.01, "high": 0.1}},
    "published": "cifar",
}
FILE = """\
# Two trials that a colleague liked.
- method: kd + at
  student: resnet14
  learning_rate: 0.02
  kd.temperature: 2
  at.layers: all

- {method: none, learning_rate: 0.1}   # the control, faster
- method: kd
  kd.standardize: false
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], NetworkPair]:
    data = open_data(experiment_of().data, tmp_path_factory.mktemp("asked"))
    students = "resnet8", "resnet14"
    return {(name, "resnet20"): network_pair(name, "resnet20", data) for name in students}


def asking(path: Path, **changes: Any) -> Experiment:
    search = {"trials": 20, "points": str(path)}
    return experiment_of(**{**TASK, "search": search, **changes})


def refusals(experiment: Experiment, pairs: dict[tuple[str, str], NetworkPair]) -> list[str]:
    space = derive_space(experiment, pairs, "")
    _, found = asked_points(experiment, space)
    assert {problem.key for problem in found} <= {"search.points"}
    return [problem.message for problem in found]


def test_points_are_read_by_plain_names_and_the_rest_is_published(
    tmp_path: Path, pairs: dict[tuple[str, str], NetworkPair]
) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(FILE)
    experiment = asking(path)
    space = derive_space(experiment, pairs, "")
    points, wrong = asked_points(experiment, space)
    assert wrong == []
    first, second, third = (trial_config(experiment, point) for point in points)
    assert first.student.label == "resnet14"
    assert [term.method for term in first.objective] == ["kd", "at"]
    kd, at = first.objective[0].params, first.objective[1].params
    assert (kd.temperature, at.layers, first.training.learning_rate) == (2.0, "all", 0.02)  # type: ignore[attr-defined]
    published = space.first_points()[2]
    assert kd.weight == published["kd.weight"]
    assert (second.objective, second.training.learning_rate) == ((), 0.1)
    assert third.student.label == "resnet8"
    assert [term.method for term in third.objective] == ["kd"]
    assert third.training.learning_rate == pytest.approx(0.1**1.5)  # the middle
    table = [
        {"method": "kd + at", "student": "resnet14", "learning_rate": 0.02, "kd.temperature": 2.0}
        | {"at.layers": "all", "kd.standardize": None},
        {"method": "none", "learning_rate": 0.1, "kd.temperature": float("nan")},
        {"method": "kd", "kd.standardize": False},
    ]
    names = {name: None for row in table for name in row}
    parquet.write_table(
        pa.Table.from_pylist([names | row for row in table]), tmp_path / "points.parquet"
    )
    again = asking(tmp_path / "points.parquet")
    assert asked_points(again, space)[0] == points
    assert [each.place for each in again.search.points][2] == "points.parquet, row 3"
    assert [each.place for each in experiment.search.points] == [
        f"points.yaml, line {line}" for line in (2, 8, 9)
    ]


def test_points_run_after_the_controls_in_their_order_and_the_record_keeps_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(FILE + "- {method: fitnet}\n")  # as published
    search = {"trials": 20, "points": str(path), "seed": 3}
    prepared = planned(tmp_path, **{**TASK, "search": search})
    first = prepared.space.first_points()
    assert [IS_CONTROL in point for point in first] == [True, True, *[False] * (len(first) - 2)]
    assert tuple(first[2:6]) == prepared.space.asked
    methods = [(point["objective.1"], point["objective.2"]) for point in first[2:]]
    assert methods[:4] == [("kd", "at"), ("none", "none"), ("kd", "none"), ("none", "fitnet")]
    # Then what is published, but not again: kd and fitnet were.
    assert methods[4:] == [("none", "at")]
    assert len(set(map(settings_of, first))) == len(first)

    def sampler(**more: Any) -> OptunaSampler:
        return OptunaSampler(
            prepared.space, trials=20, parallel=1, epochs=3, seed=3, sampler="qmc", **more
        )

    searcher = sampler()
    proposed = [searcher.suggest(str(number)) for number in range(4)]
    by = [searcher.proposals[number].by for number in range(len(first))]
    assert by == [*["control"] * 2, *["asked"] * 4, "published"]
    # A resumed search asks for what is left, without the file.
    path.unlink()
    record = json.loads(prepared.experiment.model_dump_json())
    assert record["search"]["points"][0]["values"]["kd.temperature"] == 2
    stored = parse_experiment(record, "")
    assert stored == prepared.experiment
    later = plan(stored, _storage(tmp_path), "record", begun=True)
    assert later.space.first_points() == first
    trials = [recorded(n, point, "stopped", [0.1]) for n, point in enumerate(proposed)]
    second = sampler(recorded=trials)
    following = [second.suggest(str(number)) for number in range(len(first) - 4)]
    assert following == [
        {**point, NUMBER: number} for number, point in enumerate(first[4:], start=4)
    ]


def _storage(folder: Path) -> Any:
    from search.record.storage import Storage

    return Storage(str(folder))


def test_each_mistake_in_a_point_is_told_with_its_line(
    tmp_path: Path, pairs: dict[tuple[str, str], NetworkPair]
) -> None:
    path = tmp_path / "points.yaml"
    for point, words in {
        "{method: kdd}": "method is 'kdd', but 'kdd' is not a candidate; did you mean 'kd'? The",
        "{kd.weight: 1}": "method is missing, like method: fitnet. The candidates are none, kd, at",
        "{method: kd, kd.temprature: 2}": "unknown key 'kd.temprature'; did you mean 'kd.temperat",
        "{method: kd, trial: 2}": "Known here: method, student, learning_rate, kd.cross_entropy",
        "{method: kd, at.layers: all}": "at.layers is given, but method is kd; leave it out",
        "{method: kd, kd.temperature: 99}": "kd.temperature is 99, but the search takes 1 to 16, l",
        "{method: kd, kd.temperature: hot}": "kd.temperature is 'hot', but the search takes 1 to",
        "{method: kd, kd.temperature: true}": "kd.temperature is True, but the search takes",
        "{method: kd, kd.standardize: 1}": "kd.standardize is 1, but the search takes",
        "{method: kd, kd.cross_entropy: 7}": "kd.cross_entropy is 7, but the search takes 0.1 (fix",
        "{method: at + fitnet}": "must name one of none, at, fitnet, which are the candidates of",
        "{method: at, at.layers: stage9}": "at.layers is 'stage9', but the search takes",
        "{method: kd, student: resnet9}": "student is 'resnet9', but must be one of resnet8, res",
        "{method: kd, learning_rate: 3}": "learning_rate is 3, but the search takes 0.01 to 0.1",
        "{method: none}": "is the same as the control, which runs anyway; leave it out",
        "{method: kd}": "is the same as points.yaml, line 1; leave it out",
    }.items():
        with Case(point):
            path.write_text(f"- method: kd\n\n- {point}\n")
            (message,) = refusals(asking(path), pairs)
            assert message.startswith("points.yaml, line 3: ")
            assert words in message
    path.write_text("- {method: x}\n- {method: kd}\n- {method: y}\n")
    assert len(refusals(asking(path), pairs)) == 2
    # With one student there is none to name; without `none` in a slot, a method of it.
    one = {"student": "resnet8", "objective": [["kd"], ["at", "fitnet"]]}
    path.write_text("- {method: kd}\n- {method: kd + at, student: resnet8}\n- {method: none}\n")
    messages = refusals(asking(path, **one), pairs)
    assert ["must name one of at, fitnet" in message for message in messages] == [True, False]
    assert "must name one of kd," in messages[1]


SEARCHED: dict[str, Any] = {
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {
        "epochs": 3,
        "optimizer": ["sgd", "adamw"],
        "momentum": {"low": 0.5, "high": 0.9},
        "ema_decay": [0.99, None],
        "betas": [[0.9, 0.99], [0.9, 0.999]],
    },
    "data": {
        "name": "digits",
        "augmentation": {
            "choices": [
                "basic",
                [{"mixup": {"alpha": {"low": 0.1, "high": 1}}}],
                ["flip", {"mixup": {"alpha": {"low": 1, "high": 4}}}],
            ]
        },
    },
}


def test_recipe_and_views_are_named_as_on_the_leaderboard_or_in_the_file(
    tmp_path: Path, pairs: dict[tuple[str, str], NetworkPair]
) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(
        "- {method: kd, momentum: 0.6, training.ema_decay: 'null'}\n"
        "- {method: none, optimizer: adamw, betas: '[0.9, 0.999]', mixup.alpha: 2,\n"
        "   augmentation: '[flip, {mixup: {alpha: 1 to 4}}]'}\n"
    )
    experiment = asking(path, **SEARCHED)
    points, wrong = asked_points(experiment, derive_space(experiment, pairs, ""))
    assert wrong == []
    first, second = (trial_config(experiment, point) for point in points)
    assert (first.training.momentum, first.training.ema_decay) == (0.6, None)
    assert "data.augmentation.mixup.alpha.3" in points[1]
    assert second.training.betas == (0.9, 0.999)
    assert second.training.ema_decay == 0.99
    assert second.data.mixes
    for point, words in {
        "{method: kd, optimizer: adamw, momentum: 0.6}": "momentum is given, but exists with "
        "training.optimizer sgd only",
        "{method: kd, mixup.alpha: 0.5}": "is given, but exists with data.augmentation [",
        "{method: kd, betas: '[1, 2]', optimizer: adamw}": "but the search takes [0.9, 0.99], [0.9",
        "{method: kd, momentun: 0.6}": "did you mean 'momentum'? Known here: method, optimizer, ",
    }.items():
        with Case(point):
            path.write_text(f"- {point}\n")
            (message,) = refusals(asking(path, **SEARCHED), pairs)
            assert words in message


def test_a_file_that_holds_no_points_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("no table")
    for name, content, words in (
        ("a.yaml", "", "holds no points; leave search.points out"),
        ("a.yaml", "[]", "holds no points"),
        ("a.yaml", "method: kd", "holds dict, but must hold a list of mappings"),
        ("a.yaml", "- {method: kd}\n- kd", "a.yaml, line 2 is 'kd', but must be a mapping"),
        ("a.yaml", "- {method: [kd, at]}", "line 1: method is ['kd', 'at'], but must be one"),
        ("a.yaml", "- {method: kd", "not valid YAML"),
        ("a.yaml", "- !!python/name:os.system {}", "not valid YAML"),
        ("no.parquet", None, "is no Parquet table"),
        ("absent.yaml", None, "cannot be read: No such file"),
        ("absent.parquet", None, "cannot be read"),
    ):
        with Case(name, content):
            if content is not None:
                (tmp_path / name).write_text(content)
            search = {"trials": 4, "points": str(tmp_path / name)}
            found = problems(tmp_path, {"search": search})
            assert list(found) == ["search.points"]
            assert words in found["search.points"]


def test_points_for_which_there_are_too_few_trials_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "points.yaml").write_text(yaml.safe_dump([{"method": "kd"}] * 5))
    for trials, told in ((6, True), (7, False)):
        search = {"trials": trials, "points": str(tmp_path / "points.yaml")}
        assert bool(points_caution(asking(tmp_path, search=search))) == told
    assert points_caution(experiment_of(search={"trials": 1})) == []
