"""What must be there before trials start: weights, the teacher, and what each network costs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from kdcore import DataConfig, StudentConfig, TeacherConfig
from kdcore.data.image_data import ImageData, open_data
from kdcore.distillation.evaluation import evaluated_as_weights
from kdcore.distillation.start import start_in_words
from kdcore.errors import ConfigError, WeightsError
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import fastest_execution
from kdcore.networks.classifier import build_classifier
from kdcore.networks.cost import NetworkCost
from kdcore.networks.measurement import measure_network
from kdcore.teacher.teacher import is_ready, prepare_teacher, teacher_folder
from kdcore.training.evaluation import default_device
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.report import EpochReport
from search.errors import ExperimentError, Problem
from search.experiment.schema import Experiment
from search.record.record import Executions
from search.record.storage import Storage, workspace_of


def with_evaluation(experiment: Experiment, source: str) -> tuple[Experiment, str]:
    """An experiment whose evaluation is in numbers, and in words what weights have decided; empty
    where they were not asked.

    Args:
        experiment: what a user asks for.
        source: its file, for messages.

    Raises:
        ExperimentError: the weights are missing, or do not tell.
    """
    teacher, students = experiment.teacher, experiment.student_configs.values()
    try:
        data, found = evaluated_as_weights(experiment.data, teacher, students)
    except WeightsError as error:
        key = "student" if teacher.weights is None else "teacher.weights"
        raise ExperimentError(source, [Problem(key=key, message=str(error))]) from None
    except ConfigError as error:
        raise ExperimentError(source, [Problem(key="data", message=str(error))]) from None
    if found is None:
        return experiment, ""
    return experiment.model_copy(update={"data": data}), str(found)


def starts_in_words(
    experiment: Experiment, data: ImageData, *, teacher_begins: bool
) -> tuple[dict[str, str], list[Problem]]:
    """What becomes of the weights that networks begin with, and what of them is trained.

    Args:
        experiment: with the networks.
        data: its images.
        teacher_begins: whether the teacher is still to be trained or loaded.

    Returns:
        The words by network, those left out that begin with fresh weights; and what cannot work.
    """
    words, problems = {}, []
    if teacher_begins:
        teacher = experiment.teacher
        try:
            words[f"teacher {teacher.backbone}"] = start_in_words(teacher, teacher.training, data)
        except ConfigError as error:
            key = "teacher.weights" if isinstance(error, WeightsError) else "teacher"
            problems.append(Problem(key=key, message=str(error)))
    recipes = experiment.training.variants("linear_probe", "frozen_stages", "layer_decay")
    for label, student in experiment.student_configs.items():
        try:
            words[f"student {label}"] = start_in_words(student, experiment.training, data)
            for recipe in recipes:
                fine_tuning(recipe, student.backbone)
        except ConfigError as error:
            problems.append(Problem(key="student", message=str(error)))
    return {network: each for network, each in words.items() if each}, problems


def train_teacher(experiment_json: str, storage_uri: str, threads: int) -> Iterator[EpochReport]:
    """Puts the teacher in place, wherever the resources are; yields what was trained."""
    experiment = Experiment.model_validate_json(experiment_json)
    torch.set_num_threads(threads)
    storage = Storage(storage_uri)
    workspace = workspace_of(storage)
    if storage.local is None:
        fetch_teacher(experiment.data, experiment.teacher, storage, workspace)
    data = open_data(experiment.data, workspace)
    yield from prepare_teacher(experiment.teacher, data, workspace)
    if storage.local is None:
        folder = teacher_folder(experiment.teacher, data, workspace)
        storage.upload(folder, f"teachers/{folder.name}")


def measure_students(
    experiment_json: str, storage_uri: str
) -> tuple[dict[str, NetworkCost], Executions]:
    """By student, what it costs on the device that a trial would have; and in which precision and
    layout the networks are fastest there."""
    experiment = Experiment.model_validate_json(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    workspace, device = workspace_of(Storage(storage_uri)), default_device()
    data = open_data(experiment.data, workspace)
    executions = measured_executions(experiment, data, workspace, device)
    students = experiment.student_configs.items()
    costs = {label: cost_of(student, data, device) for label, student in students}
    return costs, executions


def cost_of(student: StudentConfig, data: ImageData, device: torch.device) -> NetworkCost:
    """What a student costs on a device."""
    return measure_network(
        student.backbone,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        device=device,
    )


def device_of_trials(experiment: Experiment) -> torch.device:
    """What a trial would have if it ran on this machine."""
    return default_device() if experiment.resources.gpus else torch.device("cpu")


def measured_executions(
    experiment: Experiment, data: ImageData, workspace: Path, device: torch.device
) -> Executions:
    """Precision and layout that are fastest on this machine, or were when it was measured.

    Args:
        experiment: its networks, batch size and acceleration count.
        data: its images.
        workspace: keeps what was measured.
        device: where the networks compute.
    """

    def fastest(network: str, batch_size: int | None) -> Execution:
        if experiment.training.acceleration == "off":
            return Execution()
        classifier = build_classifier(network, data, seed=0)
        return fastest_execution(
            network, classifier, data.image_size, device, workspace, batch_size=batch_size
        )

    batch_size = experiment.training.batch_size
    return Executions(
        students={
            label: fastest(student.backbone, batch_size)
            for label, student in experiment.student_configs.items()
        },
        teacher=fastest(experiment.teacher.backbone, None),
    )


def fetch_teacher(
    data_config: DataConfig, config: TeacherConfig, storage: Storage, workspace: Path
) -> None:
    """Copies the teacher from a remote storage, where it is there and not on this machine yet."""
    data = open_data(data_config, workspace)
    folder = teacher_folder(config, data, workspace)
    if is_ready(folder) or not storage.exists(f"teachers/{folder.name}/teacher.json"):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        storage.download(f"teachers/{folder.name}", Path(partial) / folder.name)
        try:
            (Path(partial) / folder.name).rename(folder)
        except OSError:
            if not is_ready(folder):  # another trial of this machine was faster
                raise
