"""What a search's best student does with each class, measured once at the end for the report."""

import time
from collections.abc import Callable
from typing import Any

import ray
import torch

from kdcore.contract.plugin_faults import ending_hangs
from kdcore.data.image_data import open_data
from kdcore.training.evaluation import default_device
from kdcore.training.judging import evaluate_as_judged
from search.experiment.running import experiment_to_run
from search.export.choice import Candidate
from search.export.export import trained_student
from search.record.class_results import StudentClasses, kept_of
from search.record.owner import HEARTBEAT
from search.record.record import SearchRecord
from search.record.storage import Storage, workspace_of

# A cluster without room must not keep a search from its end.
_PATIENCE_SECONDS = 1800.0


@ending_hangs()
def measure_classes(picked: Candidate, experiment_json: str, storage_uri: str) -> StudentClasses:
    """Measures a trained student on the held-out images; the test split stays shut."""
    experiment = experiment_to_run(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    storage = Storage(storage_uri)
    data = open_data(experiment.data, workspace_of(storage))
    network = experiment.student_configs[picked.student].backbone
    student = trained_student(picked.label, network, picked.checkpoint, data, storage)
    found = evaluate_as_judged(student.to(default_device()), data, data.heldout)
    classes, mistakes = kept_of(found, data.class_names)
    return StudentClasses(
        label=picked.label,
        trial=picked.trial,
        seed=None if picked.confirmed is None else picked.seed,
        student=picked.student,
        objective=picked.objective,
        checkpoint=picked.checkpoint,
        epoch=picked.best_epoch,
        images=len(found.labels),
        balanced_accuracy=found.balanced_accuracy,
        num_classes=found.num_classes,
        classes=classes,
        mistakes=mistakes,
    )


def classes_of(
    picked: Candidate, record: SearchRecord, storage: Storage, wait: Callable[[], None]
) -> StudentClasses:
    """Measures a student where the cluster has room, with a trial's resources.

    Args:
        picked: the student.
        record: of its search.
        storage: with its checkpoint.
        wait: called now and then, while it is not done.

    Raises:
        RayError: it failed.
        TimeoutError: it took over half an hour, with the time until there was room.
    """
    experiment = record.experiment
    task: Any = ray.remote(measure_classes).options(
        num_cpus=experiment.resources.cpus, num_gpus=experiment.resources.gpus
    )
    reference = task.remote(picked, experiment.model_dump_json(), storage.uri)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not ray.wait([reference], timeout=HEARTBEAT.total_seconds())[0]:
        if time.monotonic() > deadline:
            ray.cancel(reference, force=True)
            raise TimeoutError("it took over half an hour, or the cluster had no room")
        wait()
    found: StudentClasses = ray.get(reference)
    return found
