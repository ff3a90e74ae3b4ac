"""What students may cost, and which front is sought: what is left out and what refused."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdcore.execution.execution import Execution
from kdcore.networks.cost import NetworkCost
from search.cli.launching import check
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment
from search.leaderboard.tables import leaderboard_table
from search.record.files import read_record
from search.record.record import SearchRecord
from search.record.storage import Storage
from search.session import launch
from search.session.preflight import Plan, plan
from tests.cases import Case
from tests.records import write_record
from tests.synthetic import SMALL, finished_search
from tests.unit.search.searched_experiment import stored_again

COST = NetworkCost(
    parameters=1, multiply_adds=1, latency_ms=2.0, batch_latency_ms=30.0, device="Z80", threads=1
)
STUDENTS = ["resnet8", "resnet14", "vgg8"]


def experiment_of(**changes: Any) -> Experiment:
    on_cpu = {"student": STUDENTS, "resources": {"gpus": 0}}
    return parse_experiment({**SMALL, **on_cpu, **changes}, "task.yaml")


def planned(folder: Path, **changes: Any) -> Plan:
    return plan(experiment_of(**changes), Storage(str(folder)), "task.yaml")


def refused(folder: Path, **changes: Any) -> dict[str, str]:
    with pytest.raises(ExperimentError) as caught:
        planned(folder, **changes)
    return {problem.key: problem.message for problem in caught.value.problems}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The students whose latency was measured, each a millisecond slower than the one before."""
    asked: list[str] = []

    def cost_of(network: str, data: Any, device: torch.device) -> NetworkCost:
        assert device.type == "cpu"
        asked.append(network)
        return replace(COST, latency_ms=1.0 + len(asked), batch_latency_ms=10.0 * len(asked))

    monkeypatch.setattr("search.session.constraints.cost_of", cost_of)
    return asked


def test_students_that_cost_too_much_are_left_out_before_anything_is_trained(
    tmp_path: Path, measured: list[str]
) -> None:
    whole = planned(tmp_path)
    assert (whole.excluded, whole.measured) == ({}, {})
    one = planned(tmp_path, constraints={"parameters": "1e6"})
    assert one.experiment.students == one.space.students == ("resnet8", "resnet14")
    assert {student for student, _ in one.networks} == {"resnet8", "resnet14"}
    (words,) = one.excluded.values()
    assert words.endswith("parameters, but constraints.parameters is 1,000,000")
    assert not measured, "what is counted needs no measurement"
    adds = planned(tmp_path, constraints={"multiply_adds": 800_000, "parameters": 1e9})
    assert "multiply-adds an image, but constraints.multiply_adds is 800,000" in str(adds.excluded)
    assert not measured


def test_latencies_are_measured_on_this_machine_and_told_so(
    tmp_path: Path, measured: list[str]
) -> None:
    threads = torch.get_num_threads()
    found = planned(tmp_path, constraints={"latency_ms": 3.5, "batch_latency_ms": 15})
    assert measured == STUDENTS
    assert torch.get_num_threads() == threads
    assert found.experiment.students == ("resnet8",)
    assert found.excluded == {
        "resnet14": "takes 20 ms a batch of 64, but constraints.batch_latency_ms is 15 (measured "
        "on this machine: Z80, 1 thread)",
        "vgg8": "takes 4 ms an image, but constraints.latency_ms is 3.5 and takes 30 ms a batch of "
        "64, but constraints.batch_latency_ms is 15 (measured on this machine: Z80, 1 thread)",
    }
    assert found.measured == {"resnet8": replace(COST, latency_ms=2.0, batch_latency_ms=10.0)}
    # One that is beyond what is counted is not measured.
    measured.clear()
    both = {"latency_ms": 9, "parameters": 1e6}
    assert planned(tmp_path, constraints=both).measured.keys() == {"resnet8", "resnet14"}
    assert measured == ["resnet8", "resnet14"]
    # A search that has begun asks nobody: its record has the students that were left.
    again = plan(found.experiment, Storage(str(tmp_path)), "", begun=True)
    assert again.experiment == found.experiment
    assert len(measured) == 2


