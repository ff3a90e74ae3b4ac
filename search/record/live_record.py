"""The record of a search while it runs: an event takes the same time with ten thousand trials as
with ten."""

import json
from collections import Counter
from typing import Any

from search.record.record import SearchRecord, State, TrialRecord, gain_over, keep_control, place

# Before the name of a field of which a change has only what was added at its end.
ADDED = "+"


class LiveRecord:
    """A search's record that changes.

    Args:
        record: the search, as it is now.

    Attributes:
        head: the record without its trials.
        trials: by number.
        running: those that run, by number.
        states: number of trials in each state.
        best: the best trial so far, by what is ranked by.
    """

    def __init__(self, record: SearchRecord) -> None:
        self.head = self._told = record.model_copy(update={"trials": ()})
        self.trials: dict[int, TrialRecord] = {}
        self.running: dict[int, TrialRecord] = {}
        self.states: Counter[State] = Counter()
        self.best: TrialRecord | None = None
        self._controls: dict[str, TrialRecord] = {}
        self._whole: SearchRecord | None = None
        self._changes: list[dict[str, Any]] = []
        for trial in record.trials:
            self._take(trial)

    @property
    def record(self) -> SearchRecord:
        """The whole record; takes time for each trial, where something has changed."""
        if self._whole is None:
            trials = tuple(self.trials[number] for number in sorted(self.trials))
            self._whole = self.head.model_copy(update={"trials": trials})
        return self._whole

    @property
    def ended(self) -> int:
        """Number of trials that will not go on."""
        return len(self.trials) - self.states["running"] - self.states["interrupted"]

    def update(self, **fields: Any) -> None:
        """Changes what is known of the search itself."""
        self.head, self._whole = self.head.model_copy(update=fields), None

    def put(self, trial: TrialRecord) -> None:
        """Takes in what has become of a trial, or a new one."""
        before = self.trials.get(trial.number)
        if trial != before:
            self._changes.append(_change(before, trial))
            self._take(trial)

    def interrupt(self) -> None:
        """Notes that the search ends before its trials do."""
        for trial in list(self.running.values()):
            self.put(trial.model_copy(update={"state": "interrupted"}))
        self.update(state="interrupted")

    def gain(self, trial: TrialRecord) -> float | None:
        """See `SearchRecord.gain`."""
        return gain_over(self._controls.get(trial.student), trial)

    def changes(self) -> list[str]:
        """What has changed since the last call: JSON objects, in order."""
        changed = {
            name
            for name in SearchRecord.model_fields
            if getattr(self.head, name) != getattr(self._told, name)
        }
        changes, self._changes, self._told = self._changes, [], self.head
        if changed:
            changes.append({"search": self.head.model_dump(mode="json", include=changed)})
        return [json.dumps(change) for change in changes]

    def _take(self, trial: TrialRecord) -> None:
        before, self.trials[trial.number] = self.trials.get(trial.number), trial
        self._whole = None
        if before is not None:
            self.states[before.state] -= 1
        self.states[trial.state] += 1
        self.running.pop(trial.number, None)
        if trial.state == "running":
            self.running[trial.number] = trial
        if self.best is None or place(trial) < place(self.best):
            self.best = trial
        elif trial.number == self.best.number:
            self.best = min(self.trials.values(), key=place)
        keep_control(self._controls, trial)


def _change(before: TrialRecord | None, trial: TrialRecord) -> dict[str, Any]:
    """A trial's number, and those of its fields that differ."""
    if before is None:
        return {"trial": trial.number, **trial.model_dump(mode="json", exclude={"number"})}
    changed = {
        name for name in TrialRecord.model_fields if getattr(trial, name) != getattr(before, name)
    }
    added = {}
    for name in ("accuracies", "scores"):
        old, new = getattr(before, name), getattr(trial, name)
        if name in changed and new[: len(old)] == old:
            added[f"{ADDED}{name}"] = new[len(old) :]
            changed.remove(name)
    return {"trial": trial.number, **trial.model_dump(mode="json", include=changed), **added}
