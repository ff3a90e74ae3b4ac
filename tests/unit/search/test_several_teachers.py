"""Several teachers: what is read, searched, refused, and told of them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from safetensors.torch import save_file

from kdcore import DataConfig
from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.network_pair import NetworkPair
from kdcore.data.image_data import open_data
from kdcore.distillation.distill import network_pair
from kdcore.execution.execution import Execution
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import ClassifierCard
from search.cli.launching import check
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.schema import CONTROL, Experiment
from search.experiment.space.asked_points import asked_points
from search.experiment.space.derivation import derive_space
from search.experiment.space.point import NUMBER, TEACHER, Point, plain_name
from search.experiment.space.space import Dimensions, Space, published_trials
from search.experiment.space.trial_config import trial_config
from search.record.live_record import LiveRecord
from search.record.networks import Executions
from search.record.record import TrialRecord
from search.record.storage import Storage
from search.session.preflight import Plan, plan
from search.session.preparation import PlannedTeacher
from search.session.sampler import OptunaSampler
from search.session.sampling.grid import Grid
from search.session.teachers import prepare_teachers
from tests.cases import Case
from tests.synthetic import SMALL, finished_search

TRAINED = {"training": {"epochs": 2}}
KD = {"kd.weight": 1.0, "kd.temperature": 2.0, "kd.standardize": False}
TWO = [{"backbone": "resnet20"} | TRAINED, {"backbone": "resnet18"} | TRAINED]


def of_teachers(teacher: Any = TWO, **changes: Any) -> Experiment:
    objective = [["none", "kd", "at"]]
    return parse_experiment(SMALL | {"teacher": teacher, "objective": objective} | changes, "")


def problems(teacher: Any) -> dict[str, str]:
    with pytest.raises(ExperimentError) as caught:
        of_teachers(teacher)
    return {problem.key: problem.message for problem in caught.value.problems}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], NetworkPair]:
    data = open_data(DataConfig(name="digits"), tmp_path_factory.mktemp("teachers"))
    return {
        (student, teacher): network_pair(student, teacher, data)
        for student in ("resnet8", "resnet14")
        for teacher in ("resnet20", "resnet18")
    }


@pytest.fixture
def space(shapes: dict[tuple[str, str], NetworkPair]) -> Space:
    return derive_space(of_teachers(), shapes, "")


def proposed(space: Space, count: int) -> list[Point]:
    """The first points, then random ones."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for number in range(count):
        first = space.first_points()
        if number < len(first):
            study.enqueue_trial(first[number])
        trial = study.ask()
        control = number < len(first) and "control" in first[number]
        found.append(space.propose(trial, control=control))
        study.tell(trial, state=TrialState.FAIL)
    return found


# --- what is read


def test_mistakes_in_a_list_have_one_message_each() -> None:
    good, name = TWO[0], {"backbone": "resnett20"} | TRAINED
    for teacher, key, words in (
        ([], "teacher", "at least 1 item"),
        ([good, dict(good)], "teacher", "lists the same resnet20 twice; list each teacher once"),
        ([good, name], "teacher.1.backbone", "did you mean 'resnet20'?"),
        ([good, {"backbon": "vgg13"} | TRAINED], "teacher.1.backbon", "did you mean 'backbone'?"),
        ([good, {"backbone": "vgg13", "trainin": {}}], "teacher.1.trainin", "mean 'training'?"),
        ([good, {"backbone": "vgg13"}], "teacher.1", "neither is given"),
        ([good, "vgg13"], "teacher.1", "needs weights or training beside its name"),
        ([good, 3], "teacher.1", "is 3, but"),
        ([good, {"backbone": "vgg13", "training": {"epochs": 0}}], "teacher.1.training.epochs", ""),
        ("vgg13", "teacher", "like {backbone: vgg13, training: {epochs: 60}}"),
        ({"backbon": "vgg13"} | TRAINED, "teacher.backbon", "did you mean 'backbone'?"),
        ({"training": {"epochs": 2}}, "teacher.backbone", "is missing"),
    ):
        with Case(key, words):
            ((found, message),) = problems(teacher).items()
            assert found == key
            assert words in message


