"""The rules of early stopping by their settings."""

from collections.abc import Callable

from search.experiment.schema import Experiment
from search.experiment.search_config import Asha, Hyperband, StoppingSettings
from search.stopping.by_student import ByStudent
from search.stopping.hyperband import Brackets
from search.stopping.median import RunningAverages
from search.stopping.rule import StoppingRule
from search.stopping.rungs import Rungs, rung_epochs

IN_WORDS = {"asha": "ASHA", "hyperband": "Hyperband", "median": "the median rule"}
"""The rules as a sentence names them."""


def rule_of(
    settings: StoppingSettings,
    *,
    epochs: int,
    student_of: Callable[[int], str] = lambda trial: "",
) -> StoppingRule:
    """A rule that has seen no trial.

    Args:
        settings: of the rule.
        epochs: the epochs of a whole trial, without those of preparatory stages on top.
        student_of: the student of a trial, by its number, where there are several.
    """
    if settings.among == "student":
        return ByStudent(lambda: _among_all(settings, epochs), student_of)
    return _among_all(settings, epochs)


def _among_all(settings: StoppingSettings, epochs: int) -> StoppingRule:
    if isinstance(settings, Asha):
        return Rungs(settings, epochs=epochs)
    if isinstance(settings, Hyperband):
        return Brackets(settings, epochs=epochs)
    return RunningAverages(settings, epochs=epochs)


def all_rungs(experiment: Experiment) -> list[int]:
    """The epochs of the rungs of all brackets; none where trials are compared otherwise."""
    rule = experiment.search.rule
    if isinstance(rule, Asha):
        return rung_epochs(rule.grace_epochs, rule.reduction, experiment.training.epochs)
    if isinstance(rule, Hyperband):
        first = Brackets(rule, epochs=experiment.training.epochs).brackets[0]
        return list(first.results)
    return []
