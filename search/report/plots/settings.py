"""TODO-DOC"""

from search.experiment.schema import Option
from search.experiment.space.point import is_number, plain_name
from search.leaderboard.ranking import rank
from search.record.record import SearchRecord, TrialRecord

# Pictures with a panel for each method show so many of them, the best ones.
_MOST_PANELS = 8
_FEWEST_TRIALS = 3


def panels_by_methods(
    record: SearchRecord, *, fewest_fields: int, numeric: bool = False
) -> dict[str, tuple[list[TrialRecord], list[str]]]:
    """By methods, the best first: their trials by rank, and those of their settings that differ."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in rank(record.trials):
        if trial.heldout_accuracy is not None:
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
    return dict(list(panels.items())[:_MOST_PANELS])


def setting_of(trial: TrialRecord, name: str) -> Option:
    """A trial's choice; a control's point lacks some that the others have."""
    return next((value for key, value in trial.point.items() if plain_name(key) == name), "")
