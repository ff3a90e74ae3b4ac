"""Rows of papers' tables as files: what each run is, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcore import DataConfig, TeacherConfig, TermConfig, TrialConfig
from kdcore.errors import ConfigError
from search.errors import ExperimentError
from search.experiment.pair import Pair, read_pair, read_pairs
from search.experiment.reading import parse, read_experiment
from tests.cases import Case

VALID: dict[str, Any] = {
    "data": {"name": "digits", "heldout_fraction": 0},
    "teacher": {"backbone": "resnet20", "training": {"epochs": 2}},
    "student": "resnet8",
    "training": {"epochs": 3},
    "rows": {
        "kd": {"kd": {}},
        "kd_ls": {"kd": {"standardize": True, "temperature": 2, "weight": "9e0"}},
        "wttm_crd": {"wttm": {}, "crd": {}},
    },
}


def write(folder: Path, content: dict[str, Any], name: str = "pair.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def problems(folder: Path, changes: dict[str, Any], *overrides: str) -> dict[str, str]:
    with pytest.raises(ExperimentError) as caught:
        read_pair(write(folder, VALID | changes), overrides)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_a_run_has_the_rows_settings_and_else_those_published_for_the_benchmark(
    tmp_path: Path,
) -> None:
    pair = read_pair(write(tmp_path, VALID), ["training.epochs=8", "seeds=2"])
    assert (pair.name, pair.seeds, pair.seed, pair.training.epochs) == ("pair", 2, 0, 8)
    trial = pair.trial("kd_ls", "cifar", seed=7)
    settings = {"weight": 9.0, "cross_entropy": 0.1, "temperature": 2.0, "standardize": True}
    assert trial == TrialConfig(
        data=DataConfig(name="digits", heldout_fraction=0),
        teacher=TeacherConfig.model_validate(VALID["teacher"]),
        student="resnet8",
        objective=(TermConfig.model_validate({"method": "kd", "params": settings}),),
        training=pair.training,
        seed=7,
        cache=pair.cache,
    )
    (imagenet,) = pair.objective("kd_ls", "imagenet")
    assert dict(imagenet.params) == settings | {"cross_entropy": 0.5}
    (published,) = pair.objective("kd", "imagenet")
    assert dict(published.params) == settings | {
        "weight": 0.5,
        "cross_entropy": 0.5,
        "temperature": 1.0,
        "standardize": False,
    }
    assert [term.method for term in pair.objective("wttm_crd", "cifar")] == ["wttm", "crd"]
    assert pair.trial("none", "cifar", seed=0).objective == ()


def test_a_pair_survives_being_stored(tmp_path: Path) -> None:
    pair = read_pair(write(tmp_path, VALID))
    assert parse(Pair, json.loads(pair.model_dump_json()), "") == pair


def test_an_unknown_row_is_refused_with_those_there_are(tmp_path: Path) -> None:
    pair = read_pair(write(tmp_path, VALID))
    words = "pair has no row 'kdls'; did you mean 'kd_ls'? Its rows are none, kd, kd_ls, wttm_crd"
    with pytest.raises(ConfigError) as caught:
        pair.objective("kdls", "cifar")
    assert str(caught.value) == words


def test_a_mistake_is_named_with_path_value_and_rule(tmp_path: Path) -> None:
    held_out = {"name": "digits", "heldout_fraction": 0.1}
    cases: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"data": held_out}, "data", "heldout_fraction is 0.1, but"),
        ({"data": {"name": "digits"}}, "data", "set it to 0"),
        ({"student": ["resnet8"]}, "student", "is ['resnet8'], but"),
        ({"student": "resnet9"}, "student", "did you mean 'resnet"),
        ({"training": {"epochs": 3, "learning_rate": {"low": 1}}}, "training.learning_rate", "but"),
        ({"training": {"epoch": 3, "epochs": 3}}, "training.epoch", "did you mean 'epochs'?"),
        ({"seeds": 0}, "seeds", "is 0, but"),
        ({"search": {"trials": 3}}, "search", "Known here: base, name, data"),
        ({"rows": {}}, "rows", "at least 1 item"),
        ({"rows": ["kd"]}, "rows", "is ['kd'], but"),
        ({"rows": {"none": {"kd": {}}}}, "rows.none", "is the control"),
        ({"rows": {"../kd": {"kd": {}}}}, "rows.../kd", "invalid name '../kd'"),
        ({"rows": {False: {"kd": {}}}}, "rows.False", "in quotes"),
        ({"rows": {"kd": {}}}, "rows.kd", "must hold methods"),
        ({"rows": {"kd": None}}, "rows.kd", "is None, but must hold methods"),
        ({"rows": {"kd": {"kdd": {}}}}, "rows.kd.kdd", "did you mean 'kd'?"),
        ({"rows": {"kd": {"kd": {}, "none": {}}}}, "rows.kd.none", "adds no term"),
        ({"rows": {"kd": {"kd": None}}}, "rows.kd.kd", "is None, but must hold settings"),
        ({"rows": {"kd": {"kd": {"weigth": 1}}}}, "rows.kd.kd.weigth", "did you mean 'weight'?"),
        ({"rows": {"kd": {"kd": {"weight": -1}}}}, "rows.kd.kd.weight", "-1 is not legal"),
        ({"rows": {"kd": {"kd": {"weight": [1]}}}}, "rows.kd.kd.weight", "[1] is not legal"),
        (
            {"rows": {"kd": {"kd": {"weight": 0, "cross_entropy": 0}}}},
            "rows.kd",
            "which trains nothing",
        ),
        ({"published": "cifar10"}, "published", "is 'cifar10', but"),
    )
    for changes, key, words in cases:
        with Case(changes):
            found = problems(tmp_path, changes)
            assert list(found) == [key]
            assert words in found[key]


def test_all_mistakes_of_a_file_come_at_once(tmp_path: Path) -> None:
    rows = {"a": {"kdd": {}, "kd": {"temperature": 0, "wait": 1}}, "b": {}}
    found = problems(tmp_path, {"rows": rows, "seeds": 0}, "student=resnet9")
    assert set(found) == {
        "rows.a.kdd",
        "rows.a.kd.temperature",
        "rows.a.kd.wait",
        "rows.b",
        "seeds",
        "student",
    }


def test_a_folder_gives_its_pairs_in_order_and_none_of_their_bases(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    common = {key: value for key, value in VALID.items() if key != "student"}
    common["teacher"] = {"training": {"epochs": 2}}
    write(tmp_path, common, "common.yaml")
    write(tmp_path, {"tables": []}, "figures.yaml")
    teacher = {"backbone": "resnet20"}
    for name in ("c", "b"):
        own = {"base": "common.yaml", "student": "resnet8", "teacher": teacher}
        write(tmp_path, own, f"{name}.yaml")
    single = write(below, VALID, "a.yaml")
    pairs = read_pairs([tmp_path, single], ["seeds=3"])
    assert [(pair.name, pair.seeds) for pair in pairs] == [("b", 3), ("c", 3), ("a", 3)]

    with pytest.raises(ExperimentError, match=r"c\.yaml: name: is 'b', as that of .*b\.yaml"):
        read_pairs([tmp_path], ["name=b"])
    write(below, {"student": "resnet8"}, "forgotten.yaml")
    with pytest.raises(ExperimentError, match="is missing"):
        read_pairs([below])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ExperimentError, match="empty: has no file of a pair"):
        read_pairs([empty])


def test_who_would_search_a_pair_is_told_what_runs_it(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="kdsearch reproduce runs this file"):
        read_experiment(write(tmp_path, VALID))
