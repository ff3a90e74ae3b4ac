"""What must be there before trials start: weights, the teacher, and what each network costs."""

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcore import DataConfig, EnsembleConfig, TeacherConfig
from kdcore.contract.plugin_faults import ending_hangs, told_as
from kdcore.data.image_data import ImageData, open_data
from kdcore.distillation.evaluation import evaluated_as_weights
from kdcore.distillation.start import start_in_words
from kdcore.errors import ConfigError, PluginError, WeightsError
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import fastest_execution
from kdcore.execution.workers import Workers
from kdcore.networks.classifier import build_classifier
from kdcore.networks.cost import NetworkCost
from kdcore.networks.measurement import measure_network
from kdcore.teacher.teacher import is_ready, prepare_teacher, teacher_folder
from kdcore.training.evaluation import default_device
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.report import EpochReport
from search.errors import ExperimentError, Problem
from search.experiment.running import experiment_to_run
from search.experiment.schema import Experiment, Resources
from search.record.networks import Executions
from search.record.storage import Storage, workspace_of
from search.session.reused import reused_students
from search.session.worker_group import worker_group


def with_evaluation(experiment: Experiment, source: str) -> tuple[Experiment, str]:
    """An experiment whose evaluation is in numbers, and in words what weights have decided; empty
    where they were not asked.

    Args:
        experiment: what a user asks for.
        source: its file, for messages.

    Raises:
        ExperimentError: the weights are missing, or do not tell.
    """
    students = experiment.student_configs.values()
    teachers = {
        key: each
        for label in experiment.teachers
        for key, each in experiment.members(label).items()
    }
    with_weights = [key for key, each in teachers.items() if each.weights is not None]
    key = next(iter((*with_weights, *teachers)))
    try:
        data, found = evaluated_as_weights(experiment.data, teachers[key], students)
    except WeightsError as error:
        key = f"{key}.weights" if with_weights else "student"
        raise ExperimentError(source, [Problem(key=key, message=str(error))]) from None
    except ConfigError as error:
        raise ExperimentError(source, [Problem(key="data", message=str(error))]) from None
    if found is None:
        return experiment, ""
    return experiment.model_copy(update={"data": data}), str(found)


@dataclass(frozen=True)
class PlannedTeacher:
    """A teacher that is there, or can be made.

    Args:
        folder: on this machine.
        ready: whether it is there already.
    """

    folder: Path
    ready: bool


def planned_teachers(
    experiment: Experiment, data: ImageData, workspace: Path
) -> tuple[dict[str, PlannedTeacher], list[Problem]]:
    """By label; one whose weights are wrong is missing, and the reason among the problems."""
    teachers: dict[str, PlannedTeacher] = {}
    problems: list[Problem] = []
    for label, teacher in experiment.teacher_configs.items():
        key, wrong = experiment.teacher_keys[label], len(problems)
        for place, member in experiment.members(label).items():
            try:
                teacher_folder(member, data, workspace)
            except ConfigError as error:
                problems.append(Problem(key=f"{place}.weights", message=str(error)))
        if len(problems) > wrong:
            continue
        folder = teacher_folder(teacher, data, workspace)
        same = next((name for name, each in teachers.items() if each.folder == folder), None)
        if same is not None:
            message = f"is the same teacher as {experiment.teacher_keys[same]}; list each once"
            problems.append(Problem(key=key, message=message))
        teachers[label] = PlannedTeacher(folder, is_ready(folder))
    return teachers, problems


def named_members(experiment: Experiment, label: str) -> Iterator[tuple[str, str, TeacherConfig]]:
    """A teacher by its label, or those of an ensemble by their networks; each with its place in the
    file."""
    members = experiment.members(label)
    for key, teacher in members.items():
        yield label if len(members) == 1 else f"{teacher.name} ({key})", key, teacher


