"""The pictures of a search: what is in them, and that any search can be drawn."""

import io
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import optuna
import pytest
from matplotlib.figure import Figure

from kdcore.methods import CATALOGUE
from search.errors import SearchError
from search.experiment.reading import parse_experiment
from search.experiment.space.space import published_trials
from search.leaderboard.front import pareto
from search.record.record import SearchRecord
from search.report.importance import MOST_TRIALS, importances
from search.report.plots.accuracy_against_cost import accuracy_against_cost
from search.report.plots.accuracy_by_method import accuracy_by_method
from search.report.plots.accuracy_by_setting import accuracy_by_setting
from search.report.plots.density import LEADERS, MANY
from search.report.plots.drawings import DRAWINGS, Drawing, draw, png
from search.report.plots.importance_bars import importance
from search.report.plots.learning_curves import learning_curves
from search.report.plots.parallel_coordinates import parallel_coordinates
from search.report.plots.style import method_colours
from search.stopping.rungs import Rungs
from tests.synthetic import made_up_classes, made_up_search


@pytest.fixture(scope="module")
def record() -> SearchRecord:
    return made_up_search(40).model_copy(update={"by_class": made_up_classes(10)})


def drawn(drawing: Drawing, record: SearchRecord) -> Figure:
    figure = drawing(record)
    assert figure is not None
    return figure


def marks(figure: Figure) -> Counter[str]:
    """How many dots, lines and bars of each kind are in a picture."""
    counts: Counter[str] = Counter()
    for axes in figure.axes:
        for line in axes.lines:
            counts[str(line.get_gid())] += 1
        for dots in axes.collections:
            counts[str(dots.get_gid())] += len(dots.get_offsets())
        for bar in axes.patches:
            counts[str(bar.get_gid())] += 1
    return counts


def words(figure: Figure) -> set[str]:
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    return texts | {text.get_text() for text in figure.texts}


def test_each_trial_has_a_curve_and_each_stopped_one_a_cross(record: SearchRecord) -> None:
    figure = drawn(learning_curves, record)
    counts = marks(figure)
    assert counts["curve"] == 40
    assert counts["cut"] == sum(trial.state == "stopped" for trial in record.trials) > 0
    asha = record.experiment.search.asha
    assert asha is not None
    assert counts["rung"] == len(Rungs(asha, epochs=30).results)
    assert "teacher 96.80" in words(figure)


def test_curves_are_the_best_so_far_and_as_long_as_the_trial_ran(record: SearchRecord) -> None:
    lines = drawn(learning_curves, record).axes[0].lines
    curves = [line for line in lines if line.get_gid() == "curve"]
    lengths = sorted(len(line.get_ydata()) for line in curves)  # type: ignore[arg-type]
    assert lengths == sorted(trial.epochs_done for trial in record.trials)
    for line in curves:
        assert all(before <= after for before, after in pairwise(line.get_ydata()))  # type: ignore[arg-type]


def test_epochs_on_top_come_before_the_first_so_that_rungs_are_where_they_were() -> None:
    record = made_up_search(6, epochs=9)
    control, second, *others = record.trials
    longer = {"epochs": 11, "epochs_on_top": 2, "epochs_done": 11, "state": "finished"}
    curve = (0.1, 0.1, *control.accuracies)
    second = second.model_copy(update={**longer, "accuracies": curve})
    record = record.model_copy(update={"trials": (control, second, *others)})
    axes = drawn(learning_curves, record).axes[0]
    ends = [line.get_xdata() for line in axes.lines if line.get_gid() == "curve"]
    assert [-1, 9] in [[xs[0], xs[-1]] for xs in ends]  # type: ignore[index]
    assert axes.get_xlim() == (1, 9)


def test_each_trial_is_a_dot_and_each_published_setting_a_diamond(record: SearchRecord) -> None:
    counts = marks(drawn(accuracy_by_method, record))
    assert counts["published"] == len(published_trials(record.experiment)) == 5
    assert counts["published"] + counts["trial"] == 40
    assert counts["teacher"] == counts["control"] == 1


def test_the_best_method_is_on_top(record: SearchRecord) -> None:
    axes = drawn(accuracy_by_method, record).axes[0]
    best = max(record.trials, key=lambda trial: trial.heldout_accuracy or 0.0)
    assert axes.get_yticklabels()[0].get_text() == best.methods
    assert axes.yaxis_inverted()