def test_teachers_of_one_network_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    def teacher(epochs: int, **keys: Any) -> dict[str, Any]:
        recipe = {"epochs": epochs, "learning_rate": keys.pop("learning_rate", 0.1)}
        return {"backbone": "resnet20", "training": recipe} | keys

    other = {"backbone": "vgg13"} | TRAINED
    weights = str(tmp_path / "w.pt")
    for several, labels in (
        ([teacher(2)], ["resnet20"]),
        ([teacher(2), other], ["resnet20", "vgg13"]),
        ([teacher(2), other, teacher(9)], ["resnet20 (epochs=2)", "vgg13", "resnet20 (epochs=9)"]),
        ([teacher(2), teacher(2, seed=1)], ["resnet20 (seed=0)", "resnet20 (seed=1)"]),
        (
            [teacher(2), teacher(2, learning_rate=0.2), teacher(3)],
            [
                "resnet20 (epochs=2, learning_rate=0.1)",
                "resnet20 (epochs=2, learning_rate=0.2)",
                "resnet20 (epochs=3, learning_rate=0.1)",
            ],
        ),
        (
            [teacher(2), teacher(2, weights=weights)],
            ["resnet20 (weights=fresh)", "resnet20 (weights=w.pt)"],
        ),
        (
            [{"backbone": "resnet20", "weights": weights}, teacher(2, weights=weights)],
            ["resnet20 (epochs=none)", "resnet20 (epochs=2)"],
        ),
    ):
        with Case(labels):
            experiment = of_teachers(several)
            assert list(experiment.teachers) == labels
            assert [each.model_dump(mode="json") for each in experiment.teacher_configs.values()]
            again = parse_experiment(yaml.safe_load(experiment.model_dump_json()), "")
            assert again == experiment
            assert again.teachers == experiment.teachers


def test_one_teacher_is_written_as_before_also_as_a_list() -> None:
    one, listed = of_teachers(TWO[0]), of_teachers(TWO[:1])
    assert one.model_dump(mode="json")["teacher"]["backbone"] == "resnet20"
    assert one.teachers == listed.teachers == ("resnet20",)
    assert (one.teacher_keys, listed.teacher_keys) == (
        {"resnet20": "teacher"},
        {"resnet20": "teacher.0"},
    )
    point = {"objective.1": "kd", "kd.temperature": 2.0}
    assert trial_config(one, point).identity == trial_config(listed, point).identity
    plain = Executions(students={}, teacher=Execution())
    assert "other_teachers" not in plain.model_dump(mode="json")


# --- what is searched


def test_the_teacher_is_a_dimension_which_controls_do_not_have(space: Space) -> None:
    found = proposed(space, 60)
    assert [name for name, _ in space.describe()][:2] == [TEACHER, "objective.1"]
    controls = [point for point in found if point["objective.1"] == CONTROL]
    taught = [point for point in found if point["objective.1"] != CONTROL]
    assert len(controls) == 1
    assert not any(TEACHER in point for point in controls)
    assert {point[TEACHER] for point in taught} == {"resnet20", "resnet18"}
    assert {trial_config(of_teachers(), point).teacher.backbone for point in taught} == {
        "resnet20",
        "resnet18",
    }
    # resnet18 has four stages, so its pairs are its own; what both have is one field.
    names = {name for point in taught for name in point}
    assert {"at.layers.1", "at.layers.2", "at.power", "kd.temperature"} <= names
    for point in taught:
        layers = {plain_name(key): value for key, value in point.items()}.get("at.layers", "all")
        assert ":stage4" not in layers or point[TEACHER] == "resnet18"


def test_a_sampled_control_has_no_teacher(shapes: dict[tuple[str, str], NetworkPair]) -> None:
    experiment = of_teachers(objective=[["none", "kd"], ["none", "at"]])
    found = proposed(derive_space(experiment, shapes, ""), 60)
    for point in found:
        methods = {value for key, value in point.items() if key.startswith("objective")}
        assert (TEACHER in point) == (methods != {CONTROL})
    assert sum(TEACHER not in point for point in found) > 1


def test_each_method_comes_first_with_the_first_teacher_then_the_first_with_the_others(
    shapes: dict[tuple[str, str], NetworkPair],
) -> None:
    experiment = of_teachers(student=["resnet8", "resnet14"])
    space = derive_space(experiment, shapes, "")
    first = space.first_points()
    assert [(point["student"], point["objective.1"], point.get(TEACHER)) for point in first] == [
        ("resnet8", "none", None),
        ("resnet14", "none", None),
        ("resnet8", "kd", "resnet20"),
        ("resnet8", "at", "resnet20"),
        ("resnet8", "kd", "resnet18"),
    ]
    assert published_trials(experiment) == range(2, 5)
    assert proposed(space, 5) == [dict(point) for point in first]


def test_one_teacher_leaves_the_space_as_it_was(
    shapes: dict[tuple[str, str], NetworkPair],
) -> None:
    for teacher in (TWO[0], TWO[:1]):
        space = derive_space(of_teachers(teacher), shapes, "")
        assert TEACHER not in {name for name, _ in space.describe()}
        assert not any(TEACHER in point for point in proposed(space, 30))
    alone, _ = space.size()
    both, most = derive_space(of_teachers(), shapes, "").size()
    # The teacher, and layers once more.
    assert both == alone + Dimensions(0, 2)
    assert most < both


