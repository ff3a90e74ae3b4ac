"""The summary of a search, which is the description of its run in MLflow."""

import math
import statistics
from fractions import Fraction

from search.leaderboard.formats import as_markdown
from search.leaderboard.ranking import by_test_accuracy, leaderboard, rank
from search.record.record import Confirmed, SearchRecord, TrialRecord
from search.record.wording import WINNERS_CURSE, gain_in_words, percent, points, spread

SUMMARY, TABLE = "summary.md", "leaderboard.json"
"""The names of the report's files."""

# A description in MLflow has at most 8,000 characters, including the links to the pictures.
_MOST_ROWS = 12
_LONGEST_TABLE = 5500  # characters

# Twice ImageNet's training part. Shares of fewer images are exact in float64.
_MOST_IMAGES = 2_500_000


def summary(record: SearchRecord) -> str:
    """A few sentences of Markdown, with the head of the leaderboard."""
    ranked = [trial for trial in rank(record.trials) if trial.heldout_accuracy is not None]
    parts = [f"{'**Still running.** ' if record.state == 'running' else ''}{_states(record)}"]
    if ranked:
        parts.insert(0, _best(record, ranked[0]))
    confirmed = [each for each in by_test_accuracy(record.confirmed) if each.is_confirmed]
    if confirmed:
        parts.insert(0, _confirmed(record, confirmed[0]))
    rows = leaderboard(record)[:_MOST_ROWS]
    while len(table := _spaced(as_markdown(record, rows))) > _LONGEST_TABLE:
        rows = rows[:-1]
    parts.append(table)
    if len(rows) <= len(record.trials):
        parts.append(
            f"`kdsearch leaderboard {record.name}` and the artifact {TABLE} show all "
            f"{len(record.trials)} trials."
        )
    return "\n\n".join(parts)


def _spaced(table: str) -> str:
    """Adds space between the columns of a Markdown table, which MLflow's pages leave out."""
    head, rule, *rows = table.strip().splitlines()
    wide = [line.replace(" |", "&nbsp;&nbsp; |") for line in (head, *rows)]
    return "\n".join((wide[0], rule, *wide[1:]))


def _best(record: SearchRecord, best: TrialRecord) -> str:
    """The accuracy of the best trial, compared with control and teacher."""
    experiment = record.experiment
    unfinished = "" if best.state == "finished" else f" ({best.state} at epoch {best.epochs_done})"
    text = (
        f"**{best.student}** with **{best.objective}** reaches **{percent(best.heldout_accuracy)} "
        f"%** on the held-out images of {experiment.data.name} (trial {best.number}{unfinished})."
    )
    control = record.control_of(best.student)
    teacher = record.teacher_metrics.get("heldout_accuracy")
    if control is None or control.heldout_accuracy is None:
        text += " Its control has not finished, so the gain is not known yet."
    else:
        text += f" Without distillation it reaches {percent(control.heldout_accuracy)} %"
        gain = record.gain(best)
        text += "." if gain is None else f", so the gain is {points(gain)} percentage points."
    if teacher is not None:
        text += f" The teacher {experiment.teacher.backbone} reaches {percent(teacher)} %"
        share = gap_closed(record, best)
        if share is not None:
            text += f"; the student closes {100 * share:.0f} % of the gap"
        elif _lead_is_noise(record, best.student):
            text += ", which differs from the control by no more than noise"
        text += "."
    return text + " Changing the seed alone shifts accuracy by a few tenths of a point."


def _confirmed(record: SearchRecord, best: Confirmed) -> str:
    """The test accuracy and gain of the best confirmed student."""
    gain = gain_in_words(record.confirmed_gain(best))
    return (
        f"Trained again with {len(best.test_accuracies)} fresh seeds, **{best.student}** with "
        f"**{best.objective}** reaches **{spread(best.test_accuracy, best.test_deviation)} %** on "
        f"the test split"
        + (f"; gain over the control, in percentage points: {gain}. " if gain else ". ")
        + WINNERS_CURSE
    )


def gap_closed(record: SearchRecord, trial: TrialRecord) -> float | None:
    """A trial's gain as a share of the teacher's lead over the control.

    None if that lead is no more than noise or less than nothing, or while there is no gain.
    """
    gain, lead = record.gain(trial), _teachers_lead(record, trial.student)
    if gain is None or lead is None or lead <= 0 or _lead_is_noise(record, trial.student):
        return None
    return gain / lead


def _teachers_lead(record: SearchRecord, student: str) -> float | None:
    """The teacher's held-out accuracy minus that of a student's control."""
    teacher, control = record.teacher_metrics.get("heldout_accuracy"), record.control_of(student)
    if teacher is None or control is None or control.heldout_accuracy is None:
        return None
    return teacher - control.heldout_accuracy


def _lead_is_noise(record: SearchRecord, student: str) -> bool:
    """Whether the teacher and a student's control differ by no more than two standard errors.

    Those of two shares of the same number of images, or of the control's confirmed seeds where
    these spread more.
    """
    lead, control = _teachers_lead(record, student), record.control_of(student)
    if lead is None or control is None or control.heldout_accuracy is None:
        return False
    accuracies = control.heldout_accuracy, control.heldout_accuracy + lead
    variance = sum(share * (1 - share) for share in accuracies) / heldout_images(record)
    for each in record.confirmed:
        seeds = [run.heldout_accuracy for run in each.runs if run.heldout_accuracy is not None]
        if each.role == "control" and each.student == student and len(seeds) >= 2:
            variance = max(variance, statistics.variance(seeds))
    return abs(lead) <= 2 * math.sqrt(variance)


def heldout_images(record: SearchRecord) -> int:
    """How many images are held out, or a divisor of that, so that noise is rather overestimated.

    The record does not say. But each accuracy is a share of them: their least common denominator
    divides their number, and with a few different accuracies it is the number.
    """
    known = {trial.heldout_accuracy for trial in record.trials}
    known.add(record.teacher_metrics.get("heldout_accuracy"))
    denominator = 1
    for accuracy in sorted(each for each in known if each is not None):
        part = Fraction(accuracy).limit_denominator(_MOST_IMAGES).denominator
        together = math.lcm(denominator, part)
        if together <= _MOST_IMAGES:
            denominator = together
    return denominator


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
