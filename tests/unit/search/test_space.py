"""The search space: derived, conditional, narrowed, with the published settings first."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import BENCHMARKS
from kdcore.contract.searched import LayerChoice
from kdcore.data.image_data import open_data
from kdcore.distillation.distill import network_pair
from kdcore.methods import CATALOGUE
from search.errors import ExperimentError
from search.experiment.reading import parse_experiment
from search.experiment.schema import CONTROL, Experiment
from search.experiment.space.derivation import derive_space
from search.experiment.space.point import IS_CONTROL, LEARNING_RATE, plain_name
from search.experiment.space.space import Space, published_trials
from search.experiment.space.trial_config import trial_config
from tests.synthetic import SMALL


def experiment_of(**changes: Any) -> Experiment:
    content = {**SMALL, "objective": [list(CATALOGUE)], "training": {"epochs": 3}}
    return parse_experiment(content | changes, "task.yaml")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> NetworkPair:
    folder = tmp_path_factory.mktemp("space")
    return network_pair("resnet8", "resnet20", open_data(experiment_of().data, Path(folder)))


def study_of(space: Space) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in space.first_points():
        study.enqueue_trial(point, user_attrs={IS_CONTROL: IS_CONTROL in point})
    return study


def points(space: Space, count: int) -> list[dict[str, Any]]:
    study = study_of(space)
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(space.propose(trial, control=trial.user_attrs.get(IS_CONTROL, False)))
        study.tell(trial, state=TrialState.FAIL)
    return found


def test_the_first_trials_are_the_control_and_every_candidate_as_published(
    setting: NetworkPair,
) -> None:
    experiment = experiment_of()
    space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
    first = points(space, len(space.first_points()))
    configs = [trial_config(experiment, point) for point in first]
    assert first[0][IS_CONTROL]
    assert configs[0].objective == ()
    methods = [config.objective[0].method for config in configs[1:]]
    assert sorted(methods) == sorted(name for name in CATALOGUE if name != CONTROL)
    for config in configs[1:]:
        (term,) = config.objective
        published = CATALOGUE[term.method].Params()
        for name, mark in published.searched().items():
            if not isinstance(mark, LayerChoice):
                assert getattr(term.params, name) == getattr(published, name)


def test_the_first_trials_follow_the_benchmark(setting: NetworkPair) -> None:
    for benchmark in BENCHMARKS:
        experiment = experiment_of(published=benchmark)
        space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
        first = points(space, len(space.first_points()))
        assert trial_config(experiment, first[0]).objective == ()
        for point in first[1:]:
            (term,) = trial_config(experiment, point).objective
            expected = dict(
                CATALOGUE[term.method].Params.model_validate(
                    CATALOGUE[term.method].published_on(benchmark).settings
                )
            )
            for name, value in term.params:
                if not isinstance(term.params.searched().get(name), LayerChoice):
                    assert value == expected[name], (benchmark, term.method, name)
        # What is sampled later has the published factor as well: the weight alone is searched, so
        # there is one direction from labels to teacher, and no second learning rate.
        for point in points(space, 100)[len(first) :]:
            (term,) = trial_config(experiment, point).objective
            published = CATALOGUE[term.method].published_on(benchmark).settings
            factor = CATALOGUE[term.method].Params.model_validate(published).cross_entropy
            assert term.params.cross_entropy == factor


def test_a_point_without_a_factor_means_one_as_in_version_0_1_0(setting: NetworkPair) -> None:
    experiment = experiment_of(objective=[["kd", "at"]])
    before = {"objective.1": "kd", "kd.weight": 2.0, "kd.temperature": 4.0, "kd.standardize": True}
    (term,) = trial_config(experiment, before).objective
    assert term.params.cross_entropy == 1
    # A record of that version goes on in the space that it had; it names no benchmark.
    space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
    assert experiment.published is None
    assert not any("cross_entropy" in key for point in points(space, 20) for key in point)
    # In today's space such a point means something else, and is not learned from.
    today = experiment_of(objective=[["kd", "at"]], published="cifar")
    assert (
        "kd.cross_entropy"
        in points(derive_space(today, {("resnet8", "resnet20"): setting}, ""), 2)[1]
    )


def test_a_factor_may_be_fixed_or_given_options(setting: NetworkPair) -> None:
    for values, expected in ((["0"], {0.0}), ([0, 0.5, 1], {0.0, 0.5, 1.0})):
        narrow = {"kd.cross_entropy": values, "at.cross_entropy": values}
        experiment = experiment_of(
            objective=[["none", "kd", "at"]], narrow=narrow, published="cifar"
        )
        space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
        found = points(space, 60)
        for method in ("kd", "at"):
            key = f"{method}.cross_entropy"
            assert {point[key] for point in found if key in point} == expected
        assert trial_config(experiment, found[0]).objective == ()  # the control is what it was


def test_companions_join_the_first_trial_of_a_method(setting: NetworkPair) -> None:
    def first(**changes: Any) -> list[dict[str, Any]]:
        experiment = experiment_of(published="cifar", **changes)
        space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
        assert len(space.first_points()) == 1 + len(published_trials(experiment))
        return space.first_points()[1:]

    beside, alone = first(objective=[["none", "srd"], ["none", "kd"]])
    assert (beside["objective.1"], beside["objective.2"]) == ("srd", "kd")
    assert (beside["kd.weight"], beside["kd.temperature"]) == (1.0, 1.0)
    assert (alone["objective.1"], alone["kd.weight"], alone["kd.temperature"]) == ("none", 0.9, 4.0)
    # A range that excludes the companion's value keeps its own.
    beside, *_ = first(
        objective=[["none", "srd"], ["none", "kd"]], narrow={"kd.temperature": [2, 4]}
    )
    assert (beside["kd.weight"], beside["kd.temperature"]) == (1.0, 4.0)
    # Without a slot for it, or in the same one, the method is alone.
    assert first(objective=[["none", "srd", "kd"]])[0]["objective.1"] == "srd"
    # What is asked for as a combination has the methods' own settings.
    *_, together = first(
        objective=[["none", "srd"], ["none", "kd"]],
        search={"trials": 4, "combinations": [["srd", "kd"]]},
    )
    assert (together["kd.weight"], together["kd.temperature"]) == (0.9, 4.0)


def test_a_methods_fields_exist_only_with_it_and_stay_in_their_spans(setting: NetworkPair) -> None:
    experiment = experiment_of()
    space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
    sampled = points(space, 200)[len(space.first_points()) :]
    assert {point["objective.1"] for point in sampled} == set(CATALOGUE) - {CONTROL}
    for point in sampled:
        fields = {name for name in point if not name.startswith("objective")}
        assert all(name.startswith(f"{point['objective.1']}.") for name in fields)
        trial_config(experiment, point)  # raises if a value is not legal


def test_two_slots_are_searched_together(setting: NetworkPair) -> None:
    experiment = experiment_of(objective=[["kd", "none"], ["none", "at", "rkd"]])
    space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
    first = [trial_config(experiment, point) for point in points(space, 4)]
    assert [[term.method for term in config.objective] for config in first] == [
        [],
        ["kd"],
        ["at"],
        ["rkd"],
    ]
    both = [trial_config(experiment, point).objective for point in points(space, 60)]
    assert {"kd", "at"} in [{term.method for term in terms} for terms in both]


def test_combinations_run_together_after_each_has_run_alone(setting: NetworkPair) -> None:
    search = {"trials": 9, "combinations": [["kd", "at"], ["rkd", "kd"]]}
    experiment = experiment_of(objective=[["kd", "none"], ["none", "at", "rkd"]], search=search)
    space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
    first = [trial_config(experiment, point) for point in points(space, 6)]
    assert [[term.method for term in config.objective] for config in first] == [
        [],
        ["kd"],
        ["at"],
        ["rkd"],
        ["kd", "at"],
        ["kd", "rkd"],
    ]


@pytest.mark.parametrize("combination", [["at", "rkd"], ["kd", "fitnet"], ["kd", "kd"]])
def test_a_combination_within_a_slot_or_of_no_candidates_is_refused(
    setting: NetworkPair, combination: list[str]
) -> None:
    search = {"trials": 9, "combinations": [combination]}
    experiment = experiment_of(objective=[["kd", "none"], ["none", "at", "rkd"]], search=search)
    with pytest.raises(ExperimentError, match=r"search.combinations.0: .* different slots"):
        derive_space(experiment, {("resnet8", "resnet20"): setting}, "")


def test_a_slot_without_none_keeps_its_method_in_every_trial_but_the_control(
    setting: NetworkPair,
) -> None:
    experiment = experiment_of(objective=[["kd"], ["none", "at"]])
    found = points(derive_space(experiment, {("resnet8", "resnet20"): setting}, ""), 20)
    assert found[0]["objective.1"] == CONTROL
    assert {point["objective.1"] for point in found[1:]} == {"kd"}


def test_the_control_is_not_sampled_again_unless_its_settings_can_differ(
    setting: NetworkPair,
) -> None:
    fixed = derive_space(
        experiment_of(objective=[["none", "kd"]]), {("resnet8", "resnet20"): setting}, ""
    )
    assert all(point["objective.1"] == "kd" for point in points(fixed, 30)[1:])
    training = {"epochs": 3, "learning_rate": {"low": 0.01, "high": 0.16}}
    experiment = experiment_of(objective=[["none", "kd"]], training=training)
    found = points(derive_space(experiment, {("resnet8", "resnet20"): setting}, ""), 30)
    assert {point["objective.1"] for point in found[2:]} == {"none", "kd"}
    assert found[0][LEARNING_RATE] == pytest.approx(0.04)
    assert trial_config(experiment, found[0]).training.learning_rate == pytest.approx(0.04)


def test_narrowing_holds_for_sampled_and_published_values(setting: NetworkPair) -> None:
    narrow = {
        "kd.temperature": [5, 8],
        "at.layers": ["stage3:stage2", "stem:stem, stage1:stage1"],
        "at.power": [4],
    }
    experiment = experiment_of(objective=[["none", "kd", "at"]], narrow=narrow)
    found = points(derive_space(experiment, {("resnet8", "resnet20"): setting}, ""), 60)
    kd = [point for point in found if point["objective.1"] == "kd"]
    at = [point for point in found if point["objective.1"] == "at"]
    assert all(5 <= point["kd.temperature"] <= 8 for point in kd)
    assert kd[0]["kd.temperature"] == 5
    assert {point["at.layers"] for point in at} == {"stage3:stage2", "stem:stem, stage1:stage1"}
    assert {point["at.power"] for point in at} == {4}


def test_one_value_fixes_a_setting_also_one_that_is_not_searched(setting: NetworkPair) -> None:
    narrow = {"kd.temperature": [3], "rkd.distance_weight": [7]}
    experiment = experiment_of(objective=[["none", "kd", "rkd"]], narrow=narrow)
    space = derive_space(experiment, {("resnet8", "resnet20"): setting}, "")
    for point in points(space, 30)[1:]:
        (term,) = trial_config(experiment, point).objective
        fixed = {"kd": ("temperature", 3), "rkd": ("distance_weight", 7)}[term.method]
        assert getattr(term.params, fixed[0]) == fixed[1]


@pytest.mark.parametrize(
    ("narrow", "words"),
    [
        ({"kd.temperatur": [2, 8]}, "did you mean 'kd.temperature'?"),
        ({"kd.temperature": [8, 2]}, "low < high"),
        ({"kd.temperature": [-1, 2]}, "-1 is not legal"),
        ({"kd.temperature": [2, 3, 4]}, "[low, high]"),
        ({"kd.weight": [0, 2]}, "low > 0"),
        ({"at.layers": ["stage9:stage1"]}, "the student resnet8 has no tap 'stage9'"),
        ({"at.layers": ["stage1:stage9"]}, "the teacher resnet20 has no tap 'stage9'"),
        ({"at.layers": ["stage1"]}, "student tap:teacher tap"),
        ({"at.layers": ["stage1:stage1, stage2:stage9"]}, "no tap 'stage9'"),
        ({"at.layers": ["stage1:stage1, stage1:stage1"]}, "list each pair once"),
        ({"at.layers": ["stage1:stage1_sum"]}, "the teacher resnet20 has no tap 'stage1_sum'"),
        ({"fsp.layers": ["stage1:stage1"]}, "'fsp.layers' is not a setting"),
        ({"reviewkd.layers": ["stage1:stage1"]}, "'reviewkd.layers' is not a setting"),
        ({"at.power": []}, "one or more"),
        ({"at.power": ["two"]}, "'two' is not legal"),
    ],
)
def test_a_wrong_narrowing_is_told_with_its_key(
    setting: NetworkPair, narrow: dict[str, Any], words: str
) -> None:
    objective = [["none", "kd", "at", "fsp", "reviewkd"]]
    experiment = experiment_of(objective=objective, narrow=narrow)
    with pytest.raises(ExperimentError) as caught:
        derive_space(experiment, {("resnet8", "resnet20"): setting}, "task.yaml")
    (problem,) = caught.value.problems
    assert problem.key == f"narrow.{next(iter(narrow))}"
    assert words in problem.message


def test_a_trials_config_survives_json(setting: NetworkPair) -> None:
    experiment = experiment_of()
    for point in points(derive_space(experiment, {("resnet8", "resnet20"): setting}, ""), 40):
        config = trial_config(experiment, point)
        assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], NetworkPair]:
    data = open_data(experiment_of().data, Path(tmp_path_factory.mktemp("space")))
    students = "resnet8", "resnet50"
    return {(name, "resnet20"): network_pair(name, "resnet20", data) for name in students}


def of_two_students(**changes: Any) -> Experiment:
    objective = [["none", "kd", "at"]]
    return experiment_of(**{"student": ["resnet8", "resnet50"], "objective": objective} | changes)


def test_each_student_has_a_control_and_the_first_shows_the_published_settings(
    settings: dict[tuple[str, str], NetworkPair],
) -> None:
    experiment = of_two_students()
    space = derive_space(experiment, settings, "")
    first = points(space, len(space.first_points()))
    configs = [trial_config(experiment, point) for point in first]
    assert [
        (config.student.label, [term.method for term in config.objective]) for config in configs
    ] == [
        ("resnet8", []),
        ("resnet50", []),
        ("resnet8", ["kd"]),
        ("resnet8", ["at"]),
    ]
    assert [IS_CONTROL in point for point in first] == [True, True, False, False]


def test_the_student_is_searched_and_so_are_the_layers_that_it_has(
    settings: dict[tuple[str, str], NetworkPair],
) -> None:
    experiment = of_two_students()
    found = points(derive_space(experiment, settings, ""), 80)
    seen: dict[str, set[str]] = {"resnet8": set(), "resnet50": set()}
    for point in found:
        config = trial_config(experiment, point)
        for term in config.objective:
            if term.method == "at":
                seen[config.student.label].add(term.params.model_dump()["layers"])
    assert any("stage4:" in layers for layers in seen["resnet50"])
    assert not any("stage4:" in layers for layers in seen["resnet8"])
    assert "all" in seen["resnet8"] & seen["resnet50"]
    names = {name for point in found for name in point}
    assert {"at.layers.1", "at.layers.2", "at.power"} <= names  # power is one field for both
    assert {plain_name(name) for name in names} >= {"at.layers", "at.power", "objective.1"}


def test_a_narrowing_must_suit_every_student(settings: dict[tuple[str, str], NetworkPair]) -> None:
    fits = of_two_students(narrow={"at.layers": ["last", "stage1:stage1"]})
    found = points(derive_space(fits, settings, ""), 40)
    assert {point["at.layers"] for point in found if "at.layers" in point} == {
        "last",
        "stage1:stage1",
    }
    one_has_it = of_two_students(narrow={"at.layers": ["stage4:stage3"]})
    with pytest.raises(ExperimentError) as caught:
        derive_space(one_has_it, settings, "task.yaml")
    (problem,) = caught.value.problems
    assert "the student resnet8 has no tap 'stage4'" in problem.message