def test_each_choice_is_on_the_grid_once_and_controls_without_a_teacher(space: Space) -> None:
    assert space.choices() == [
        {"objective.1": method, TEACHER: teacher}
        for method in ("kd", "at")
        for teacher in ("resnet20", "resnet18")
    ]
    grid, known = Grid(space, steps=2, seed=0), []
    for number in range(grid.left):
        point, _ = grid.propose(number, [], {frozenset(each.items()) for each in known})
        known.append(point)
    assert len({frozenset(point.items()) for point in known}) == grid.left
    assert {point[TEACHER] for point in known} == {"resnet20", "resnet18"}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_every_sampler_proposes_both(space: Space, sampler: Any) -> None:
    searcher = OptunaSampler(space, trials=40, parallel=1, epochs=1, seed=0, sampler=sampler)
    found = []
    for number in range(24):
        point = searcher.suggest(str(number))
        found.append(point)
        score = 0.9 if point.get(TEACHER) == "resnet18" else 0.5
        searcher.on_trial_complete(
            str(number), {"best_heldout_accuracy": score + number / 1000, "epoch": 1}
        )
    later = [point[TEACHER] for point in found[4:]]
    assert {"resnet20", "resnet18"} == set(later)
    if sampler in ("tpe", "gp"):
        assert later.count("resnet18") > later.count("resnet20")


def test_a_point_may_name_its_teacher(
    shapes: dict[tuple[str, str], NetworkPair], tmp_path: Path
) -> None:
    def asked(*points: dict[str, Any]) -> tuple[tuple[Point, ...], list[str]]:
        (tmp_path / "points.yaml").write_text(yaml.safe_dump(list(points)))
        search = {"trials": 9, "points": str(tmp_path / "points.yaml")}
        experiment = of_teachers(search=search)
        found, wrong = asked_points(experiment, derive_space(experiment, shapes, ""))
        return found, [problem.message for problem in wrong]

    points, wrong = asked({"method": "kd"}, {"method": "at", "teacher": "resnet18"})
    assert wrong == []
    assert [point[TEACHER] for point in points] == ["resnet20", "resnet18"]
    for point, words in (
        ({"method": "kd", "teacher": "resnet19"}, "teacher is 'resnet19', but must be one of"),
        ({"method": "kd", "techer": "resnet18"}, "did you mean 'teacher'?"),
        ({"method": "none", "teacher": "resnet18"}, "which needs none; leave it out"),
        ({"method": "none"}, "is the same as the control"),
    ):
        with Case(words):
            _, (message,) = asked(point)
            assert words in message


def test_a_trial_that_was_cut_off_is_proposed_again_with_its_teacher(space: Space) -> None:
    points = [
        {key: value for key, value in point.items() if key != NUMBER}
        for point in (*space.first_points(), {"objective.1": "kd", TEACHER: "resnet18", **KD})
    ]
    assert [point.get(TEACHER) for point in points] == [None, *["resnet20"] * 2, *["resnet18"] * 2]
    recorded = [
        TrialRecord(
            number=number,
            student="resnet8",
            point=point,
            objective=str(point["objective.1"]),
            state="interrupted" if number == 4 else "finished",
            accuracies=(0.5,),
            epochs_done=1,
            epochs=1,
        )
        for number, point in enumerate(points)
    ]
    searcher = OptunaSampler(space, trials=9, parallel=1, epochs=1, seed=0, recorded=recorded)
    assert searcher.suggest("again") == {**points[4], NUMBER: 4}
    finished = [trial for trial in searcher.study.trials if trial.state == TrialState.COMPLETE]
    assert [trial.params.get(TEACHER) for trial in finished] == [
        point.get(TEACHER) for point in points[:4]
    ]


# --- what is checked


def planned(folder: Path, **changes: Any) -> Plan:
    return plan(of_teachers(**changes), Storage(str(folder)), "task.yaml")


