"""Hyperparameter importance by functional analysis of variance (fANOVA, Hutter et al. 2014)."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import optuna

from search.experiment.schema import CONTROL, Experiment
from search.experiment.searched import Option
from search.experiment.space.point import IS_CONTROL, TEACHER, is_number, plain_name
from search.experiment.space.space import is_logarithmic
from search.record.record import SearchRecord, TrialRecord

_FEWEST_TRIALS = 8  # with fewer, fANOVA's regression forest fits noise
_MOST_OPTIONS = 6
MOST_TRIALS = 200
"""Of each group; fANOVA takes ten seconds for a thousand. More are sampled, evenly in time."""


@dataclass(frozen=True)
class Importance:
    """The importance of the settings in a group of trials.

    Args:
        group: `all trials`, or the methods of the trials.
        trials: the number of trials; of more than `MOST_TRIALS`, as many were compared.
        epoch: the epoch at which they are compared, which all of them reached.
        shares: the share of the accuracy's variance that each setting explains; they sum to 1.
    """

    group: str
    trials: int
    epoch: int
    shares: Mapping[str, float]


def importances(record: SearchRecord, most: int) -> list[Importance]:
    """The importance of the settings that all trials share, then of the settings of each method;
    of the first groups that have any.

    Trials are compared at the first epoch at which any may be stopped, which all of them reach.
    Only the best get further, and among these alone every setting would seem unimportant.
    """
    search, epochs = record.experiment.search, record.experiment.training.epochs
    epoch = search.rule.first_epoch(epochs) if search.rule else epochs
    reached = [t for t in record.trials if len(t.accuracies) >= epoch + t.epochs_on_top]
    groups: dict[str, list[TrialRecord]] = {"all trials": reached}
    for trial in reached:
        groups.setdefault(trial.methods, []).append(trial)
    found = []
    for group, trials in groups.items():
        step = max(1.0, len(trials) / MOST_TRIALS)
        sample = [trials[int(place * step)] for place in range(min(len(trials), MOST_TRIALS))]
        several = len(record.experiment.teachers) > 1
        points = [_settings(trial, several) for trial in sample]
        accuracies = [max(t.curve[: epoch + t.epochs_on_top]) for t in sample]
        shares = _shares(record.experiment, points, accuracies)
        if shares:
            found.append(Importance(group, len(trials), epoch, shares))
        if len(found) == most:
            break
    return found


def _settings(trial: TrialRecord, several_teachers: bool) -> dict[str, Option]:
    """A trial's settings; its methods count as one setting."""
    point = {plain_name(key): value for key, value in trial.point.items()}
    chosen = {key: value for key, value in point.items() if not key.startswith("objective.")}
    chosen.pop(IS_CONTROL, None)
    taught = {TEACHER: CONTROL} if several_teachers else {}  # of a control
    return {"method": trial.methods, **taught, **chosen}


def _shares(
    experiment: Experiment, points: list[dict[str, Option]], accuracies: list[float]
) -> dict[str, float]:
    """The importance of each setting, the largest first; empty if there is nothing to compare."""
    values = {
        name: _few([point[name] for point in points], accuracies)
        for name in (points[0] if points else ())
        if all(name in point for point in points)
    }
    varied = {name: column for name, column in values.items() if len(set(column)) > 1}
    if len(points) < _FEWEST_TRIALS or len(varied) < 2 or len(set(accuracies)) == 1:
        return {}
    distributions = {
        name: _distribution(column, is_logarithmic(experiment, name))
        for name, column in varied.items()
    }
    study = optuna.create_study(direction="maximize")
    for number, accuracy in enumerate(accuracies):
        study.add_trial(
            optuna.trial.create_trial(
                value=accuracy,
                params={name: column[number] for name, column in varied.items()},
                distributions=distributions,
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _few(values: list[Option], accuracies: list[float]) -> list[Option]:
    """A setting's values; of many options their places, by the mean accuracy of their trials.

    A tree sees options as a column each, and fANOVA adds over all combinations of the columns on
    which it splits: with the catalogue's methods for hours. By the means a tree that splits on one
    column finds what it would find on several (Breiman et al. 1984, section 4.2)."""
    if all(map(is_number, values)) or len(set(values)) <= _MOST_OPTIONS:
        return values
    of: dict[Option, list[float]] = {}
    for value, accuracy in zip(values, accuracies, strict=True):
        of.setdefault(value, []).append(accuracy)
    places = {value: place for place, value in enumerate(sorted(of, key=lambda v: fmean(of[v])))}
    return [places[value] for value in values]


def _distribution(values: list[Option], log: bool) -> optuna.distributions.BaseDistribution:
    """A distribution over the values that were tried."""
    numbers = list(filter(is_number, values))
    if len(numbers) < len(values):
        return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = float(min(numbers)), float(max(numbers))
    return optuna.distributions.FloatDistribution(low, high, log=log and low > 0)
