"""Which students are retrained by a confirmation, and with which seeds."""

from typing import Any

from search.experiment.schema import CONTROL, Confirm, Experiment
from search.experiment.space.point import TEACHER, Point, with_published
from search.experiment.space.trial_config import trial_config
from search.leaderboard.ranking import rank
from search.record.record import Confirmed, SearchRecord, TrialRecord
from search.session.retraining.retraining import Asked

# The baseline of the field, whatever the search tried.
_PUBLISHED = "kd"


def contenders(record: SearchRecord, top: int) -> tuple[Confirmed, ...]:
    """Who is trained again: the best finished trials, with the control and the published setting of
    each of their students, that with the teacher of the student's best trial. Equal settings stand
    in it once.

    Args:
        record: the search.
        top: how many trials, the controls not counted.

    Returns:
        They, with the runs that they have already; none where no trial with a method has finished.
    """
    known = {each.label: each for each in record.confirmed}
    configs = {
        trial.number: trial_config(record.experiment, trial.point) for trial in record.trials
    }
    chosen: dict[str, Confirmed] = {}

    def add(role: Any, point: Point, trial: TrialRecord | None) -> None:
        config = trial_config(record.experiment, point)
        if any(trial_config(record.experiment, each.point) == config for each in chosen.values()):
            return
        objective = " + ".join(map(str, config.objective)) or CONTROL
        networks = [config.student.label, *([point[TEACHER]] if TEACHER in point else [])]
        label = "-".join((_PUBLISHED, *networks)) if trial is None else str(trial.number)
        chosen[label] = Confirmed(
            label=label,
            role=role,
            trial=None if trial is None else trial.number,
            student=config.student.label,
            objective=objective,
            point=point,
            runs=known[label].runs if label in known else (),
        )

    finished = tuple(trial for trial in record.trials if trial.state == "finished")
    for trial in rank(finished):
        if len(chosen) < top and not trial.is_control:
            add("best", trial.point, trial)
    for example in {each.student: each for each in chosen.values()}.values():
        control = record.control_of(example.student)
        # With the learning rate of the control, where that is searched.
        point = with_published(
            example.point if control is None else control.point,
            _PUBLISHED,
            record.experiment.published,
            record.experiment.data.judge,
        )
        if TEACHER in example.point:  # which a control has not
            point[TEACHER] = example.point[TEACHER]
        config = trial_config(record.experiment, point)
        add(
            "published",
            point,
            next((t for t in record.trials if configs[t.number] == config), None),
        )
        if control is not None:
            add("control", control.point, control)
    return tuple(chosen.values())


def confirmation(record: SearchRecord, asked: Confirm) -> Asked:
    """What a confirmation trains again."""
    seeds = fresh_seeds(record.experiment, asked.seeds)
    return Asked(contenders(record, asked.top), seeds, "confirm")


def fresh_seeds(experiment: Experiment, count: int) -> tuple[int, ...]:
    """Seeds that the search did not use; the same ones whenever they are asked for."""
    return tuple((experiment.seed + 1 + number) % 2**32 for number in range(count))