def test_the_record_keeps_what_was_decided(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[SearchRecord] = []

    def run(prepared: Plan, storage: Storage, record: SearchRecord, *others: Any) -> SearchRecord:
        began.append(record)
        return write_record(storage, record)

    monkeypatch.setattr(launch, "_run", run)
    experiment = experiment_of(constraints={"latency_ms": 2.5})
    storage = Storage(str(tmp_path))
    launch.launch(experiment, source="task.yaml", storage=storage)
    record = read_record(storage, "task-1")
    assert record.experiment.students == ("resnet8",)
    assert record.experiment.constraints == experiment.constraints
    assert record.excluded.keys() == {"resnet14", "vgg8"}
    assert record.student_costs == {"resnet8": replace(COST, latency_ms=2.0, batch_latency_ms=10.0)}
    caption = str(leaderboard_table(record).caption)
    assert "Excluded by constraints: resnet14, which takes 3 ms an image, but" in caption
    launch.resume("task-1", storage=storage)
    assert began[1].experiment.students == ("resnet8",)
    assert began[1].student_costs == record.student_costs
    assert len(measured) == 3
    # Where nothing is left out, nothing is written that earlier versions did not write.
    write_record(storage, finished_search(()))
    (snapshot,) = (tmp_path / "searches" / "task-1" / "record").glob("*.json")
    assert "excluded" not in json.loads(snapshot.read_text())


def test_check_says_who_is_left_out_and_what_is_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "search.session.preparation.fastest_execution", lambda *network, **how: Execution()
    )
    (tmp_path / "task.yaml").write_text(json.dumps({**SMALL, "student": STUDENTS}))
    threads = torch.get_num_threads()
    goal = ["search.goal=pareto", "search.cost=multiply_adds", "constraints.parameters=1000000"]
    check(tmp_path / "task.yaml", goal, storage=str(tmp_path))
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert "student  resnet8, resnet14" in lines
    assert any(line.startswith("excluded vgg8: it has 3,9") for line in lines)
    front = "the front of held-out accuracy against multiply-adds for one image"
    assert f"goal     {front}" in lines
    (trials,) = (line for line in lines if line.startswith("trials "))
    assert "may stop a trial from epoch 2 on, compared with those of its student" in trials
    assert not any("vgg8" in line for line in lines if line.startswith(("cost", "compute")))


