"""How much each searched setting matters: functional analysis of variance, Hutter et al. 2014."""

from collections.abc import Mapping
from dataclasses import dataclass

import optuna

from search.experiment.schema import Experiment, Option
from search.experiment.space.point import is_number, plain_name
from search.experiment.space.space import is_logarithmic
from search.record.record import SearchRecord, TrialRecord

# With fewer trials a forest of regression trees fits noise.
_ENOUGH_TRIALS = 8


@dataclass(frozen=True)
class Importance:
    """What decided how good a group of trials was.

    Args:
        group: `all trials`, or the methods that they have in common.
        trials: how many there are.
        epoch: at which they are compared; all of them came to it.
        shares: by setting, of the variance of the accuracy; they sum to 1.
    """

    group: str
    trials: int
    epoch: int
    shares: Mapping[str, float]


def importances(record: SearchRecord) -> list[Importance]:
    """The importance of the settings that all trials have, then of those of each method.

    Trials are compared at the last epoch that each may reach, the first rung of early stopping:
    only the best ones come further, and among these alone every setting would look harmless.
    """
    search, epochs = record.experiment.search, record.experiment.training.epochs
    epoch = search.asha.grace_epochs if search.asha else epochs
    there = [trial for trial in record.trials if len(trial.accuracies) >= epoch]
    groups: dict[str, list[TrialRecord]] = {"all trials": there}
    for trial in there:
        groups.setdefault(trial.methods, []).append(trial)
    found = []
    for group, trials in groups.items():
        points = [_settings(trial) for trial in trials]
        shares = _shares(record.experiment, points, [max(t.accuracies[:epoch]) for t in trials])
        if shares:
            found.append(Importance(group, len(trials), epoch, shares))
    return found


def _settings(trial: TrialRecord) -> dict[str, Option]:
    """What was chosen for a trial; the methods of its slots as one setting."""
    point = {plain_name(key): value for key, value in trial.point.items()}
    chosen = {key: value for key, value in point.items() if not key.startswith("objective.")}
    chosen.pop("control", None)
    return {"method": trial.methods, **chosen}


def _shares(
    experiment: Experiment, points: list[dict[str, Option]], accuracies: list[float]
) -> dict[str, float]:
    """By setting, the most important first; empty where there is nothing to compare."""
    values = {
        name: [point[name] for point in points]
        for name in (points[0] if points else ())
        if all(name in point for point in points)
    }
    varied = {name: column for name, column in values.items() if len(set(column)) > 1}
    if len(points) < _ENOUGH_TRIALS or len(varied) < 2 or len(set(accuracies)) == 1:
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


def _distribution(values: list[Option], log: bool) -> optuna.distributions.BaseDistribution:
    """A distribution over what was tried."""
    if not all(map(is_number, values)):
        return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(map(float, values)), max(map(float, values))
    return optuna.distributions.FloatDistribution(low, high, log=log and low > 0)
