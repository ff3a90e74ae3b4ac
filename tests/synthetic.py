"""A made-up search, its learning curves by a formula: what shows searches needs no training."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from kdcore import TermConfig
from kdcore.contract.searched import Choice, Span
from kdcore.data.image_data import ImageData
from kdcore.methods import CATALOGUE
from kdcore.networks.cost import NetworkCost
from kdcore.training.evaluation import Evaluation
from kdcore.training.report import EpochReport
from search.experiment.reading import parse_experiment
from search.experiment.schema import CONTROL, Experiment
from search.experiment.space.point import IS_CONTROL, STUDENT, TEACHER, Point
from search.experiment.space.space import published_trials
from search.record.class_results import StudentClasses, kept_of
from search.record.networks import ReadyTeacher
from search.record.record import ConfirmationRun, Confirmed, SearchRecord, TrialRecord
from search.report.reporter import Reporter
from search.stopping.replay import simulate
from search.stopping.rungs import Rungs
from search.tracking.tracker import Tracker

SMALL: Mapping[str, Any] = {
    "name": "task",
    "data": {"name": "digits"},
    "teacher": {"backbone": "resnet20", "training": {"epochs": 2}},
    "student": "resnet8",
    "objective": [["none", "kd"]],
    "training": {"epochs": 4},
    "search": {"trials": 4},
}
"""The keys of a small experiment."""

_PARAMETERS = {"resnet8": 77_754, "vgg8": 3_963_000, "mobilenetv2": 815_000, "resnet20": 272_000}


def finished_search(
    trials: Iterable[TrialRecord], experiment: Mapping[str, Any] | None = None, **changes: Any
) -> SearchRecord:
    """The record of a small search that has finished.

    Args:
        trials: its trials, as a test wants them.
        experiment: keys that differ from `SMALL`.
        changes: fields of the record.
    """
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "name": "task-1",
        "experiment": parse_experiment({**SMALL, **(experiment or {})}, ""),
        "state": "finished",
        "tracking_uri": "sqlite:///x.db",
        "started": now,
        "updated": now,
        "trials": tuple(trials),
    }
    return SearchRecord(**values | changes)


def confirmed_of(trial: TrialRecord, runs: Iterable[ConfirmationRun]) -> Confirmed:
    """A trial that was trained again, with these runs."""
    return Confirmed(
        label=str(trial.number),
        role="control" if trial.is_control else "best",
        trial=trial.number,
        student=trial.student,
        objective=trial.objective,
        point=trial.point,
        runs=tuple(runs),
    )


def made_up_search(
    trials: int = 60,
    *,
    methods: Sequence[str] = ("none", "kd", "at", "rkd", "dkd", "fitnet"),
    students: Sequence[str] = ("resnet8",),
    teachers: Sequence[str] = ("resnet20",),
    epochs: int = 30,
    grace_epochs: int | None = 4,
    name: str = "made-up-1",
    **changes: Any,
) -> SearchRecord:
    """A search that has ended; the same arguments give the same one."""
    taught = [{"backbone": teacher, "training": {"epochs": 2}} for teacher in teachers]
    experiment = parse_experiment(
        {
            "name": "made-up",
            "data": {"name": "digits"},
            "teacher": taught if len(teachers) > 1 else taught[0],
            "student": list(students) if len(students) > 1 else students[0],
            "objective": [list(methods)],
            "training": {"epochs": epochs},
            "search": {
                "trials": trials,
                "asha": {"grace_epochs": grace_epochs, "reduction": 3} if grace_epochs else None,
            },
        },
        "",
    )
    chance = random.Random(7)
    points = _points(experiment, trials, chance)
    curves = {number: _curve(point, epochs, chance) for number, point in enumerate(points)}
    ran = dict.fromkeys(curves, epochs)
    if experiment.search.asha is not None:
        rungs = Rungs(experiment.search.asha, epochs=epochs)
        ran = simulate(curves, rungs, slots=4, spared=range(len(students)))
    made = [
        _trial(number, experiment, point, curves[number][: ran[number]])
        for number, point in enumerate(points)
    ]
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    values: dict[str, Any] = {
        "name": name,
        "experiment": experiment,
        "state": "finished",
        "teacher": "teachers/x",
        "teacher_metrics": {"heldout_accuracy": 0.968, "heldout_loss": 0.1},
        "other_teachers": {
            teacher: ReadyTeacher(
                folder=f"teachers/{teacher}",
                metrics={"heldout_accuracy": 0.968 + 0.004 * place, "heldout_loss": 0.1},
            )
            for place, teacher in enumerate(teachers[1:], start=1)
        },
        "student_costs": {
            student: NetworkCost(
                _PARAMETERS[student], 10**6, 0.3 + _PARAMETERS[student] / 2e6, 2.0, "CPU", 1
            )
            for student in students
        },
        "tracking_uri": "sqlite:///x.db",
        "started": now,
        "updated": now,
        "seconds": 1800.0,
        "device_seconds": 3600.0,
        "trials": tuple(made),
    }
    return SearchRecord(**values | changes)


def made_up_evaluation(num_classes: int, images: int = 3000) -> Evaluation:
    """Made-up predictions; the last class has no images, the first ones are found most often."""
    draw = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(0, num_classes - 1, (images,), generator=draw)
    others = torch.randint(0, num_classes, (images,), generator=draw)
    right = torch.rand(images, generator=draw) < 0.95 - 0.5 * labels / num_classes
    return Evaluation(labels, torch.where(right, labels, others), num_classes, 1.0, None)


def made_up_classes(num_classes: int, **changes: Any) -> StudentClasses:
    """What a record keeps of `made_up_evaluation`.

    Args:
        num_classes: K.
        changes: fields that differ from those of trial 5 with kd.
    """
    found = made_up_evaluation(num_classes)
    classes, mistakes = kept_of(found, [f"class {number}" for number in range(num_classes)])
    values: dict[str, Any] = {
        "label": "5",
        "trial": 5,
        "seed": None,
        "student": "resnet8",
        "objective": "kd",
        "checkpoint": "searches/made-up-1/checkpoints/trial_005",
        "epoch": 3,
        "images": len(found.labels),
        "balanced_accuracy": found.balanced_accuracy,
        "num_classes": num_classes,
        "classes": classes,
        "mistakes": mistakes,
    }
    return StudentClasses(**values | changes)


def by_balanced_accuracy(record: SearchRecord) -> SearchRecord:
    """The same search ranked by made-up balanced accuracies, which are lower, in another order, and
    best at other epochs."""

    def balanced(trial: TrialRecord) -> TrialRecord:
        lower = 0.1 + 0.02 * (trial.number * 7 % 5)
        scores = [
            round(accuracy * (1 - lower) - 0.01 * (epoch % 2), 4)
            for epoch, accuracy in enumerate(trial.accuracies)
        ]
        best = scores.index(max(scores)) if scores else None
        changes: dict[str, Any] = {"scores": tuple(scores)}
        if best is not None:
            changes["heldout_accuracy"] = trial.accuracies[best]
            changes["heldout_balanced_accuracy"] = scores[best]
            changes["best_epoch"] = best + 1
        return trial.model_copy(update=changes)

    search = record.experiment.search.model_copy(update={"metric": "balanced_accuracy"})
    changes = {
        "experiment": record.experiment.model_copy(update={"search": search}),
        "trials": tuple(map(balanced, record.trials)),
        "teacher_metrics": {**record.teacher_metrics, "heldout_balanced_accuracy": 0.87},
    }
    return record.model_copy(update=changes)


def _points(experiment: Experiment, trials: int, chance: random.Random) -> list[Point]:
    """The controls, the published settings, then random ones."""
    students, (methods,) = experiment.students, experiment.objective
    candidates = [method for method in methods if method != CONTROL]
    points: list[Point] = []
    published = published_trials(experiment)
    for number in range(trials):
        student = students[number] if number < len(students) else students[0]
        if number not in published and number >= len(students):
            student = chance.choice(students)
        point: Point = {STUDENT: student} if len(students) > 1 else {}
        if number < len(students):
            points.append({IS_CONTROL: True, "objective.1": CONTROL} | point)
            continue
        known = number in published
        method, teacher = "", ""
        if known:  # each method with the first teacher, then the first with the others
            place = number - published.start
            method = candidates[place if place < len(candidates) else 0]
            teacher = experiment.teachers[max(0, place - len(candidates) + 1)]
        method = method or chance.choice(candidates)
        if len(experiment.teachers) > 1:
            point[TEACHER] = teacher or chance.choice(experiment.teachers)
        point["objective.1"] = method
        params = CATALOGUE[method].Params
        for name, mark in params.searched().items():
            value: Any = getattr(params(), name)
            if not known and isinstance(mark, Choice):
                value = chance.choice(mark.options)
            elif not known and isinstance(mark, Span):
                share = chance.random()
                value = mark.low + share * (mark.high - mark.low)
                if mark.log:
                    value = mark.low * (mark.high / mark.low) ** share
            elif not isinstance(mark, Choice | Span):
                value = chance.choice(["all", "stage2:stage2", "stage3:stage3"])
            point[f"{method}.{name}"] = value
        points.append(point)
    return points


def _curve(point: Point, epochs: int, chance: random.Random) -> list[float]:
    """Held-out accuracies that rise to a level of the method's own, best in the middle of its
    range of weights."""
    method = point["objective.1"]
    level = 0.95 + 0.004 * (sum(map(ord, method)) % 7)
    if method == CONTROL:
        level = 0.952
    level += 0.002 * (sum(map(ord, point.get(TEACHER, ""))) % 5)
    weight = point.get(f"{method}.weight")
    if weight is not None:
        mark = CATALOGUE[method].Params.searched()["weight"]
        assert isinstance(mark, Span)
        share = math.log(weight / mark.low) / math.log(mark.high / mark.low)
        level -= 0.25 * abs(share - 0.6) ** 2.5
    slowness = epochs / 8
    return [
        round(max(0.1, level * (1 - 0.9 * math.exp(-e / slowness)) - 0.01 * chance.random()), 4)
        for e in range(1, epochs + 1)
    ]


def _trial(number: int, experiment: Experiment, point: Point, curve: list[float]) -> TrialRecord:
    epochs, method = experiment.training.epochs, point["objective.1"]
    objective = CONTROL
    if method != CONTROL:
        prefix = f"{method}."
        params = {k.removeprefix(prefix): v for k, v in point.items() if k.startswith(prefix)}
        objective = str(TermConfig.model_validate({"method": method, "params": params}))
    best = list(accumulate(curve, max))
    return TrialRecord(
        number=number,
        student=point.get(STUDENT, experiment.students[0]),
        point=point,
        objective=objective,
        state="finished" if len(curve) == epochs else "stopped",
        epochs_done=len(curve),
        accuracies=tuple(curve),
        epochs=epochs,
        heldout_accuracy=best[-1],
        heldout_loss=1 - best[-1],
        best_epoch=curve.index(best[-1]) + 1,
        train_seconds=2.0 * len(curve),
        checkpoint=f"searches/made-up-1/checkpoints/trial_{number:03d}",
    )


def log_search(record: SearchRecord, data: ImageData, folder: Path) -> SearchRecord:
    """Tells MLflow of a search as a launch does, and has its report made; returns the record with
    MLflow's ids.

    Args:
        record: of a search that has ended.
        data: that it could have been on.
        folder: for what waits for MLflow, the report, and artifacts.
    """
    tracker = Tracker(record.tracking_uri, folder / "artifacts", folder / "x.jsonl", record, data)
    tracker.open()
    tracker.start_search(record, "name: made-up\n", {"seed": "0"})
    tracker.log_teacher("resnet20", [], record.teacher_metrics)
    for trial in record.trials:
        so_far = record.model_copy(update={"trials": record.trials[: trial.number + 1]})
        cost = record.student_costs.get(trial.student)
        tracker.start_trial(trial, record.method_names(trial), {"student": trial.student}, cost)
        for epoch, accuracy in enumerate(trial.accuracies, start=1):
            best = max(trial.accuracies[:epoch])
            report = EpochReport(
                epoch=epoch,
                epochs=trial.epochs,
                train_loss=1 - accuracy,
                train_terms={"cross_entropy": 1 - accuracy},
                train_accuracy=accuracy,
                heldout_accuracy=accuracy,
                heldout_loss=1 - accuracy,
                best_heldout_accuracy=best,
                best_epoch=trial.accuracies.index(best) + 1,
                learning_rate=0.1,
                epoch_seconds=2.0,
            )
            tracker.log_epoch(trial.number, report, so_far.gain(trial))
        tracker.end_trial(trial)
    reporter = Reporter(folder / "report", lambda: tracker.log_report(folder / "report"))
    reporter.finish(record)
    tracker.end_search(record)
    assert tracker.close() == 0
    return record.model_copy(update=tracker.ids)
