"""The samplers by name: what each promises, and that it goes on where it was cut off."""

import itertools
import math
import random
import warnings
from collections import Counter
from typing import Any, get_args

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, TrialState

from kdcore.contract.network_pair import NetworkPair
from kdcore.data.image_data import open_data
from kdcore.distillation.distill import network_pair
from search.errors import SearchError
from search.experiment.search_config import SamplerName
from search.experiment.space.derivation import derive_space
from search.experiment.space.point import IS_CONTROL, settings_of
from search.experiment.space.space import Space
from search.record.record import TrialRecord
from search.session.sampler import OptunaSampler
from search.session.sampling.grid import Grid
from search.session.sampling.proposer import seed_of
from search.session.sampling.walk import value_at
from tests.cases import Case
from tests.unit.search.test_sampler import EPOCHS, recorded, report
from tests.unit.search.test_space import experiment_of

SAMPLERS = get_args(SamplerName)
COSTS = {"resnet8": 77_754.0, "resnet14": 174_970.0}
RATES = {"epochs": EPOCHS, "learning_rate": {"low": 0.01, "high": 0.1}}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], NetworkPair]:
    data = open_data(experiment_of().data, tmp_path_factory.mktemp("samplers"))
    students = "resnet8", "resnet14"
    return {(name, "resnet20"): network_pair(name, "resnet20", data) for name in students}


def space_of(pairs: dict[tuple[str, str], NetworkPair], **changes: Any) -> Space:
    experiment = experiment_of(published="cifar", **changes)
    return derive_space(experiment, pairs, "")


@pytest.fixture
def space(pairs: dict[tuple[str, str], NetworkPair]) -> Space:
    """Two students, two slots, a shared range: whatever depends on something else."""
    students = ["resnet8", "resnet14"]
    objective = [["none", "kd"], ["none", "at", "fitnet"]]
    return space_of(pairs, student=students, objective=objective, training=RATES)


@pytest.fixture
def conditional(pairs: dict[tuple[str, str], NetworkPair]) -> Space:
    """Settings of recipe and views that there are only beside others."""
    training = {
        "epochs": EPOCHS,
        "optimizer": ["sgd", "adamw", "lamb"],
        "momentum": [0, 0.5, 0.9],
        "nesterov": [False, True],
        "betas": [0.9, {"low": 0.9, "high": 0.999}],
        "ema_decay": [None, 0.99],
        "batch_size": {"low": 16, "high": 64},
    }
    mixed = [["mixup"], ["flip", {"mixup": {"alpha": {"low": 0.1, "high": 1}}}]]
    return space_of(
        pairs,
        objective=[["none", "kd"]],
        training=training,
        data={"name": "digits", "augmentation": {"choices": ["basic", *mixed]}},
    )


def of_name(name: str, space: Space, **changes: Any) -> OptunaSampler:
    if name == "cmaes":
        pytest.importorskip("cmaes")
    settings = {"trials": 40, "parallel": 2, "epochs": EPOCHS, "seed": 3, "sampler": name}
    return OptunaSampler(space, **{**settings, **changes})


