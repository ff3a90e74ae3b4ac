"""What is refused before anything is trained."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdcore.backbones.catalogue import build_backbone
from kdcore.contract.published import benchmark_of
from kdcore.execution.execution import Execution
from kdcore.methods import CATALOGUE
from kdcore.networks.measurement import TrainingCost
from search.cli.launching import check
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.space.point import with_published
from search.experiment.space.trial_config import trial_config
from search.record.storage import Storage
from search.session.cautions import cautions, idle_gpus
from search.session.estimate import costs
from search.session.preflight import executions, plan

TAUGHT: dict[str, Any] = {"backbone": "resnet20", "training": {"epochs": 2}}


def planned(folder: Path, **changes: Any) -> Any:
    content: dict[str, Any] = {
        "name": "task",
        "data": {"name": "digits"},
        "teacher": TAUGHT,
        "student": "resnet8",
        "objective": [list(CATALOGUE)],
        "training": {"epochs": 3},
        "search": {"trials": 4},
    }
    return plan(parse_experiment(content | changes, ""), Storage(str(folder)), "task.yaml")


def test_every_method_can_be_planned_for_a_teacher_of_another_width_and_depth(
    tmp_path: Path,
) -> None:
    prepared = planned(tmp_path, teacher={"backbone": "resnet18", "training": {"epochs": 2}})
    assert not prepared.teachers["resnet18"].ready
    assert len(prepared.space.first_points()) == len(CATALOGUE)


def test_without_labels_cross_entropy_has_no_share_and_nothing_reads_labels(tmp_path: Path) -> None:
    without = {
        "data": {"name": "digits", "judge": "knn", "train_images": 100},
        "objective": [["none", "kd", "at", "fitnet"]],
    }
    prepared = planned(tmp_path, **without)
    first = prepared.space.first_points()
    trials = [trial_config(prepared.experiment, point) for point in first]
    terms = [term for trial in trials for term in trial.objective]
    assert [term.method for term in terms] == ["kd", "at", "fitnet"]
    assert {term.params.cross_entropy for term in terms} == {0}
    fields = {each.name: each for each in prepared.space.fields["resnet8", "resnet20", "at"]}
    assert fields["at.kind"].options == ("activation",)
    again = with_published(first[0], "kd", prepared.experiment.published, "knn")
    assert trial_config(prepared.experiment, again) == trials[1]
    for changes, key, words in (
        ({"objective": [["none", "kd", "dkd"]]}, "objective", "dkd reads labels, but data.judge"),
        ({"narrow": {"at.kind": ["gradient"]}}, "objective", "at reads labels"),
        (
            {"narrow": {"kd.cross_entropy": [0, 0.1]}},
            "narrow.kd.cross_entropy",
            "there are no labels; leave it out",
        ),
    ):
        with pytest.raises(ExperimentError) as caught:
            planned(tmp_path, **without | changes)
        assert [(each.key, words in each.message) for each in caught.value.problems] == [
            (key, True)
        ]
    for changes, words in (
        ({"data": {"name": "digits", "unlabelled": "more"}}, "digits has no such setting"),
        (
            without | {"teacher": {"ensemble": [TAUGHT, TAUGHT | {"seed": 1}]}},
            "the ensemble of .* has no features to judge",
        ),
    ):
        with pytest.raises(ExperimentError, match=words):
            planned(tmp_path, **changes)


def test_several_pairs_and_taps_that_have_to_be_named_are_tried(tmp_path: Path) -> None:
    pairs = "stage1_sum:stage1_sum, stage3_sum:stage3"
    task = {
        "student": "wrn_16_1",
        "teacher": {"backbone": "wrn_16_1", "training": {"epochs": 2}},
        "objective": [["none", "at", "ab"]],
    }
    prepared = planned(tmp_path, **task, narrow={"at.layers": [pairs], "ab.layers": [pairs]})
    tried = [point for point in prepared.space.points_to_check() if "at.layers" in point]
    assert {point["at.layers"] for point in tried} == {pairs}
    with pytest.raises(ExperimentError, match=r"narrow\.at\.layers: .* list each pair once"):
        planned(tmp_path, **task, narrow={"at.layers": [f"{pairs}, stage3_sum:stage3"]})


def test_a_search_of_several_students_begins_with_rungs_for_each(tmp_path: Path) -> None:
    objective, several = [["none", "kd"]], ["resnet8", "resnet14"]
    found = planned(tmp_path, student=several, objective=objective).experiment
    assert found.search.rule.among == "student"
    one = planned(tmp_path, objective=objective).experiment
    assert one.search.rule.among is None
    # One of a record of an earlier version goes on with common ones.
    old = found.model_copy(update={"search": one.search})
    again = plan(old, Storage(str(tmp_path)), "", begun=True).experiment
    assert again == old
    asked = {"trials": 4, "stopping": "median", "median": {"among": "all"}}
    every = planned(tmp_path, student=several, objective=objective, search=asked).experiment
    assert every.search.rule.among == "all"


def test_a_search_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    refused = r"data\.heldout_fraction: is 0, which would rank the trials on the test split"
    with pytest.raises(ExperimentError, match=refused):
        planned(tmp_path, data={"name": "digits", "heldout_fraction": 0}, objective=[["kd"]])


def test_networks_and_weights_that_a_library_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"student: .* did you mean 'torchvision/resnet50'\?"):
        planned(tmp_path, student="torchvision/resnet5O")
    assert not list(tmp_path.iterdir()), "nothing is made for it"
    teacher = {"backbone": "torchvision/resnet50", "weights": "IMAGENET"}
    refused = r"teacher\.weights: .* There are IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"
    with pytest.raises(ExperimentError, match=refused):
        planned(tmp_path, teacher=teacher)


def test_weights_are_opened_before_anything_is_launched(tmp_path: Path) -> None:
    text = tmp_path / "weights.pth"
    text.write_text("these are no weights")
    other = tmp_path / "other.safetensors"
    save_file(build_backbone("resnet20", num_classes=10, in_channels=3, seed=0).state_dict(), other)
    for weights, reason in ((text, "cannot be read"), (other, "does not fit")):
        with pytest.raises(ExperimentError, match=rf"teacher\.weights: .*{reason}"):
            planned(tmp_path, teacher={"backbone": "resnet20", "weights": str(weights)})


def test_stochastic_depth_is_refused_by_name_where_a_network_has_none(tmp_path: Path) -> None:
    teacher = {"backbone": "vgg8", "training": {"epochs": 2, "drop_path": 0.2}}
    training = {"epochs": 3, "drop_path": 0.1}
    with pytest.raises(ExperimentError) as caught:
        planned(tmp_path, teacher=teacher, student=["resnet8", "vgg8"], training=training)
    rule = "but the network has no residual branches to drop; leave it out"
    assert caught.value.lines() == [
        f"task.yaml: training.drop_path: vgg8: drop_path is 0.1, {rule}",
        f"task.yaml: teacher.training.drop_path: vgg8: drop_path is 0.2, {rule}",
    ]


def test_published_weights_of_other_classes_are_refused(tmp_path: Path) -> None:
    teacher = {"backbone": "torchvision/resnet18", "weights": "IMAGENET1K_V1"}
    with pytest.raises(ExperimentError, match=r"teacher\.weights: .* has 1000 classes"):
        planned(tmp_path, teacher=teacher)


def test_a_method_that_cannot_work_here_is_refused_once_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, params: object, networks: object) -> None:
        raise ValueError("the student has 3 stages, but 4 are needed; choose another")

    monkeypatch.setattr(CATALOGUE["fitnet"], "__init__", refuse)
    search = {"trials": 9, "combinations": [["kd", "fitnet"]]}
    with pytest.raises(ExperimentError) as caught:
        planned(tmp_path, objective=[["none", "kd"], ["none", "fitnet"]], search=search)
    assert caught.value.lines() == [
        "task.yaml: objective: fitnet cannot teach resnet8: the student has 3 stages, but 4 are "
        "needed; choose another"
    ]


def test_two_checks_at_a_time_do_not_refuse_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Storage.write

    def meanwhile(storage: Storage, path: str, content: bytes) -> None:
        written(storage, path, content)
        monkeypatch.setattr(Storage, "write", written)
        planned(tmp_path)

    monkeypatch.setattr(Storage, "write", meanwhile)
    planned(tmp_path)


def test_a_test_of_writing_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Storage.write

    def cut_off(storage: Storage, path: str, content: bytes) -> None:
        written(storage, path, content)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Storage, "write", cut_off)
    with pytest.raises(ExperimentError, match="cannot be written to: Input/output error"):
        planned(tmp_path)
    assert not list(tmp_path.glob(".write-test*"))


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_costs_and_precision_are_measured_on_the_device_of_a_trial(
    gpus: float, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def fastest(
        name: str, network: object, size: object, place: Any, *rest: Any, **how: Any
    ) -> Any:
        asked.append(place)
        return Execution("bfloat16", channels_last=True, side_by_side=name == "resnet8")

    def cost(network: object, size: object, batch: object, place: Any, **how: Any) -> TrainingCost:
        asked.append(place)
        return TrainingCost(1.0, 2**30)

    monkeypatch.setattr("search.session.preparation.fastest_execution", fastest)
    monkeypatch.setattr("search.session.estimate.fastest_training", cost)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    prepared = planned(tmp_path, resources={"gpus": gpus})
    assert len(costs(prepared)) == 1
    place = f"fastest on this machine ({device}); a search measures where its trials run"
    assert executions(prepared, Storage(str(tmp_path))) == [
        f"compute  resnet8: bfloat16, channels last, narrow maps side by side, {place}",
        f"compute  teacher resnet20: bfloat16, channels last, {place}",
    ]
    assert {each.type for each in asked} == {device}
    assert len(asked) == 3


def test_check_tells_of_precision_layout_and_idle_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.yaml").write_text(
        "data: {name: digits}\nteacher: {backbone: resnet14, training: {epochs: 2}}\n"
        "student: resnet8\nobjective: [[none, kd]]\ntraining: {epochs: 2}\nsearch: {trials: 4}\n"
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr(
        "search.session.preparation.fastest_execution", lambda *network, **how: Execution()
    )
    threads = torch.get_num_threads()
    for acceleration, words in (("auto", "fastest on this machine (cpu)"), ("off", "is off")):
        changes = [f"training.acceleration='{acceleration}'", "training.recipe=imagenet_100"]
        changes += ["training.preparation_on_top=true", "resources.gpus=0"]
        check(tmp_path / "task.yaml", changes, storage=str(tmp_path))
        printed = capsys.readouterr().out
        assert "\nrecipe   teacher: 2 epochs, batch 64, sgd 0.05, momentum 0.9, " in printed
        assert (
            "\nrecipe   students: 2 epochs, batch 256, sgd 0.1, momentum 0.9, weight decay 0.0001, "
            "step, times 0.1 after epochs 0.6, 1.2, 1.8, preparatory epochs on top\n"
        ) in printed
        assert "\ntrials   4 of 2 epochs after preparatory ones; " in printed
        assert re.search(r"cost .* stopped and .* for each preparatory epoch, and", printed)
        for network in ("resnet8", "teacher resnet14"):
            (line,) = [line for line in printed.splitlines() if f"compute  {network}: " in line]
            assert words in line
        assert (
            "\nidle     this machine has 8 GPUs, which stay idle, as resources.gpus is 0" in printed
        )
        assert "caution: this machine" not in printed
    torch.set_num_threads(threads)


def test_check_tells_of_sampler_points_and_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "points.yaml").write_text("- {method: kd, kd.temperature: 2}\n")
    (tmp_path / "task.yaml").write_text(
        "data: {name: digits}\nteacher: {backbone: resnet14, training: {epochs: 2}}\n"
        "student: resnet8\nobjective: [[none, kd]]\ntraining: {epochs: 9}\n"
        f"search: {{trials: 400, points: {tmp_path / 'points.yaml'}}}\n"
    )
    monkeypatch.setattr(
        "search.session.preparation.fastest_execution", lambda *network, **how: Execution()
    )
    threads = torch.get_num_threads()

    def printed(*changes: str) -> str:
        check(tmp_path / "task.yaml", list(changes), storage=str(tmp_path))
        return capsys.readouterr().out

    text = printed("search.stopping=hyperband")
    first = "the first 3 are the control, the 1 of search.points and the settings published for"
    assert f"\ntrials   400 of 9 epochs; {first} cifar; Hyperband may stop" in text
    assert "\nsampler  tpe\n" in text
    assert "but search.hyperband compares trials from epoch 1 on" in text
    text = printed("search.stopping=none", "search.sampler=grid", "search.grid_steps=4")
    # 4 weights, 4 temperatures, standardized or not; two of the first trials are on no point.
    assert "\ntrials   35 of 9 epochs; " in text
    assert "grid of 32 points with 4 values of a range, 0 of them among the first 3; 35 tr" in text
    assert "caution: training.schedule" not in text
    assert "the last points do not run" in printed("search.trials=1")
    torch.set_num_threads(threads)


def test_a_grid_ends_with_its_last_point(tmp_path: Path) -> None:
    narrow = {"kd.weight": [1], "kd.temperature": [1, 16]}
    task = {"objective": [["none", "kd"]], "narrow": narrow, "published": "cifar"}
    for trials, planned_trials in ((3, 3), (50, 7)):
        search = {"trials": trials, "sampler": "grid"}
        prepared = planned(tmp_path, **task, search=search)
        # Three temperatures, standardized or not, and the control; kd as published is on the grid.
        assert prepared.experiment.search.trials == planned_trials
    assert planned(tmp_path, **task, search={"trials": 50}).experiment.search.trials == 50


def test_a_sampler_whose_package_is_missing_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.session.sampling.named.find_spec", lambda name: None)
    wanted = {"objective": [["none", "kd"]], "narrow": {"kd.heat": [1]}}
    with pytest.raises(ExperimentError) as caught:
        planned(tmp_path, **wanted, search={"trials": 4, "sampler": "cmaes"})
    problems = {problem.key: problem.message for problem in caught.value.problems}
    assert problems["search.sampler"] == (
        "is cmaes, which needs the package cmaes: pip install 'kdsearch[cmaes]'"
    )
    assert list(problems) == ["search.sampler", "narrow.kd.heat"], "all at once"
    del wanted["narrow"]
    planned(tmp_path, **wanted, search={"trials": 4, "sampler": "gp"})


def test_points_out_of_the_space_are_refused_with_all_else(tmp_path: Path) -> None:
    (tmp_path / "points.yaml").write_text("- {method: kd}\n- {method: kdd}\n- {method: at}\n")
    search = {"trials": 4, "points": str(tmp_path / "points.yaml")}
    with pytest.raises(ExperimentError) as caught:
        planned(tmp_path, objective=[["none", "kd"]], search=search)
    lines = caught.value.lines()
    assert [line.split(": method")[0] for line in lines] == [
        f"task.yaml: search.points: points.yaml, line {number}" for number in (2, 3)
    ]


def test_gpus_that_stay_idle_are_told_of_without_complaint(tmp_path: Path) -> None:
    on_cpu = planned(tmp_path, resources={"gpus": 0}).experiment
    assert idle_gpus(on_cpu, 0, "this machine") == []
    rest = "idle, as resources.gpus is 0"
    assert idle_gpus(on_cpu, 8, "here") == [f"idle     here has 8 GPUs, which stay {rest}"]
    assert idle_gpus(on_cpu, 1, "here") == [f"idle     here has 1 GPU, which stays {rest}"]
    for resources in ("auto", {"gpus": 0.5}):
        experiment = planned(tmp_path, resources=resources).experiment
        assert idle_gpus(experiment, 8, "the cluster") == []


def test_the_benchmark_of_published_settings_is_that_of_the_images_unless_it_is_given(
    tmp_path: Path,
) -> None:
    assert planned(tmp_path).experiment.published == "cifar"
    assert planned(tmp_path, published="imagenet").experiment.published == "imagenet"
    assert [benchmark_of(size) for size in ((8, 8), (64, 64), (64, 65), (224, 224))] == [
        "cifar",
        "cifar",
        "imagenet",
        "imagenet",
    ]
    # A record of version 0.1.0 names none, and goes on so.
    old = planned(tmp_path).experiment.model_copy(update={"published": None})
    begun = plan(old, Storage(str(tmp_path)), "record", begun=True)
    assert begun.experiment.published is None


def test_a_missing_companion_and_an_objective_of_nothing_are_told_of(tmp_path: Path) -> None:
    alone = planned(tmp_path, objective=[["none", "srd", "kd"]]).experiment
    assert cautions(alone)[:1] == [
        "srd is published beside kd(weight=1, temperature=1), and tried alone here; add a slot "
        "with it to the objective, [none, kd]"
    ]
    beside = planned(tmp_path, objective=[["none", "srd"], ["none", "kd"]]).experiment
    assert not any("published beside" in caution for caution in cautions(beside))
    wrong = {
        "narrow": {"kd.weight": [0], "kd.cross_entropy": [0, 1]},
        "objective": [["none", "kd"]],
    }
    with pytest.raises(ExperimentError, match=r"kd\.cross_entropy: is 0, as weight may be"):
        planned(tmp_path, **wrong)
    for narrow in ({"none.cross_entropy": [0]}, {"kd.crossentropy": [0]}):
        with pytest.raises(ExperimentError, match="is not a setting of a candidate"):
            planned(tmp_path, objective=[["none", "kd"]], narrow=narrow)
    with pytest.raises(ExperimentError, match=r"cross_entropy.*greater than or equal to 0"):
        planned(tmp_path, objective=[["none", "kd"]], narrow={"kd.cross_entropy": [-1]})
    with pytest.raises(ExperimentError, match="'cifar' or 'imagenet'"):
        planned(tmp_path, published="cifar100")


def test_planning_leaves_no_trace_but_the_table_of_images(tmp_path: Path) -> None:
    planned(tmp_path)
    made = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path.suffix for path in made] == [".arrow"]
