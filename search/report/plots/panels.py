"""Which methods and settings get a panel in pictures that have one for each method."""

from search.experiment.searched import Option
from search.experiment.space.point import IS_CONTROL, SLOT, is_number, plain_name
from search.leaderboard.ranking import rank
from search.record.record import SearchRecord, TrialRecord

MOST_PANELS = 8
"""The best methods get a panel; the others are left out."""

_FEWEST_TRIALS = 3  # in a panel


def panels_by_methods(
    record: SearchRecord, *, fewest_fields: int, numeric: bool = False
) -> dict[str, tuple[list[TrialRecord], list[str]]]:
    """The panels by methods, the best first: trials by rank, and the settings that vary among them.

    Args:
        record: the search.
        fewest_fields: methods with fewer varied settings get no panel.
        numeric: only settings that are numbers.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for trial in rank(record.trials):
        if trial.score is not None:
            groups.setdefault(trial.methods, []).append(trial)
    panels = {}
    for methods, trials in groups.items():
        fields = []
        for name in dict.fromkeys(plain_name(key) for trial in trials for key in trial.point):
            values = [setting_of(trial, name) for trial in trials if has_setting(trial, name)]
            is_choice = name != IS_CONTROL and not name.startswith(SLOT)
            if is_choice and len(set(values)) > 1 and (not numeric or all(map(is_number, values))):
                fields.append(name)
        if len(fields) >= fewest_fields and len(trials) >= _FEWEST_TRIALS:
            panels[methods] = trials, fields
    return dict(list(panels.items())[:MOST_PANELS])


def has_setting(trial: TrialRecord, name: str) -> bool:
    """Whether a trial has a setting; a momentum, for instance, only beside SGD."""
    return any(plain_name(key) == name for key in trial.point)


def setting_of(trial: TrialRecord, name: str) -> Option:
    """The value of a setting that a trial has."""
    return next(value for key, value in trial.point.items() if plain_name(key) == name)


def number_of(trial: TrialRecord, name: str) -> float:
    """The same of a setting that is a number."""
    value = setting_of(trial, name)
    assert is_number(value)
    return float(value)
