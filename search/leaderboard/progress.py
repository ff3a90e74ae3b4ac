"""How far a search is, in one line."""

from search.leaderboard.ranking import rank
from search.record.record import SearchRecord
from search.record.wording import percent


def how_far(record: SearchRecord) -> str:
    """The number of trials in each state, and the best accuracy so far."""

    def count(state: str) -> int:
        return sum(trial.state == state for trial in record.trials)

    states = [f"{count(state)} {state}" for state in ("running", "stopped", "finished")]
    states += [f"{count(state)} {state}" for state in ("failed", "interrupted") if count(state)]
    words = f"{', '.join(states)} of {record.experiment.search.trials}"
    best = next((t for t in rank(record.trials) if t.heldout_accuracy is not None), None)
    if best is None:
        return words
    return f"{words} | best {percent(best.heldout_accuracy)} % (trial {best.number})"
