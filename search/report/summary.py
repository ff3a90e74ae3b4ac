"""The summary of a search, which is the description of its run in MLflow."""

from search.experiment.schema import CONTROL
from search.leaderboard.formats import as_markdown
from search.leaderboard.ranking import by_test_accuracy, leaderboard, rank, searches_teacher
from search.leaderboard.teacher_lead import (
    gap_closed,
    no_method_won,
    teacher_caution,
    teacher_lead,
)
from search.record.class_results import WORST_CLASSES, about_class_table, class_table
from search.record.record import Confirmed, SearchRecord, TrialRecord
from search.record.wording import (
    WINNERS_CURSE,
    gain_in_words,
    kind_of,
    percent,
    points,
    shortened,
    spread,
)
from search.report.time_by_part import time_table

SUMMARY, TABLE = "summary.md", "leaderboard.json"
"""The names of the report's files."""

# A description in MLflow has at most 8,000 characters, including the links to the pictures.
_MOST_ROWS = 12
_LONGEST_TABLE = 5500  # characters, with those of the tables of classes and times
_LONGEST_CLASS = 32  # characters


def summary(record: SearchRecord) -> str:
    """A few sentences of Markdown, with the head of the leaderboard."""
    ranked = [trial for trial in rank(record.trials) if trial.score is not None]
    parts = [f"{'**Still running.** ' if record.state == 'running' else ''}{_states(record)}"]
    if ranked:
        parts.insert(0, _best(record, ranked[0]))
    confirmed = [each for each in by_test_accuracy(record.confirmed) if each.is_confirmed]
    if confirmed:
        parts.insert(0, _confirmed(record, confirmed[0]))
    if verdict := no_method_won(record):
        parts.insert(0, f"**{verdict[0].upper()}{verdict[1:]}.**")
    if caution := teacher_caution(record):
        parts.append(f"**Caution:** {caution}")
    times, classes = time_table(record), _classes(record)
    room = _LONGEST_TABLE - len(times) - len(classes)
    rows = leaderboard(record)[:_MOST_ROWS]
    while len(table := _spaced(as_markdown(record, rows))) > room and rows:
        rows = rows[:-1]
    parts.append(table)
    if len(rows) <= len(record.trials):
        parts.append(
            f"`kdsearch leaderboard {record.name}` and the artifact {TABLE} show all "
            f"{len(record.trials)} trials."
        )
    if classes:
        parts.append(classes)
    if times:
        parts.append(_spaced(times))
    return "\n\n".join(parts)


def _spaced(table: str) -> str:
    """Adds space between the columns of a Markdown table, which MLflow's pages leave out."""
    head, rule, *rows = table.strip().splitlines()
    wide = [line.replace(" |", "&nbsp;&nbsp; |") for line in (head, *rows)]
    return "\n".join((wide[0], rule, *wide[1:]))


def _best(record: SearchRecord, best: TrialRecord) -> str:
    """The accuracy of the best trial, or what else is ranked by, beside control and teacher."""
    experiment, kind = record.experiment, kind_of(record.metric)
    unfinished = "" if best.state == "finished" else f" ({best.state} at epoch {best.epochs_done})"
    text = (
        f"**{best.student}** {_taught(record, best)} reaches **{percent(best.score)} %**{kind} on "
        f"the held-out images of {experiment.data.name} (trial {best.number}{unfinished})."
    )
    control = record.control_of(best.student)
    label = record.teacher_of(best) or record.best_teacher
    teacher = record.teacher_scores.get(label)
    if control is not None and control.number == best.number:
        pass  # it is its own control
    elif control is None or control.score is None:
        text += " Its control has not finished, so the gain is not known yet."
    else:
        text += f" Without distillation it reaches {percent(control.score)} %"
        gain = record.gain(best)
        text += "." if gain is None else f", so the gain is {points(gain)} percentage points."
    if teacher is not None:
        best_of = best.is_control and searches_teacher(record)
        who = f"The best teacher, {label}," if best_of else f"The teacher {label}"
        text += f" {who} reaches {percent(teacher)} %"
        share, lead = gap_closed(record, best), teacher_lead(record, best.student, label)
        if share is not None:
            text += f"; the student closes {100 * share:.0f} % of the gap"
        elif lead is not None and lead.is_noise:
            text += ", which differs from the control by no more than noise"
        text += "."
    return text + " Changing the seed alone shifts accuracy by a few tenths of a point."


def _classes(record: SearchRecord) -> str:
    """What the best student does with each class; empty where that was not measured."""
    found = record.by_class
    if found is None:
        return ""
    balanced, number = found.balanced_accuracy, found.num_classes
    words = about_class_table(found.images, "held-out", balanced, number, WORST_CLASSES)
    short = [
        each.model_copy(update={"name": shortened(each.name, _LONGEST_CLASS)})
        for each in found.classes
    ]
    return f"**By class, {found}.** {words}\n\n{_spaced(class_table(short, WORST_CLASSES))}"


def _taught(record: SearchRecord, student: TrialRecord | Confirmed) -> str:
    if student.objective == CONTROL:
        return "trained without a teacher (the control)"
    source = f" from **{record.teacher_of(student)}**" if searches_teacher(record) else ""
    return f"with **{student.objective}**{source}"


def _confirmed(record: SearchRecord, best: Confirmed) -> str:
    """The test accuracy, or what else is ranked by, and gain of the best confirmed student."""
    reached = spread(best.test_score, best.test_score_deviation)
    gain = gain_in_words(record.confirmed_gain(best))
    return (
        f"Trained again with {len(best.test_accuracies)} fresh seeds, **{best.student}** "
        f"{_taught(record, best)} reaches **{reached} %**{kind_of(record.metric)} on the "
        f"test split"
        + (f"; gain over the control, in percentage points: {gain}. " if gain else ". ")
        + WINNERS_CURSE
    )


def _states(record: SearchRecord) -> str:
    """The number of trials in each state, the epochs that stopping saved, and the total cost."""
    trials = record.trials
    states = ("finished", "stopped", "failed", "interrupted", "running")
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    text = f"Of {record.experiment.search.trials} trials: {words or 'none has started'}."
    stopped = [trial for trial in trials if trial.state == "stopped"]
    if stopped:
        saved = sum(trial.epochs - trial.epochs_done for trial in stopped)
        budget = sum(trial.epochs for trial in trials)
        text += (
            f" Early stopping saved {saved:,} of {budget:,} epochs ({100 * saved / budget:.0f} %)."
        )
    text += f" Cost: {record.cost}."
    return text + (f" The search ended early: {record.ended}." if record.ended else "")