def test_cost_shows_what_finished_and_rings_the_students_that_none_beats() -> None:
    record = made_up_search(30, students=("resnet8", "mobilenetv2", "vgg8"), methods=("none", "kd"))
    finished = [trial for trial in record.trials if trial.state == "finished"]
    counts = marks(drawn(accuracy_against_cost, record))
    assert counts["trial"] == 2 * len(finished)
    best = [
        max(t.heldout_accuracy or 0.0 for t in finished if t.student == student)
        for student in record.experiment.students
    ]
    costs = [record.student_costs[student] for student in record.experiment.students]
    by_size = pareto([(c.parameters, a) for c, a in zip(costs, best, strict=True)])
    by_time = pareto([(c.latency_ms, a) for c, a in zip(costs, best, strict=True)])
    assert counts["pareto parameters"] == len(by_size) < 3
    assert counts["pareto latency_ms"] == len(by_time)


def test_nothing_beats_the_front_and_the_front_beats_the_rest() -> None:
    chance = random.Random(0)
    for _ in range(50):
        points = [(chance.randint(1, 5), chance.randint(1, 5)) for _ in range(8)]
        front = pareto(points)

        def beaten(index: int, points: list[tuple[int, int]] = points) -> bool:
            cost, accuracy = points[index]
            return any(
                c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points
            )

        assert {points[i] for i in front} == {p for i, p in enumerate(points) if not beaten(i)}
        assert len({points[i] for i in front}) == len(front)


def test_settings_have_a_dot_for_each_trial_and_number(record: SearchRecord) -> None:
    counts = marks(drawn(accuracy_by_setting, record))
    numbers = {"kd": 2, "rkd": 2, "at": 2, "dkd": 4, "fitnet": 2}
    trials = Counter(trial.methods for trial in record.trials)
    expected = sum(numbers[name] * trials[name] for name in numbers if trials[name] >= 3)
    assert counts["trial"] + counts["published"] == expected


def test_each_trial_is_a_line_through_its_methods_settings(record: SearchRecord) -> None:
    figure = drawn(parallel_coordinates, record)
    trials = Counter(trial.methods for trial in record.trials)
    assert marks(figure)["trial"] == sum(n for n in trials.values() if n >= 3)
    accuracies = [axes.lines for axes in figure.axes]
    for lines in accuracies:
        ends = [float(line.get_ydata()[-1]) for line in lines if line.get_gid() == "trial"]  # type: ignore[index, arg-type]
        assert min(ends) == 0.0
        assert max(ends) == 1.0


@pytest.fixture(scope="module")
def searched() -> SearchRecord:
    """A search that chose recipe and views too; momentum only beside SGD."""
    record = made_up_search(24, methods=("none", "kd", "at"))
    training = {
        "optimizer": ["sgd", "adamw"],
        "momentum": {"low": 0.5, "high": 0.99, "log": False},
        "learning_rate": {"low": 1e-3, "high": 1},
        "weight_decay": {"low": 1e-6, "high": 1e-2},
        "label_smoothing": {"low": 0, "high": 0.2, "log": False},
        "ema_decay": [None, 0.99, 0.999],
    }
    views = ["flip", {"mixup": {"alpha": {"low": 0.1, "high": 1}}}]
    content = record.experiment.model_dump(mode="json")
    content["training"] |= training
    content["data"]["augmentation"] = views
    experiment = parse_experiment(content, "")
    chance = random.Random(0)
    trials = []
    for trial in record.trials:
        chosen: dict[str, Any] = {"training.optimizer": chance.choice(["sgd", "adamw"])}
        if chosen["training.optimizer"] == "sgd":
            chosen["training.momentum"] = chance.uniform(0.5, 0.99)
        chosen |= {
            "training.learning_rate": 10 ** chance.uniform(-3, 0),
            "training.weight_decay": 10 ** chance.uniform(-6, -2),
            "training.label_smoothing": chance.uniform(0, 0.2),
            "training.ema_decay": chance.choice([None, 0.99, 0.999]),
            "data.augmentation.mixup.alpha": chance.uniform(0.1, 1),
        }
        trials.append(trial.model_copy(update={"point": chosen | trial.point}))
    return record.model_copy(update={"experiment": experiment, "trials": tuple(trials)})


