"""Ensembles and assistants as teachers of a search: what is read, refused and told of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore import EnsembleConfig
from kdcore.execution.execution import Execution
from kdcore.methods import CATALOGUE
from search.cli.launching import check
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.schema import Experiment, Resources
from search.experiment.space.trial_config import trial_config
from search.export.choice import candidates
from search.export.model_card import Score, model_card
from search.leaderboard.ranking import leaderboard
from search.leaderboard.teacher_lead import what_to_do
from search.record.storage import Storage
from search.session.preflight import plan
from search.session.preparation import train_teacher
from tests.cases import Case
from tests.synthetic import SMALL, made_up_search

ONE = {"backbone": "resnet14", "training": {"epochs": 1}}
OTHER = {"backbone": "resnet8", "training": {"epochs": 1}}
TOGETHER = {"ensemble": [ONE, OTHER]}
LABEL = "ensemble(resnet14,resnet8)"


def taught_by(teacher: Any = TOGETHER, **changes: Any) -> Experiment:
    return parse_experiment(SMALL | {"teacher": teacher} | changes, "")


def test_mistakes_in_an_ensemble_have_one_message_each() -> None:
    misspelt = {"backbon": "vgg13", "training": {"epochs": 1}}
    for teacher, key, words in (
        ({"ensemble": [ONE]}, "teacher.ensemble", "at least 2 items"),
        ({"ensemble": [ONE, ONE]}, "teacher.ensemble", "lists the same resnet14 twice"),
        ({"ensemble": [ONE, "resnet8"]}, "teacher.ensemble.1", "beside its name"),
        ({"ensemble": [ONE, misspelt]}, "teacher.ensemble.1.backbon", "did you mean 'backbone'?"),
        ([ONE, {"ensemble": [ONE, misspelt]}], "teacher.1.ensemble.1.backbon", "'backbone'?"),
        (TOGETHER | {"training": {"epochs": 2}}, "teacher.training", "Known here: ensemble"),
        ({"ensemble": [ONE, TOGETHER]}, "teacher.ensemble.1", ""),
        ([TOGETHER, OTHER, TOGETHER], "teacher", f"lists the same {LABEL} twice"),
        ({"backbone": LABEL, "training": {"epochs": 2}}, "teacher.backbone", "unknown backbone"),
    ):
        with Case(key, words), pytest.raises(ExperimentError) as caught:
            taught_by(teacher)
        found = {problem.key: problem.message for problem in caught.value.problems}
        with Case(key, words, found):
            assert any(each.startswith(key) and words in found[each] for each in found)
            assert len(found) == 1 or key == "teacher.ensemble.1"


def test_an_ensemble_is_one_teacher_alone_or_in_a_list() -> None:
    alone = taught_by()
    assert alone.teachers == (LABEL,)
    assert list(alone.members(LABEL)) == ["teacher.ensemble.0", "teacher.ensemble.1"]
    listed = taught_by([ONE, TOGETHER, {"ensemble": [ONE, OTHER | {"seed": 1}]}])
    assert listed.teachers == (
        "resnet14",
        f"{LABEL} (seed 2=0)",
        f"{LABEL} (seed 2=1)",
    )
    for experiment in (alone, listed):
        assert parse_experiment(experiment.model_dump(mode="json"), "") == experiment
    point = {"objective.1": "kd", "teacher": listed.teachers[1]}
    assert isinstance(trial_config(listed, point).teacher, EnsembleConfig)
    assert list(listed.members("resnet14")) == ["teacher.0"]


def test_methods_that_read_more_than_logits_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        plan(taught_by(objective=[["none", "kd", "at", "rkd"]]), Storage(str(tmp_path)), "x.yaml")
    assert caught.value.lines() == [
        f"x.yaml: objective: {method} cannot teach resnet8: it reads {reads}, but {LABEL} has "
        "logits alone; use methods that read logits with it, or one of its networks"
        for method, reads in (
            ("at", "maps, input gradient, flipped input gradient"),
            ("rkd", "embedding"),
        )
    ]
    logits = [name for name, method in CATALOGUE.items() if method.needs <= {"logits"}]
    with pytest.raises(
        ExperimentError, match=r"wkd_l cannot teach .* the teacher's classifier, but"
    ):
        plan(taught_by(objective=[logits]), Storage(str(tmp_path)), "x.yaml")
    logits.remove("wkd_l")
    prepared = plan(taught_by(objective=[logits]), Storage(str(tmp_path)), "x.yaml")
    assert not prepared.teachers[LABEL].ready
    missing = TOGETHER["ensemble"] + [{"backbone": "resnet8", "weights": str(tmp_path / "no.pt")}]
    with pytest.raises(ExperimentError) as caught:
        plan(taught_by([ONE, {"ensemble": missing}]), Storage(str(tmp_path)), "x.yaml")
    (line,) = caught.value.lines()
    assert line.startswith("x.yaml: teacher.1.ensemble.2.weights: ")


def test_check_and_training_tell_of_each_of_its_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = taught_by(data={"name": "digits", "train_images": 256})
    (tmp_path / "x.yaml").write_text(experiment.model_dump_json())
    monkeypatch.setattr(
        "search.session.preparation.fastest_execution", lambda *network, **how: Execution()
    )
    monkeypatch.setattr(
        "kdcore.teacher.teacher.fastest_execution", lambda *network, **how: Execution()
    )
    threads = torch.get_num_threads()
    check(tmp_path / "x.yaml", [], storage=str(tmp_path))
    printed = capsys.readouterr().out
    assert f"teacher  {LABEL}, to be prepared" in printed
    assert "recipe   teacher resnet14 (teacher.ensemble.0): 1 epochs" in printed
    assert "recipe   teacher resnet8 (teacher.ensemble.1): 1 epochs" in printed
    assert f"compute  teacher {LABEL}: float32" in printed
    reports = list(train_teacher(experiment.model_dump_json(), str(tmp_path), Resources(), LABEL))
    torch.set_num_threads(threads)
    assert [report.epoch for report in reports] == [1, 1]
    prepared = plan(experiment, Storage(str(tmp_path)), "x.yaml")
    assert prepared.teachers[LABEL].ready
    one = plan(
        taught_by(ONE, data={"name": "digits", "train_images": 256}), Storage(str(tmp_path)), ""
    )
    assert one.teachers["resnet14"].ready, "other searches find it"


def test_card_leaderboard_and_advice_name_the_ensemble(digits: Any) -> None:
    record = made_up_search(6, methods=("none", "kd"))
    record = record.model_copy(update={"experiment": taught_by()})
    picked = next(each for each in candidates(record) if not each.is_control)
    score = Score("x", 0.9, None)
    commands = ("kdsearch rerun", "kdsearch best")
    card = model_card(record, picked, [score, score], digits, (), commands, Path("x"), {})
    assert f"distilled from {LABEL}" in card
    assert (
        f"- teacher: {LABEL}, of resnet14, trained for 1 epochs; of resnet8, trained for 1 epochs"
    ) in card
    assert leaderboard(record)[0].student == LABEL
    assert what_to_do(record.experiment, LABEL) == (
        f"Give the {LABEL} better or more teachers (teacher.ensemble)."
    )


def test_the_last_assistant_is_who_teaches(tmp_path: Path, digits: Any) -> None:
    chain = {"backbone": "resnet18", "training": {"epochs": 1}, "assistants": ["resnet14"]}
    experiment = taught_by([chain, ONE], objective=[["none", "at"]])
    assert experiment.teachers == ("resnet18 via resnet14", "resnet14")
    prepared = plan(experiment, Storage(str(tmp_path)), "x.yaml")
    # Both pairs have the layers of resnet14, so they are one field.
    assert {"at.layers"} == {
        field.name
        for fields in prepared.space.fields.values()
        for field in fields
        if "layers" in field.name
    }
    assert prepared.networks["resnet8", "resnet18 via resnet14"].teacher.network == "resnet14"
    record = made_up_search(6, methods=("none", "kd"))
    record = record.model_copy(update={"experiment": taught_by(chain)})
    picked = next(each for each in candidates(record) if not each.is_control)
    score = Score("x", 0.9, None)
    commands = ("kdsearch rerun", "kdsearch best")
    card = model_card(record, picked, [score, score], digits, (), commands, Path("x"), {})
    assert (
        "- teacher: resnet18 via resnet14, trained for 1 epochs, then distilled into resnet14, its "
        "assistant"
    ) in card


def test_mistakes_in_assistants_are_told_with_their_place(tmp_path: Path) -> None:
    for assistants, key, words in (
        (["resnet15"], "teacher.assistants.0", "did you mean 'resnet1"),
        ("resnet14", "teacher.assistants", "is 'resnet14', but"),
    ):
        with Case(assistants), pytest.raises(ExperimentError) as caught:
            taught_by(ONE | {"assistants": assistants})
        ((found, message),) = [(each.key, each.message) for each in caught.value.problems]
        assert found == key
        assert words in message
    unknown = ONE | {"assistants": ["torchvision/resnet5O"]}
    with pytest.raises(ExperimentError, match=r"teacher\.1\.assistants: .* did you mean 'torchv"):
        plan(taught_by([OTHER, unknown]), Storage(str(tmp_path)), "x.yaml")
    dropped = {"backbone": "resnet14", "training": {"epochs": 1, "drop_path": 0.1}}
    with pytest.raises(ExperimentError) as caught:
        plan(taught_by(dropped | {"assistants": ["vgg8"]}), Storage(str(tmp_path)), "x.yaml")
    assert [problem.key for problem in caught.value.problems] == ["teacher.training.drop_path"]