def is_in(space: Space, point: dict[str, Any]) -> bool:
    """Whether it is a whole point of the space."""
    settings = dict(settings_of(point))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a value out of range
        return settings == dict(
            settings_of(space.propose(FixedTrial(settings), control=IS_CONTROL in point))
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(SAMPLERS, ("space", "conditional")),
        *((name, "front") for name in SAMPLERS if name != "grid"),
    ],
)
def test_a_search_goes_on_where_it_was_cut_off(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    space: Space = request.getfixturevalue("space" if kind == "front" else kind)
    costs = COSTS if kind == "front" else None
    controls = len(space.students)
    chance = random.Random(0)
    first = of_name(name, space, costs=costs)
    points = [first.suggest(str(number)) for number in range(3)]
    for number in range(3, 26):
        first.on_trial_complete(str(number - 3), report(chance.random(), chance.randint(1, EPOCHS)))
        points.append(first.suggest(str(number)))
    states = {4: "failed", 7: "interrupted", 12: "running", 20: "interrupted"}
    trials = [
        recorded(number, point, states.get(number, "stopped"), [chance.random()] * (number % 4 + 1))
        for number, point in enumerate(points)
        if number != 13  # its process died before it began
    ]
    second, again = (of_name(name, space, recorded=trials, costs=costs) for _ in range(2))
    proposed = [second.suggest(str(number)) for number in range(12)]
    assert [again.suggest(str(number)) for number in range(12)] == proposed
    taken_up, lost, new = proposed[:2], proposed[2], proposed[4:]
    assert [*taken_up, proposed[3]] == [points[number] for number in (7, 12, 20)]
    assert [lost["trial"], *(point["trial"] for point in new)] == [13, *range(26, 34)]
    at_all = [*(point for point in points if point["trial"] != 13), lost, *new]
    assert len(set(map(settings_of, at_all))) == len(at_all)
    for point in at_all:
        with Case(point):
            assert is_in(space, point)
    by = [second.proposals[point["trial"]].by for point in (lost, *new)]
    assert set(by) == {name}
    known = {number: trial.by for number, trial in first.proposals.items()}
    assert [known[number] for number in (0, controls - 1, controls, 25)] == [
        *("control", "control", "published", name)
    ]
    assert not second.proposals.keys() & {0, 7, 12, 20}, "the record tells"


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_a_search_for_the_front_that_was_cut_off_goes_on_as_if_it_had_not_been(
    name: str, space: Space
) -> None:
    """One trial at a time, so that nothing depends on which of them ends first."""
    trials, points, first = [], [], of_name(name, space, costs=COSTS, learns_from=8)
    for number in range(26):
        point = first.suggest(str(number))
        chance = random.Random(number)
        epochs, failed = chance.randint(1, EPOCHS), number in (6, 15)
        lead = 0.02 * (point["student"] == "resnet14")
        curve = [lead + chance.random() / 10 for _ in range(epochs)]
        state = "failed" if failed else "finished" if epochs == EPOCHS else "stopped"
        trials.append(recorded(number, point, state, curve))
        points.append(point)
        first.on_trial_complete(str(number), report(max(curve), epochs), error=failed)
    students = Counter(point["student"] for point in points[len(space.first_points()) :])
    assert min(students[student] for student in space.students) > 1
    for cut in (9, 16, 22):
        running = recorded(cut, points[cut], "running", [0.01])
        second = of_name(name, space, recorded=[*trials[:cut], running], costs=COSTS, learns_from=8)
        for number in range(cut, cut + 3):
            with Case(cut, number):
                assert second.suggest(str(number)) == points[number]
                known, value = trials[number], max(trials[number].accuracies)
                error = known.state == "failed"
                second.on_trial_complete(str(number), report(value, known.epochs_done), error=error)


def test_a_search_learns_from_others_with_the_same_settings_of_recipe_and_views(
    conditional: Space, pairs: dict[tuple[str, str], NetworkPair]
) -> None:
    first = of_name("random", conditional)
    points = [first.suggest(str(number)) for number in range(12)]
    assert {point["training.ema_decay"] for point in points} == {None, 0.99}
    trials = [recorded(number, point, "stopped", [0.1]) for number, point in enumerate(points)]
    earlier = [TrialRecord.model_validate_json(trial.model_dump_json()) for trial in trials]
    assert earlier == trials
    assert of_name("tpe", conditional, earlier=earlier).adopted == 12
    other = space_of(pairs, objective=[["none", "kd"]], training=RATES)
    assert of_name("tpe", other, earlier=earlier).adopted == 0


def test_tpe_proposes_what_optuna_proposes(pairs: dict[tuple[str, str], NetworkPair]) -> None:
    space = space_of(pairs, objective=[["none", "kd", "fitnet"]])
    searcher = of_name("tpe", space, trials=24, seed=5)
    sampler = optuna.samplers.TPESampler(n_startup_trials=8, seed=5)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    first = space.first_points()
    for number in range(24):
        proposal = searcher.proposals.get(number)
        if number < len(first):
            study.enqueue_trial(first[number])
        trial = study.ask()
        expected = space.propose(trial, control=number == 0)
        assert searcher.suggest(str(number)) == {**expected, "trial": number}
        proposal = searcher.proposals[number]
        if number >= len(first):
            assert (proposal.results, proposal.needed) == (number, 8)
        value = expected.get("kd.temperature", 1.0) / 100
        searcher.on_trial_complete(str(number), report(value, EPOCHS))
        trial.report(value, EPOCHS)
        study.tell(trial, value)


def test_the_settings_of_a_combination_are_those_of_a_gaussian_process(
    pairs: dict[tuple[str, str], NetworkPair],
) -> None:
    space = space_of(pairs, objective=[["kd"]], training=RATES)
    searcher = of_name("gp", space, seed=2)
    trials = []
    for number in range(8):
        point = searcher.suggest(str(number))
        value = 1 / point.get("kd.temperature", 20.0)
        if number < 7:
            searcher.on_trial_complete(str(number), report(value, EPOCHS if number % 2 else 1))
        trials.append((point, value))
    found = searcher.suggest("next")
    # By hand: one study of all that has these fields; the last trial still runs.
    number = found["trial"]
    sampler = optuna.samplers.GPSampler(seed=seed_of(2, number), n_startup_trials=4)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    fields = {
        "training.learning_rate": FloatDistribution(0.01, 0.1, log=True),
        **{each.name: _distribution(each) for each in space.fields["resnet8", "resnet20", "kd"]},
    }
    for point, value in trials:
        if IS_CONTROL not in point:
            params = {name: point[name] for name in fields}
            runs = point["trial"] == 7
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING if runs else TrialState.COMPLETE,
                    value=None if runs else value,
                    params=params,
                    distributions=fields,
                )
            )
    expected = study.ask(fields).params
    assert {name: found[name] for name in fields} == pytest.approx(expected)
    proposal = searcher.proposals[number]
    assert (proposal.results, proposal.alike, proposal.alike_needed) == (6, 6, 4)


