"""How far a search is, in one line."""

from collections import Counter

from search.leaderboard.ranking import place
from search.record.record import SearchRecord
from search.record.wording import percent


def how_far(record: SearchRecord) -> str:
    """The number of trials in each state, and the best accuracy so far; told again and again while
    a search runs, so without ranking all of them."""
    counts: Counter[str] = Counter(trial.state for trial in record.trials)
    states = [f"{counts[state]} {state}" for state in ("running", "stopped", "finished")]
    states += [f"{counts[state]} {state}" for state in ("failed", "interrupted") if counts[state]]
    words = f"{', '.join(states)} of {record.experiment.search.trials}"
    best = min(record.trials, key=place, default=None)
    if best is None or best.heldout_accuracy is None:
        return words
    return f"{words} | best {percent(best.heldout_accuracy)} % (trial {best.number})"
