"""How far a search is, in one line."""

from search.record.live_record import LiveRecord
from search.record.record import SearchRecord
from search.record.wording import percent_of


def how_far(search: LiveRecord | SearchRecord) -> str:
    """The number of trials in each state, and what the best has reached so far."""
    live = LiveRecord(search) if isinstance(search, SearchRecord) else search
    counts = live.states
    states = [f"{counts[state]} {state}" for state in ("running", "stopped", "finished")]
    states += [f"{counts[state]} {state}" for state in ("failed", "interrupted") if counts[state]]
    words = f"{', '.join(states)} of {live.head.experiment.search.trials}"
    if live.best is None or live.best.score is None:
        return words
    which = f"trial {live.best.number}{', the control' if live.best.is_control else ''}"
    if len(live.head.experiment.teachers) > 1 and (teacher := live.head.teacher_of(live.best)):
        which += f", from {teacher}"
    return f"{words} | best {percent_of(live.head.metric, live.best.score)} ({which})"
