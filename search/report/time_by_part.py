"""Where the time of training went: a table by student."""

from collections import Counter

from search.record.record import SearchRecord

_MOST_STUDENTS = 5

# In the order of an epoch; parts of other versions follow.
_PARTS = ("decoding", "augmenting", "teacher", "student", "evaluation", "checkpoint")


def seconds_by_part(record: SearchRecord) -> dict[str, dict[str, float]]:
    """The mean seconds of an epoch by student and part, over all trials that know of them.

    Students that took most time come first.
    """
    spent: dict[str, Counter[str]] = {}
    epochs: Counter[str] = Counter()
    for trial in record.trials:
        if trial.seconds_by_part:
            spent.setdefault(trial.student, Counter()).update(trial.seconds_by_part)
            epochs[trial.student] += trial.epochs_done
    students = sorted(spent, key=lambda student: -spent[student].total())
    return {
        student: {part: spent[student][part] / epochs[student] for part in spent[student]}
        for student in students
    }


def time_table(record: SearchRecord) -> str:
    """Seconds of an epoch by part, and their shares, as a Markdown table; empty if none is known.

    The parts are those of `EpochReport.seconds_by_part`.
    """
    students = list(seconds_by_part(record).items())[:_MOST_STUDENTS]
    known = dict.fromkeys(_PARTS) | {part: None for _, row in students for part in row}
    parts = [part for part in known if any(row.get(part) for _, row in students)]
    if not parts:
        return ""
    head = ["seconds of an epoch", *parts, "together"]
    rows = [
        [
            student,
            *(_cell(row.get(part, 0.0), sum(row.values())) for part in parts),
            f"{sum(row.values()):.3g}",
        ]
        for student, row in students
    ]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(seconds: float, together: float) -> str:
    return f"{seconds:.2g} ({100 * seconds / together:.0f} %)" if seconds else ""