def _distribution(field: Any) -> Any:
    if hasattr(field, "options"):
        return CategoricalDistribution(field.options)
    return FloatDistribution(field.low, field.high, log=field.log)


@pytest.mark.parametrize("name", ["gp", "cmaes"])
def test_models_by_combination_learn_from_the_same_methods_alone(name: str, space: Space) -> None:
    searcher = of_name(name, space)
    seen: list[dict[str, Any]] = []
    for number in range(24):
        point = searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), report(0.5 + number / 100, EPOCHS))
        proposal = searcher.proposals[number]
        if proposal.by == name:
            choice = {k: v for k, v in point.items() if k.startswith(("objective", "student"))}
            alike = [each for each in seen if choice.items() <= each.items()]
            assert (proposal.results, proposal.alike) == (len(seen), len(alike))
        if IS_CONTROL not in point:
            seen.append(point)


def test_quasi_random_points_are_spread_over_methods_students_and_ranges(space: Space) -> None:
    searcher = of_name("qmc", space, trials=200, seed=11)
    first = len(space.first_points())
    points = [searcher.suggest(str(number)) for number in range(first + 64)][first:]
    assert Counter(point["student"] for point in points) == {"resnet8": 32, "resnet14": 32}
    assert Counter(point["objective.1"] for point in points) == {"none": 32, "kd": 32}
    thirds = Counter(point["objective.2"] for point in points)
    assert set(thirds.values()) <= {20, 21, 22}  # of 64 equal parts, 21 and a third
    places = [math.log10(point["training.learning_rate"] / 0.01) for point in points]
    assert Counter(int(place * 64) for place in places) == dict.fromkeys(range(64), 1)
    # Those of one method as well: half of the points, in each half of the range half of them.
    weights = {each.name: each for each in space.fields["resnet8", "resnet20", "kd"]}["kd.weight"]
    kd = [point["kd.weight"] for point in points if point["objective.1"] == "kd"]
    middle = math.sqrt(weights.low * weights.high)
    assert sum(weight < middle for weight in kd) == 16
    # A point follows from its number.
    other = of_name("qmc", space, trials=200, seed=11)
    for number in range(first + 5):
        assert settings_of(other.suggest(str(number))) == settings_of(
            (space.first_points() + points)[number]
        )
        other.on_trial_complete(str(number), report(0.1, 1))
    assert points != [of_name("qmc", space, seed=12).suggest(str(n)) for n in range(64)]