def starts_in_words(
    experiment: Experiment, data: ImageData, beginning: Collection[str]
) -> tuple[dict[str, str], list[Problem]]:
    """What becomes of the weights that networks begin with, and what of them is trained.

    Args:
        experiment: with the networks.
        data: its images.
        beginning: the teachers that are still to be trained or loaded.

    Returns:
        The words by network, those left out that begin with fresh weights; and what cannot work.
    """
    words, problems = {}, []
    for label in beginning:
        for name, key, teacher in named_members(experiment, label):
            try:
                words[f"teacher {name}"] = start_in_words(teacher, teacher.training, data)
            except ConfigError as error:
                within = ".weights" if isinstance(error, WeightsError) else ""
                problems.append(Problem(key=f"{key}{within}", message=str(error)))
    recipes = experiment.training.variants("linear_probe", "frozen_stages", "layer_decay")
    for label, student in experiment.student_configs.items():
        try:
            words[f"student {label}"] = start_in_words(student, experiment.training, data)
            for recipe in recipes:
                fine_tuning(recipe, student.backbone)
        except ConfigError as error:
            problems.append(Problem(key="student", message=str(error)))
    return {network: each for network, each in words.items() if each}, problems


def train_teacher(
    experiment_json: str, storage_uri: str, resources: Resources, label: str
) -> Iterator[EpochReport]:
    """Puts a teacher in place, wherever the resources are; yields what was trained."""
    torch.set_num_threads(resources.cpus)
    asked = experiment_json, storage_uri, label
    group = worker_group(resources, _help_teach, *asked)
    with told_as(PluginError), ending_hangs(), group as workers:
        yield from _prepared(workers, *asked)


def _help_teach(workers: Workers, experiment_json: str, storage_uri: str, label: str) -> None:
    """What the other processes do that train a teacher."""
    for _ in _prepared(workers, experiment_json, storage_uri, label):
        pass


def _prepared(
    workers: Workers, experiment_json: str, storage_uri: str, label: str
) -> Iterator[EpochReport]:
    experiment = experiment_to_run(experiment_json)
    teacher = experiment.teacher_configs[label]
    storage = Storage(storage_uri)
    workspace = workspace_of(storage)
    data = open_data(experiment.data, workspace)
    is_remote = storage.local is None and workers.rank == 0
    # Other searches find the teachers of an ensemble, too.
    for each in dict.fromkeys((*teacher.members, teacher)):
        if is_remote:
            fetch_teacher(experiment.data, each, storage, workspace)
        yield from prepare_teacher(each, data, workspace, workers=workers)
        if is_remote:
            folder = teacher_folder(each, data, workspace)
            storage.upload(folder, f"teachers/{folder.name}")


@told_as(PluginError)
@ending_hangs()
def measure_students(
    experiment_json: str, storage_uri: str
) -> tuple[dict[str, NetworkCost], Executions]:
    """By student, what it costs on the device that a trial would have; and in which precision and
    layout the networks are fastest there."""
    experiment = experiment_to_run(experiment_json)
    torch.set_num_threads(experiment.resources.cpus)
    workspace, device = workspace_of(Storage(storage_uri)), default_device()
    data = open_data(experiment.data, workspace)
    executions = measured_executions(experiment, data, workspace, device)
    students = experiment.student_configs.items()
    networks = {label: student.backbone for label, student in students}
    networks |= {key: each.network for key, each in reused_students(experiment, data).items()}
    costs = {label: cost_of(network, data, device) for label, network in networks.items()}
    return costs, executions


def cost_of(network: str, data: ImageData, device: torch.device) -> NetworkCost:
    """What a network costs on a device."""
    return measure_network(
        network,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        device=device,
    )


def device_of_trials(experiment: Experiment) -> torch.device:
    """What a trial would have if it ran on this machine."""
    resources = experiment.resources
    on_cpu = resources.is_decided and not resources.gpus
    return torch.device("cpu") if on_cpu else default_device()


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

    workers = Workers(0, experiment.resources.workers)
    batch_size = workers.share_of(experiment.training.batch_size).images
    first, *others = dict.fromkeys(each.network for each in experiment.teacher_configs.values())
    return Executions(
        students={
            label: fastest(student.backbone, batch_size)
            for label, student in experiment.student_configs.items()
        },
        teacher=fastest(first, None),
        other_teachers={network: fastest(network, None) for network in others},
    )


def fetch_teacher(
    data_config: DataConfig,
    config: TeacherConfig | EnsembleConfig,
    storage: Storage,
    workspace: Path,
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