def test_recipe_and_views_are_settings_of_every_method(searched: SearchRecord) -> None:
    groups = Counter(trial.methods for trial in searched.trials)
    shown = {methods for methods, trials in groups.items() if trials >= 3}
    of_methods = {"kd": 2, "at": 2}
    figure = drawn(accuracy_by_setting, searched)
    counts = marks(figure)
    with_momentum = sum(
        "training.momentum" in trial.point for trial in searched.trials if trial.methods in shown
    )
    expected = sum((4 + of_methods[methods]) * groups[methods] for methods in shown)
    assert counts["trial"] + counts["published"] == expected + with_momentum
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert {"momentum", "learning_rate", "mixup.alpha", "temperature"} <= labels
    scales = {axes.get_xlabel(): axes.get_xscale() for axes in figure.axes}
    assert (scales["weight_decay"], scales["label_smoothing"]) == ("log", "linear")
    lines = drawn(parallel_coordinates, searched)
    assert marks(lines)["trial"] == sum(groups[methods] for methods in shown)
    assert {"without", "adamw", "null", "0.999"} <= words(lines)
    # What only some trials have is no reason why accuracies of all differ.
    names = {name for each in importances(searched, 1) for name in each.shares}
    assert {
        "training.learning_rate",
        "training.ema_decay",
        "data.augmentation.mixup.alpha",
    } <= names
    assert "training.momentum" not in names


def test_importances_are_shown_for_methods_with_enough_trials(record: SearchRecord) -> None:
    figure = drawn(importance, record)
    trials = Counter(trial.methods for trial in record.trials)
    named = {f" {name}, {count} trials" for name, count in trials.items() if count >= 8}
    assert named
    assert named <= words(figure)
    assert marks(figure)["share"] == len(figure.axes[0].get_yticks())


@pytest.fixture(scope="module")
def many() -> SearchRecord:
    """Too many trials for a dot or a line each."""
    return made_up_search(2 * MANY, methods=("none", "kd", "rkd"))


def shaded(figure: Figure) -> list[int]:
    """How many points each shade of a picture holds."""
    meshes = [mesh for axes in figure.axes for mesh in axes.collections]
    return [
        int(mesh.get_array().sum())  # type: ignore[union-attr]
        for mesh in meshes
        if mesh.get_gid() == "density"
    ]


def test_of_many_trials_the_best_are_lines_and_every_epoch_is_in_the_shade(
    many: SearchRecord,
) -> None:
    figure = drawn(learning_curves, many)
    assert marks(figure)["curve"] == 3  # the control and the best of each method
    assert shaded(figure) == [sum(trial.epochs_done for trial in many.trials)]
    best = max(trial.heldout_accuracy or 0.0 for trial in many.trials)
    assert any(text.endswith(f" {100 * best:.2f}") for text in words(figure))


def test_of_many_trials_the_best_and_the_published_are_dots_beside_bands(
    many: SearchRecord,
) -> None:
    counts = marks(drawn(accuracy_by_method, many))
    assert counts["published"] == len(published_trials(many.experiment)) == 2
    assert counts["trial"] <= 2 * LEADERS + 1
    assert counts["density"] == 2


def test_of_many_trials_each_setting_has_all_in_its_shade(many: SearchRecord) -> None:
    trials = Counter(trial.methods for trial in many.trials)
    figure = drawn(accuracy_by_setting, many)
    assert sorted(shaded(figure)) == sorted([trials["kd"], trials["rkd"]] * 2)
    assert marks(figure)["trial"] <= 4 * LEADERS
    figure = drawn(parallel_coordinates, many)
    assert marks(figure)["trial"] <= 2 * 13
    assert len(shaded(figure)) == 2


def test_of_many_trials_the_best_of_each_method_stand_beside_a_bar(many: SearchRecord) -> None:
    ended = tuple(trial.model_copy(update={"state": "finished"}) for trial in many.trials)
    counts = marks(drawn(accuracy_against_cost, many.model_copy(update={"trials": ended})))
    assert (counts["trial"], counts["density"]) == (2 * 3, 2)


def test_the_importance_of_many_settings_is_that_of_a_sample(
    many: SearchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float]] = []

    def shares(experiment: object, points: object, accuracies: list[float]) -> dict[str, float]:
        asked.append(accuracies)
        return {"kd.weight": 0.9, "kd.temperature": 0.1}

    monkeypatch.setattr("search.report.importance._shares", shares)
    figure = drawn(importance, many)
    assert len(asked[0]) == max(map(len, asked)) == MOST_TRIALS
    assert any("from at most 200 trials of a group" in text for text in words(figure))
    assert " all trials, 400 trials" in words(figure)