def test_a_grid_has_each_point_once(pairs: dict[tuple[str, str], NetworkPair]) -> None:
    narrow = {
        "kd.weight": [0.1, 10],
        "kd.temperature": [1, 16],
        "at.layers": ["all", "stage2:stage2"],
        "at.weight": [1000],
        "at.kind": ["activation"],
        "at.power": [2],
        "at.reduction": ["mean"],
    }
    space = space_of(
        pairs, student=["resnet8", "resnet14"], objective=[["none", "kd", "at"]], narrow=narrow
    )
    expected = set()
    for student in space.students:
        kd = itertools.product((0.1, 1.0, 10.0), (1.0, 4.0, 16.0), (False, True))
        for weight, temperature, standardize in kd:
            point = {"objective.1": "kd", "kd.weight": weight, "kd.temperature": temperature}
            point |= {"kd.standardize": standardize, "kd.cross_entropy": 0.1}
            expected.add(settings_of({"student": student, **point}))
        for layers in ("all", "stage2:stage2"):
            at = {"weight": 1000.0, "kind": "activation", "power": 2, "reduction": "mean"}
            point = {"objective.1": "at"} | {f"at.{name}": value for name, value in at.items()}
            (name,) = {
                f.name for f in space.fields[student, "resnet20", "at"] if "layers" in f.name
            }
            expected.add(settings_of({"student": student, **point, name: layers}))
    grid = Grid(space, steps=3, seed=0)
    first = space.first_points()
    assert (grid.size, grid.left) == (len(expected), len(expected - set(map(settings_of, first))))
    searcher = of_name("grid", space, trials=10**6, grid_steps=3)
    points = [searcher.suggest(str(number)) for number in range(len(first) + grid.left)]
    assert list(map(settings_of, points[: len(first)])) == list(map(settings_of, first))
    assert set(map(settings_of, points)) == expected | set(map(settings_of, first))
    assert len(set(map(settings_of, points))) == len(points)
    with pytest.raises(SearchError, match=f"all {grid.size} points of the grid"):
        searcher.suggest("another")
    # Another order with another seed, and a part of it is of all of them.
    assert [point["trial"] for point in points] == list(range(len(points)))
    other = of_name("grid", space, trials=10**6, seed=4)
    assert [other.suggest(str(n)) for n in range(len(points))] != points


def test_a_grid_has_what_others_need_with_what_needs_it(conditional: Space) -> None:
    grid = Grid(conditional, steps=2, seed=0)
    of_optimizers = 2 * (1 + 2 * 2 + 2)  # by ema: no momentum, each of two with nesterov; betas
    of_optimizers += 2 * 2  # betas of LAMB
    views = 1 + 1 + 2
    kd = math.prod(
        len(each.options) if hasattr(each, "options") else 2 for each in _of_kd(conditional)
    )
    assert grid.size == of_optimizers * 2 * views * (1 + kd)
    points = [grid.propose(0, (), set())[0] for _ in range(grid.left)]
    assert len(set(map(settings_of, points))) == grid.left
    for point in points[:200]:
        with Case(point):
            assert is_in(conditional, point)


def _of_kd(space: Space) -> Any:
    return space.fields["resnet8", "resnet20", "kd"]


def test_the_values_of_a_grid_are_even_on_their_scale(
    pairs: dict[tuple[str, str], NetworkPair],
) -> None:
    space = space_of(pairs, objective=[["kd"]], training=RATES, narrow={"kd.temperature": [1, 16]})
    grid = Grid(space, steps=5, seed=1)
    points = [grid.propose(0, (), set())[0] for _ in range(grid.left)]
    assert sorted({point["kd.temperature"] for point in points}) == [1, 2, 4, 8, 16]
    assert sorted({point["training.learning_rate"] for point in points}) == [
        0.01,
        *(float(f"{0.01 * 10**share:.6g}") for share in (0.25, 0.5, 0.75)),
        0.1,
    ]


def test_a_place_on_a_scale_is_a_value_of_the_field() -> None:
    options = CategoricalDistribution(["a", "b", "c"])
    assert [value_at(options, share) for share in (0, 0.33, 0.34, 0.99, 1)] == list("aabcc")
    whole = IntDistribution(2, 5)
    counts = Counter(value_at(whole, (place + 0.5) / 400) for place in range(400))
    assert counts == dict.fromkeys(range(2, 6), 100)
    assert {value_at(IntDistribution(1, 9, log=True), share) for share in (0.0, 1.0)} == {1, 9}
    assert value_at(FloatDistribution(1, 16, log=True), 0.5) == pytest.approx(4)
    assert value_at(FloatDistribution(1, 16), 0.5) == 8.5


def test_what_has_been_there_is_not_trained_again(
    pairs: dict[tuple[str, str], NetworkPair],
) -> None:
    narrow = {"kd.weight": [1], "kd.temperature": [4], "kd.cross_entropy": [0, 0.1, 0.5]}
    space = space_of(pairs, objective=[["kd"]], narrow=narrow)
    for name in ("gp", "qmc"):
        searcher = of_name(name, space)
        points = []
        for number in range(6):  # the control, and of kd three factors, standardized or not
            points.append(searcher.suggest(str(number)))
            searcher.on_trial_complete(str(number), report(0.5, EPOCHS))
        with Case(name):
            assert len(set(map(settings_of, points))) == 6
