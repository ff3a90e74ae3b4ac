"""`search.prior`: what did well in earlier searches runs after what is published."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdcore.methods import CATALOGUE
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.space.point import IS_CONTROL, settings_of
from search.record.decisions import Proposal
from search.record.record import SearchRecord, TrialRecord
from search.record.storage import Storage
from search.report.explanation import explanation
from search.session.preflight import Plan, plan
from search.session.prior import catalogue
from search.session.sampler import OptunaSampler
from tests.cases import Case
from tests.records import write_record
from tests.synthetic import finished_search

TASK: dict[str, Any] = {
    "name": "task",
    "data": {"name": "digits", "heldout_fraction": 0.2},
    "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
    "student": "resnet8",
    "objective": [["none", "kd", "at"]],
    "training": {"epochs": 3, "learning_rate": {"low": 0.01, "high": 0.1}},
}
KD = {"kd.weight": 2.5, "kd.temperature": 7.0, "kd.standardize": True}
AT = {"at.weight": 3.0, "at.layers": "stage9:stage9", "at.power": 4}


def earlier(storage: Storage, name: str, *tried: tuple[str, float | None, dict[str, Any]]) -> str:
    """A search of another task, whose trials had these methods, accuracies and settings."""
    trials = [
        TrialRecord(
            number=number,
            student="resnet20",
            point={"student": "resnet20", "objective.1": method, **settings},
            objective=method if method == "none" else f"{method}(weight=1)",
            state="finished" if accuracy else "failed",
            epochs=9,
            heldout_accuracy=accuracy,
        )
        for number, (method, accuracy, settings) in enumerate(tried)
    ]
    record = finished_search(trials, {"search": {"trials": 20}})
    write_record(storage, record.model_copy(update={"name": name}))
    return name


def planned(storage: Storage, prior: list[str] | str, trials: int = 40, **keys: Any) -> Plan:
    content = TASK | {"search": {"trials": trials, "prior": prior}, **keys}
    return plan(parse_experiment(content, ""), storage, "task.yaml")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """With two earlier searches."""
    storage = Storage(str(tmp_path))
    earlier(
        storage,
        "one",
        ("none", 0.99, {IS_CONTROL: True}),
        ("kd", 0.7, {"kd.weight": 1.0}),
        ("kd", 0.9, KD | {"training.learning_rate": 0.5, "training.momentum": 0.8}),
        ("dkd", 0.95, {}),  # no candidate here
        ("at", 0.8, AT),
        ("at", None, {"at.weight": 9.0}),
    )
    earlier(storage, "two", ("kd", 0.6, KD | {"kd.weight": 5.0}), ("kd", 0.5, KD))
    return storage


def test_the_best_of_each_method_follows_what_is_published(storage: Storage) -> None:
    prepared = planned(storage, ["one", "two"])
    first = prepared.space.first_points()
    without = planned(storage, []).space.first_points()
    assert first[: len(without)] == without
    kd, fives, at = first[len(without) :]  # in turns
    # The rate is beyond its range here, and momentum is not searched.
    assert kd["training.learning_rate"] == 0.1
    assert {name: kd[name] for name in KD} == KD
    assert "training.momentum" not in kd
    assert fives["kd.weight"] == 5.0
    # No such layers here, so the published ones.
    published = next(point for point in without if point["objective.1"] == "at")
    assert at["at.layers"] == published["at.layers"]
    assert (at["at.weight"], at["at.power"]) == (3.0, 4)
    assert [
        each.place for each in prepared.experiment.search.prior if not isinstance(each, str)
    ] == [
        "one, trial 2, rank 3 of 6",
        "two, trial 0, rank 1 of 2",
        "one, trial 4, rank 4 of 6",
    ]
    # At most a quarter of the trials; and nothing that runs anyway.
    assert len(planned(storage, ["one", "two"], trials=8).space.prior) == 2
    anyway = {k: v for k, v in without[1].items() if k.startswith("kd.")}
    rate = {"training.learning_rate": without[1]["training.learning_rate"]}
    earlier(storage, "three", ("kd", 0.6, anyway | rate))
    assert planned(storage, ["three"]).space.prior == ()


def test_the_record_keeps_the_points_and_the_sampler_says_what_they_are(storage: Storage) -> None:
    prepared = planned(storage, ["one"])
    first = prepared.space.first_points()
    stored = parse_experiment(json.loads(prepared.experiment.model_dump_json()), "")
    assert stored == prepared.experiment
    elsewhere = Storage(f"{storage.uri}/elsewhere")  # where the earlier search is not
    later = plan(stored, elsewhere, "record", begun=True)
    assert later.space.first_points() == first
    sampler = OptunaSampler(prepared.space, trials=40, parallel=1, epochs=3, seed=0)
    for number in range(len(first)):
        assert settings_of(sampler.suggest(str(number))) == settings_of(first[number])
    by = [sampler.proposals[number].by for number in range(len(first))]
    assert by == ["control", "published", "published", "prior", "prior"]
    trial = TrialRecord(
        number=3,
        student="resnet8",
        point=first[3],
        objective="kd(weight=2.5)",
        state="running",
        epochs=3,
        proposal=Proposal(by="prior"),
    )
    record: SearchRecord = finished_search([trial]).model_copy(update={"experiment": stored})
    assert explanation(record, 3)[1] == (
        "Its settings did well elsewhere: one, trial 2, rank 3 of 6 (search.prior)."
    )


def test_what_did_well_in_the_whole_catalogue_comes_with_kdsearch(storage: Storage) -> None:
    for points in catalogue():
        for each in points:
            method = str(each.point["objective.1"])
            of = CATALOGUE[method].Params.model_fields
            settings = {key for key in each.point if key.startswith(f"{method}.")}
            assert settings <= {f"{method}.{name}" for name in of}, each.place
    prepared = planned(storage, "catalogue")
    (first, *_) = prepared.space.prior
    assert {point["objective.1"] for point in prepared.space.prior} == {"kd", "at"}
    assert first["training.learning_rate"] <= 0.1  # of this space
    slots = planned(storage, "catalogue", objective=[["none", "at"], ["none", "kd"]])
    assert {(point["objective.1"], point["objective.2"]) for point in slots.space.prior} == {
        ("at", "none"),
        ("none", "kd"),
    }
    assert planned(storage, ["one", "catalogue"]).space.prior[0]["kd.weight"] == KD["kd.weight"]


def test_what_is_no_prior_is_refused(storage: Storage) -> None:
    earlier(storage, "foreign", ("dkd", 0.9, {}))
    for name, words in (
        ("absent", "absent"),
        ("catalog", "'catalogue' is what comes with kdsearch"),
        ("foreign", "'foreign' has no trial whose methods are candidates here; leave it out"),
    ):
        with Case(name), pytest.raises(ExperimentError) as caught:
            planned(storage, ["one", name])
        (problem,) = caught.value.problems
        assert problem.key == "search.prior.1"
        assert words in problem.message