def refusals(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(ExperimentError) as caught:
        planned(folder, **changes)
    return caught.value.lines()


def test_what_a_launch_would_refuse_of_a_teacher_is_told_with_its_place(tmp_path: Path) -> None:
    missing = [TWO[0], {"backbone": "resnet18", "weights": str(tmp_path / "none.pt")}]
    (line,) = refusals(tmp_path, teacher=missing)
    assert line.startswith("task.yaml: teacher.1.weights: ")
    unknown = [TWO[0], {"backbone": "torchvision/resnet5O"} | TRAINED]
    (line,) = refusals(tmp_path, teacher=unknown)
    assert line.startswith("task.yaml: teacher.1.backbone: ")
    dropped = {"backbone": "vgg8", "training": {"epochs": 2, "drop_path": 0.2}}
    (line,) = refusals(tmp_path, teacher=[dropped, TWO[0]])
    assert line.startswith("task.yaml: teacher.0.training.drop_path: vgg8: ")
    # A seed decides nothing about weights that are taken as they are.
    weights = tmp_path / "w.safetensors"
    save_file(
        build_backbone("resnet20", num_classes=10, in_channels=1, seed=0).state_dict(), weights
    )
    same = {"backbone": "resnet20", "weights": str(weights)}
    (line,) = refusals(tmp_path, teacher=[same, same | {"seed": 1}])
    assert line == "task.yaml: teacher.1: is the same teacher as teacher.0; list each once"


def test_a_method_that_cannot_work_with_one_teacher_is_refused_once_for_it(
    shapes: dict[tuple[str, str], NetworkPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = CATALOGUE["at"].__init__

    def refuse(self: Any, params: Any, networks: NetworkPair) -> None:
        if networks.teacher.network == "resnet18":
            raise ValueError("it has 4 stages; choose another")
        begun(self, params, networks)

    # Of two teachers of one network it is told once.
    teachers = [*TWO, TWO[1] | {"seed": 1}]
    with monkeypatch.context() as patched:
        patched.setattr(CATALOGUE["at"], "__init__", refuse)
        assert refusals(tmp_path, teacher=teachers) == [
            "task.yaml: objective: at cannot teach resnet8 with the teacher resnet18: it has 4 "
            "stages; choose another"
        ]
    known = shapes["resnet8", "resnet18"]
    mapless = replace(known, teacher=replace(known.teacher, stages=()))
    with pytest.raises(ExperimentError) as caught:
        derive_space(of_teachers(), {**shapes, ("resnet8", "resnet18"): mapless}, "task.yaml")
    assert caught.value.lines() == [
        "task.yaml: objective: at cannot teach resnet8 with the teacher resnet18: resnet18 has no "
        "spatial maps; use it with methods that read logits or the embedding"
    ]


def test_check_shows_each_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.yaml").write_text(of_teachers().model_dump_json())
    monkeypatch.setattr(
        "search.session.preparation.fastest_execution", lambda *network, **how: Execution()
    )
    threads = torch.get_num_threads()
    check(tmp_path / "task.yaml", [], storage=str(tmp_path))
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for line in (
        "teacher  resnet20, to be prepared",
        "teacher  resnet18, to be prepared",
        "recipe   teacher resnet20: 2 epochs",
        "recipe   teacher resnet18: 2 epochs",
        "compute  teacher resnet20: float32",
        "compute  teacher resnet18: float32",
        "the first 4 are the control and the settings",
    ):
        assert line in printed
    assert re.search(r"teacher +│? *resnet20, resnet18", printed)


# --- what is prepared


def test_each_teacher_is_in_the_record_as_soon_as_it_is_ready(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    prepared, written = planned(tmp_path), []
    accuracies = {"resnet20": 0.5, "resnet18": 0.75}
    for label, accuracy in accuracies.items():
        metrics = {"heldout_accuracy": accuracy, "heldout_loss": 1.0}
        card = ClassifierCard(
            backbone=label,
            class_names=("a", "b"),
            in_channels=1,
            image_size=(8, 8),
            mean=(0.5,),
            std=(0.5,),
            metrics=metrics,
        )
        storage.write(f"teachers/{label}/teacher.json", card.model_dump_json().encode())
    ready = {label: PlannedTeacher(tmp_path / "teachers" / label, True) for label in accuracies}
    search = LiveRecord(finished_search((), {"teacher": TWO}))
    said: list[str] = []
    tracker, display = Mock(), Mock(say=said.append)

    def write() -> None:
        written.append(list(search.head.ready_teachers))

    prepare_teachers(replace(prepared, teachers=ready), search, storage, tracker, display, write)
    assert written == [["resnet20"], ["resnet20", "resnet18"]]
    assert said == [
        "teacher resnet20: found",
        "teacher resnet20: held-out 50.00 %",
        "teacher resnet18: found",
        "teacher resnet18: held-out 75.00 %",
    ]
    assert search.head.best_teacher == "resnet18"
    assert [call.kwargs for call in tracker.log_teacher.call_args_list] == [{"alone": False}] * 2
    (best,) = tracker.log_best_teacher.call_args.args
    assert best["heldout_accuracy"] == 0.75
    # One teacher alone is told as before, and the record is written with what comes next.
    search, tracker = LiveRecord(finished_search((), {"teacher": TWO[0]})), Mock()
    one = replace(planned(tmp_path, teacher=TWO[0]), teachers={"resnet20": ready["resnet20"]})
    prepare_teachers(one, search, storage, tracker, display, write)
    assert len(written) == 2
    assert search.head.teacher == "teachers/resnet20"
    assert search.head.other_teachers == {}
    tracker.log_best_teacher.assert_not_called()