def test_launch_says_who_is_left_out(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Shown:
        def __init__(self, console: Any) -> None:
            self.say = said.append

        def __enter__(self) -> "Shown":
            return self

        def __exit__(self, *error: object) -> None:
            pass

    @contextmanager
    def nowhere(*arguments: object) -> Any:
        yield None

    for name, stand_in in (("LiveDisplay", Shown), ("output_to", nowhere), ("on_ray", nowhere)):
        monkeypatch.setattr(launch, name, stand_in)
    monkeypatch.setattr(launch, "places_for_trials", lambda *arguments: 1)
    monkeypatch.setattr(launch, "Session", lambda *arguments: SimpleNamespace(run=print))
    experiment = experiment_of(constraints={"latency_ms": 2.5})
    launch.launch(experiment, source="task.yaml", storage=Storage(str(tmp_path)))
    assert (
        "latency  resnet8: 2 ms an image, 10 ms a batch of 64, measured on this machine: Z80, "
        "1 thread" in said
    )
    assert [line[:31] for line in said if line.startswith("excluded")] == [
        "excluded resnet14: it takes 3 m",
        "excluded vgg8: it takes 4 ms an",
    ]


def test_with_its_teachers_classifier_a_student_is_held_to_the_limits_as_a_whole(
    tmp_path: Path,
) -> None:
    keeping: dict[str, Any] = {"objective": [["none", "simkd"]], "student": ["resnet8", "resnet14"]}
    # 13,568 of the projector to 64 channels; the two classifiers have the same size.
    limits = {"parameters": 90_000}
    found = refused(tmp_path, constraints=limits, **keeping)["constraints"]
    assert found.startswith(
        "resnet8, simkd from resnet20, has the teacher's classifier, and as a whole has 91,322 "
        "parameters, but constraints.parameters is 90,000; raise"
    )
    within = planned(tmp_path, constraints={"parameters": 91_322}, **keeping)
    assert within.experiment.students == ("resnet8",)
    goal = {"trials": 4, "goal": "pareto"}
    assert "those of simkd have" in refused(tmp_path, search=goal, **keeping)["search.goal"]


def test_constraints_that_leave_too_few_are_refused(tmp_path: Path, measured: list[str]) -> None:
    every = refused(tmp_path, constraints={"parameters": 1e6, "latency_ms": 0.5})["constraints"]
    assert every.startswith("leave no student: resnet8 takes 2 ms an image, but constraints.laten")
    assert "; vgg8 has 3,9" in every
    assert every.endswith(". Raise the limits, or list smaller students")
    one = refused(tmp_path, student="vgg8", constraints={"latency_ms": 0.5})["constraints"]
    assert one.startswith("leave no student: vgg8 takes 4 ms an image, but")
    goal = {"search": {"trials": 4, "goal": "pareto"}}
    left = refused(tmp_path, constraints={"parameters": 1e5}, **goal)["search.goal"]
    assert left.startswith("is pareto, but constraints leave one student, resnet8; raise a limit")


def test_what_cannot_be_meant_is_refused_with_the_way_out() -> None:
    for changes, key, words in (
        ({"constraints": {"latency": 5}}, "constraints.latency", "did you mean 'latency_ms'?"),
        ({"constraints": {"size_mb": 5}}, "constraints.size_mb", "Known here: parameters, multi"),
        ({"constraints": {"latency_ms": -5}}, "constraints.latency_ms", "is -5, but input should"),
        ({"constraints": {"parameters": 0}}, "constraints.parameters", "greater than 0"),
        ({"search": {"goal": "front"}}, "search.goal", "is 'front', but input should be 'best'"),
        (
            {"search": {"cost": "latency_ms"}},
            "search",
            "cost is latency_ms, but only goal pareto uses it, and goal is best; leave it out",
        ),
        (
            {"search": {"goal": "pareto", "cost": "watts"}},
            "search.cost",
            "is 'watts', but input should be 'parameters'",
        ),
        (
            {"search": {"goal": "pareto", "sampler": "grid"}},
            "search",
            "goal is pareto, but sampler grid has a fixed set of points",
        ),
        (
            {"search": {"goal": "pareto"}, "student": "resnet8"},
            "",
            "search.goal is pareto, but student is resnet8 alone, and a front needs several; list",
        ),
        ({"search": {"asha": {"among": "some"}}}, "search.asha.among", "is 'some', but input sh"),
    ):
        keys: dict[str, Any] = {"search": {}, **changes}
        keys["search"] = {"trials": 4, **keys["search"]}
        with Case(changes), pytest.raises(ExperimentError) as caught:
            experiment_of(**keys)
        found = {each.key: each.message for each in caught.value.problems}
        with Case(changes, found):
            assert words in found[key]


def test_later_keys_are_written_only_where_they_are_set() -> None:
    plain = experiment_of()
    content = plain.model_dump(mode="json")
    assert not {"constraints", "goal", "cost"} & {*content, *content["search"]}
    assert plain == experiment_of(constraints={})
    assert plain == experiment_of(search={"trials": 4, "goal": "best"})
    search = {"trials": 4, "goal": "pareto", "cost": "latency_ms"}
    for changes in ({"constraints": {"latency_ms": 5}}, {"search": search}):
        found = experiment_of(**changes)
        with Case(changes):
            assert stored_again(found) == found != plain
    assert found.model_dump(mode="json")["search"].items() >= search.items()
