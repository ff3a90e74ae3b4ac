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
    rule, epochs = experiment.search.rule, experiment.training.epochs
    if isinstance(rule, Asha):
        return rung_epochs(rule.first_epoch(epochs), rule.reduction, epochs)
    if isinstance(rule, Hyperband):
        first = Brackets(rule, epochs=epochs).brackets[0]
        return list(first.results)
    return []


def stopping_in_words(experiment: Experiment) -> str:
    """From when a trial may be stopped early, and in comparison with which others."""
    rule = experiment.search.rule
    if rule is None:
        return "no trial is stopped early"
    first = rule.first_epoch(experiment.training.epochs)
    words = f"{IN_WORDS[experiment.search.stopping]} may stop a trial from epoch {first} on"
    if len(experiment.students) > 1:
        of = "its student" if rule.among == "student" else "all students"
        words += f", compared with those of {of}"
    return words
