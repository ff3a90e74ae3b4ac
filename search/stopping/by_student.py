"""Any rule for each student by itself: small networks are not stopped because large ones are
better, though they are cheaper."""

from collections.abc import Callable

from search.record.decisions import Verdict
from search.stopping.rule import StoppingRule


class ByStudent(StoppingRule):
    """A rule of its own for the trials of each student.

    Args:
        rule: makes one that has seen no trial.
        student_of: the student of a trial, by its number.
    """

    def __init__(self, rule: Callable[[], StoppingRule], student_of: Callable[[int], str]) -> None:
        self._rule, self._student_of = rule, student_of
        self._rules: dict[str, StoppingRule] = {}

    def add(self, trial: int, epoch: int, best_accuracy: float, accuracy: float) -> None:
        """See `StoppingRule`; it is told to the rule of the trial's student."""
        self._of(trial).add(trial, epoch, best_accuracy, accuracy)

    def judge(self, trial: int, epoch: int) -> Verdict | None:
        """See `StoppingRule`; the trial is compared with those of its student."""
        return self._of(trial).judge(trial, epoch)

    def _of(self, trial: int) -> StoppingRule:
        student = self._student_of(trial)
        if student not in self._rules:
            self._rules[student] = self._rule()
        return self._rules[student]
