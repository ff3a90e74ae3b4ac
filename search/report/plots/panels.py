"""Which methods and settings get a panel in pictures that have one for each method."""

from search.experiment.schema import Option
from search.experiment.space.point import is_number, plain_name
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
        names = [plain_name(key) for key in trials[0].point if not key.startswith("objective.")]
        fields = []
        for name in names:
            values = [setting_of(trial, name) for trial in trials]
            if len(set(values)) > 1 and (not numeric or all(map(is_number, values))):
                fields.append(name)
        if len(fields) >= fewest_fields and len(trials) >= _FEWEST_TRIALS:
            panels[methods] = trials, fields
    return dict(list(panels.items())[:MOST_PANELS])


def setting_of(trial: TrialRecord, name: str) -> Option:
    """The value of a trial's setting; empty if it has none, like a control."""
    return next((value for key, value in trial.point.items() if plain_name(key) == name), "")