def test_fanova_meets_few_options_however_many_methods_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = optuna.importance.get_param_importances

    def importances_of(study: optuna.Study, **settings: Any) -> dict[str, float]:
        # It adds over all combinations of them: with the whole catalogue it would not end.
        for distribution in study.trials[0].distributions.values():
            assert len(getattr(distribution, "choices", ())) <= 6
        return of(study, **settings)

    monkeypatch.setattr(optuna.importance, "get_param_importances", importances_of)
    record = made_up_search(90, methods=tuple(CATALOGUE), students=("resnet8", "resnet20"))
    worst_first = {name: place for place, name in enumerate(CATALOGUE)}
    trials = [
        # Apart from the method only chance decides.
        trial.model_copy(update={"accuracies": (place / 100 + noise,) * 30})
        for trial in record.trials
        if (place := worst_first.get(trial.methods)) is not None
        for noise in [random.Random(trial.number).random() / 1000]
    ]
    (found,) = importances(record.model_copy(update={"trials": tuple(trials)}), 1)
    assert found.shares["method"] > 0.9


def test_methods_have_the_same_colours_in_all_pictures_and_none_changes_later() -> None:
    record = made_up_search(30)
    colours = method_colours(record)
    assert len(set(colours.values())) == len(colours) == 6
    earlier = method_colours(record.model_copy(update={"trials": record.trials[:8]}))
    assert earlier.items() <= colours.items()


CASES = {
    "nothing yet": {"trials": ()},
    "one control": {"trials": made_up_search(1).trials},
    "no control": {"trials": made_up_search(20).trials[1:]},
    "no teacher": {"teacher_metrics": {}},
    "no costs": {"student_costs": {}},
    "all perfect": {
        "trials": tuple(
            trial.model_copy(update={"accuracies": (1.0,) * 4, "heldout_accuracy": 1.0})
            for trial in made_up_search(12).trials
        )
    },
    "all failed": {
        "trials": tuple(
            trial.model_copy(update={"accuracies": (), "heldout_accuracy": None, "state": "failed"})
            for trial in made_up_search(12).trials
        )
    },
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("drawing", DRAWINGS.values(), ids=DRAWINGS)
def test_any_search_can_be_drawn(drawing: Drawing, changes: dict[str, object]) -> None:
    content = png(drawing, made_up_search(12).model_copy(update=changes))
    assert content is None or content.startswith(b"\x89PNG")


@pytest.mark.parametrize("drawing", DRAWINGS.values(), ids=DRAWINGS)
def test_many_students_methods_and_single_epochs_can_be_drawn(drawing: Drawing) -> None:
    methods = ("none", "ab", "at", "crd", "dkd", "fitnet", "kd", "mgd")
    record = made_up_search(
        24, methods=methods, students=("resnet8", "vgg8"), epochs=1, grace_epochs=None
    )
    png(drawing, record)


def test_the_leading_curves_of_many_methods_are_named_within_the_picture() -> None:
    record = made_up_search(90, methods=tuple(CATALOGUE), grace_epochs=None)
    figure = drawn(learning_curves, record)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert any(text.startswith("control ") for text in words(figure))
    for text in axes.texts:
        box = text.get_window_extent()
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height, text.get_text()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_in_the_house_style_whatever_the_users_is(
    name: str, record: SearchRecord
) -> None:
    if name == "accuracy_by_teacher":
        record = made_up_search(20, teachers=("resnet20", "resnet56"))

    def shown() -> bytes:
        figure = draw(name, record)
        assert figure is not None
        file = io.BytesIO()
        figure.savefig(file, format="raw")
        return file.getvalue()

    usual = shown()
    users = {
        "font.size": 20.0,
        "lines.linewidth": 9.0,
        "axes.grid": False,
        "axes.facecolor": "black",
        "figure.facecolor": "black",
        "xtick.color": "red",
        "ytick.labelcolor": "red",
        "xtick.major.size": 30.0,
    }
    with mpl.rc_context(users):
        before = dict(mpl.rcParams)
        assert shown() == usual
        assert dict(mpl.rcParams) == before


def test_a_picture_is_none_before_there_is_anything_to_show() -> None:
    begun = made_up_search(3).model_copy(update={"trials": ()})
    assert all(draw(name, begun) is None for name in DRAWINGS)


def test_an_unknown_picture_is_told(record: SearchRecord) -> None:
    with pytest.raises(SearchError, match="no picture 'learning_curve'; did you mean 'learning_cu"):
        draw("learning_curve", record)
