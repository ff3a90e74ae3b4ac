"""Has the teachers of a search trained or loaded, one after the other, before its trials start."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group

from kdcore.networks.classifier import ClassifierCard
from kdcore.training.report import EpochReport
from search.cluster.machines import cores_of_largest
from search.errors import SearchFailedError
from search.experiment.schema import Resources
from search.record.live_record import LiveRecord
from search.record.networks import ReadyTeacher
from search.record.storage import Storage
from search.record.wording import percent_of
from search.session.live_display import LiveDisplay
from search.session.preflight import Prepared
from search.session.preparation import train_teacher
from search.session.worker_group import bundles, in_bundle
from search.tracking.tracker import Tracker


def prepare_teachers(
    prepared: Prepared,
    search: LiveRecord,
    storage: Storage,
    tracker: Tracker,
    progress: LiveDisplay,
    write: Callable[[], None],
) -> None:
    """Puts all teachers in place; the record has each as soon as it is ready.

    Args:
        prepared: what is searched.
        search: the record.
        storage: where teachers are kept.
        tracker: gets their scores and epochs.
        progress: says how far they are.
        write: writes the record.

    Raises:
        SearchFailedError: one failed.
    """
    first, *others = prepared.experiment.teachers
    for label in (first, *others):
        planned = prepared.teachers[label]
        reports: list[EpochReport] = []
        if planned.ready and storage.local is not None:
            progress.say(f"teacher {label}: found")
        else:
            progress.say(f"teacher {label}: getting it ready")
            reports = _trained(prepared, label, search, storage, progress)
        folder = f"teachers/{planned.folder.name}"
        card = storage.read(f"{folder}/teacher.json")
        metrics = ClassifierCard.model_validate_json(card).metrics
        if label == first:
            search.update(teacher=folder, teacher_metrics=metrics)
        else:
            ready = ReadyTeacher(folder=folder, metrics=metrics)
            search.update(other_teachers={**search.head.other_teachers, label: ready})
        score = search.head.teacher_scores.get(label)
        reached = percent_of(search.head.metric, score)
        if score is None:  # of an earlier version, which knows accuracies alone
            reached = percent_of("accuracy", metrics["heldout_accuracy"])
        progress.say(f"teacher {label}: {_split(search)} {reached}")
        members = prepared.experiment.members(label).values()
        if len(members) > 1 or any(each.assistants for each in members):
            reports = []  # of several trainings are no curve
        tracker.log_teacher(label, reports, metrics, alone=not others)
        if others:
            write()
    if others:
        best = search.head.best_teacher
        tracker.log_best_teacher(search.head.ready_teachers[best].metrics)


def _split(search: LiveRecord) -> str:
    """Where the accuracies after each epoch come from."""
    return "test split" if search.head.reproduces else "held-out"


def _trained(
    prepared: Prepared, label: str, search: LiveRecord, storage: Storage, progress: LiveDisplay
) -> list[EpochReport]:
    """Trains a teacher where the cluster has room, with all cores of a machine and, where trials
    have a share of a GPU, a whole one: it runs alone. By as many processes as a trial, where these
    have GPUs; one on the CPU has more cores."""
    experiment = prepared.experiment
    name = f"teacher {label}" if len(experiment.teachers) > 1 else "teacher"
    resources, group = experiment.resources, None
    if resources.gpus and resources.workers > 1:
        group = placement_group(bundles(resources))
        place = in_bundle(group, 0, resources)
    else:
        gpus = max(1.0, resources.gpus) if resources.gpus else 0.0
        # A cluster that grows may have no machine for trials yet.
        resources = Resources(cpus=max(resources.cpus, cores_of_largest(gpus)), gpus=gpus)
        place = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    task = ray.remote(train_teacher).options(num_returns="streaming", **place)
    reports = []
    try:
        stream: Any = task.remote(experiment.model_dump_json(), storage.uri, resources, label)
        for reference in stream:
            report: EpochReport = ray.get(reference)
            progress.teacher_epoch(name, report, _split(search))
            reports.append(report)
    except RayError as error:  # of the task, or of its process
        cause = getattr(error, "cause", error)
        raise SearchFailedError(f"the {name} failed: {cause}") from None
    finally:
        if group is not None:
            remove_placement_group(group)
    return reports
