"""What trials take, by a training step that is measured, and what a search would take at most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray
import torch
from ray.exceptions import RayError

from kdcore.contract.plugin_faults import ending_hangs, told_as
from kdcore.data.image_data import ImageData, open_data
from kdcore.errors import PluginError
from kdcore.execution.fastest import fastest_training
from kdcore.execution.workers import Workers
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import build_classifier
from kdcore.networks.cost import TrainingCost
from kdcore.networks.measurement import device_name, measure_latency
from kdcore.training.evaluation import default_device
from kdcore.training.recipe import BaseRecipe
from search.cluster.connection import connected_to_check, places_for_trials
from search.cluster.machines import machine_types, trial_places
from search.errors import SearchFailedError
from search.experiment.proposal.rules import AROUND_A_STEP
from search.experiment.running import experiment_to_run
from search.experiment.schema import Experiment
from search.experiment.search_config import SearchConfig
from search.experiment.space.fields import ChoiceField
from search.experiment.space.space import Space
from search.record.spending import Spending
from search.record.storage import Storage, workspace_of
from search.record.wording import duration
from search.session.preflight import Plan
from search.session.preparation import device_of_trials, named_members
from search.session.reused import reused_students
from search.session.sharing import share, views_of_an_image

# A teacher is asked in batches of this size where its time is measured.
_ASKED = 64

_PREPARATION_SHARE = "preparation_share"  # of the epochs, where a method has a preparatory stage


@dataclass(frozen=True)
class Measured:
    """Seconds of training, evaluation and images, with a trial's resources.

    Args:
        epoch: of the student that takes longest, with the outputs of its teacher.
        teachers: of all teachers that are not ready.
        device: that it was measured on.
    """

    epoch: float
    teachers: float
    device: str


def costs(prepared: Plan) -> list[str]:
    """By student, about what a trial would take on this machine, in words."""
    experiment, data = prepared.experiment, prepared.data
    recipe, device = experiment.training, device_of_trials(experiment)
    torch.set_num_threads(experiment.resources.cpus)
    sizes = {each.batch_size for each in recipe.variants("batch_size")}
    batches = f", with batches of {max(sizes)}" if len(sizes) > 1 else ""
    workers = experiment.resources.workers
    if workers > 1:
        batches += f", by {workers} workers"
    lines = []
    for student, config in experiment.student_configs.items():
        cost = _step(config.backbone, max(sizes), recipe, data, device, workers)
        seconds = cost.seconds * _steps(max(sizes), data)
        whole = f"about {duration(seconds * recipe.epochs)} a trial that is not stopped"
        if recipe.preparation_on_top:
            whole += f" and {duration(seconds)} for each preparatory epoch"
        lines.append(
            f"cost     {student}: {whole}{batches}, and {cost.memory_bytes / 2**30:.2g} GiB, "
            f"beside its teacher and images, on this machine ({device.type})"
        )
    return lines


def _step(
    network: str,
    batch_size: int,
    recipe: BaseRecipe,
    data: ImageData,
    device: torch.device,
    workers: int,
) -> TrainingCost:
    """A training step of a network by so many processes; what they exchange is not measured."""
    backbone = build_classifier(network, data, seed=0).backbone
    own = Workers(0, workers).share_of(min(batch_size, len(data.taught)))
    accelerated = recipe.acceleration == "auto"
    return fastest_training(backbone, data.image_size, own.images, device, accelerated=accelerated)


def _steps(batch_size: int, data: ImageData) -> int:
    """Number of steps of an epoch."""
    return max(1, len(data.taught) // batch_size)


def measured(
    experiment: Experiment, data: ImageData, device: torch.device, beginning: Sequence[str]
) -> Measured:
    """Measures what trials and teachers take.

    Args:
        experiment: with its resources decided.
        data: its images.
        device: where to compute.
        beginning: the teachers that are to be trained.
    """
    torch.set_num_threads(experiment.resources.cpus)

    def epoch(network: str, recipes: Sequence[BaseRecipe], workers: int) -> float:
        batch_size = max(each.batch_size for each in recipes)
        cost = _step(network, batch_size, recipes[0], data, device, workers)
        return _steps(batch_size, data) * cost.seconds

    images = torch.zeros(_ASKED, data.in_channels, *data.image_size, device=device)
    asked = 0.0
    for network in dict.fromkeys(each.network for each in experiment.teacher_configs.values()):
        teacher = build_classifier(network, data, seed=0).to(device)
        batches = len(data.taught) / len(images)
        asked = max(asked, batches * measure_latency(teacher, images) / 1000)
    recipes = experiment.training.variants("batch_size")
    students = {each.backbone for each in experiment.student_configs.values()}
    students |= {each.network for each in reused_students(experiment, data).values()}
    workers, teachers = experiment.resources.workers, 0.0
    teaching = workers if experiment.resources.gpus else 1  # as `prepare_teachers` has them
    for label in beginning:
        for _, _, config in named_members(experiment, label):
            if (recipe := config.training) is not None:
                each = (epoch(network, [recipe], teaching) for network in config.networks)
                teachers += recipe.epochs * sum(each)
    seen = views_of_an_image(experiment)
    longest = max(epoch(each, recipes, workers) for each in students)
    return Measured(
        AROUND_A_STEP * seen * (asked / workers + longest),
        AROUND_A_STEP * teachers,
        device_name(device),
    )


@told_as(PluginError)
@ending_hangs()
def measure_there(experiment_json: str, storage_uri: str, beginning: Sequence[str]) -> Measured:
    """As `measured`, where a trial would run."""
    experiment = experiment_to_run(experiment_json)
    data = open_data(experiment.data, workspace_of(Storage(storage_uri)))
    return measured(experiment, data, default_device(), beginning)


def share_and_estimate(
    prepared: Plan, storage: Storage, address: str | None, *, estimated: bool
) -> tuple[list[str], Plan]:
    """What a search would decide about its resources, for a check: in words, and what it would run.

    Args:
        prepared: what is to run.
        storage: where the search would be kept.
        address: of a Ray cluster, which is checked as well; none: this machine.
        estimated: whether the words also say what it would take at most; for that Ray is started
            where there is no cluster.

    Raises:
        ClusterError: there is no Ray; or as `share`.
        ExperimentError, SearchFailedError: as `decided_on_ray` and `estimate`.
    """
    place = "this machine" if address is None else "the cluster"
    if address is None and not estimated:
        return share(prepared, storage, place, on_ray=False)
    with connected_to_check(storage, address):
        words, prepared = share(prepared, storage, place, on_ray=True)
        return [*words, *(estimate(prepared, storage) if estimated else [])], prepared


def estimate(prepared: Plan, storage: Storage) -> list[str]:
    """How many trials would run at a time on the connected Ray, and what the search would take at
    most, in words.

    Args:
        prepared: what would be searched.
        storage: where it would be kept.

    Raises:
        ClusterError: as `places_for_trials`.
        SearchFailedError: a step cannot be measured.
    """
    experiment, resources = prepared.experiment, prepared.experiment.resources
    places = places_for_trials(experiment, storage)
    if not resources.is_decided or not trial_places(resources):
        return [f"at most  {places} trials at a time; how long is known once a machine is there"]
    beginning = [label for label, each in prepared.teachers.items() if not each.ready]
    task = ray.remote(measure_there).options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    try:
        found: Measured = ray.get(task.remote(experiment.model_dump_json(), storage.uri, beginning))
    except RayError as error:
        cause = getattr(error, "cause", error)
        raise SearchFailedError(f"a training step could not be measured: {cause}") from None
    return in_words(experiment, prepared.space, found, places, machine_types())


def in_words(
    experiment: Experiment, space: Space, found: Measured, places: int, machines: Sequence[str]
) -> list[str]:
    """What a search would take at most, a line each for trials, teachers and confirmation.

    Args:
        experiment: that is searched.
        space: of its trials.
        found: seconds of training.
        places: number of trials that can run at a time.
        machines: the types of those that are there.
    """
    trials, confirm = experiment.search.trials, experiment.confirm
    hours = (
        found.epoch * (experiment.training.epochs + most_epochs_on_top(experiment, space)) / 3600
    )
    at_a_time = min(trials, places)
    most, ending = at_most(experiment, trials, hours, at_a_time, machines)
    lines = [
        f"at once  {at_a_time} trial{'s' if at_a_time > 1 else ''}, each for about "
        f"{duration(3600 * hours)}, by a training step on {found.device} and half as much again "
        f"for evaluation and images; what methods compute comes on top",
        f"at most  about {most.in_words(experiment)} for the trials, where none is stopped early"
        + (f"; before all have run, the budget of {ending[0]} may be spent" if ending else ""),
    ]
    if found.teachers:
        lines.append(f"before   about {duration(found.teachers)} for what teaches")
    if confirm is not None:
        # A control, and kd as published, beside the best of each student.
        runs = confirm.seeds * (confirm.top + 2 * min(confirm.top, len(experiment.students)))
        unbounded = experiment.model_copy(update={"search": SearchConfig(trials=trials)})
        after, _ = at_most(unbounded, runs, hours, min(runs, places), machines)
        lines.append(f"after    about {after.in_words(experiment)} for {runs} runs that confirm")
    return lines


def most_epochs_on_top(experiment: Experiment, space: Space) -> int:
    """The most preparatory epochs that come on top of a trial's others."""
    most = []
    for (*_, method), fields in space.fields.items():
        for each in fields:
            if each.name == f"{method}.{_PREPARATION_SHARE}":
                ends = each.options if isinstance(each, ChoiceField) else (each.high,)
                named = ({_PREPARATION_SHARE: end} for end in ends)
                most += [CATALOGUE[method].Params.model_validate(values) for values in named]
    return experiment.training.epochs_on_top(most)


def at_most(
    experiment: Experiment, runs: int, hours: float, at_a_time: int, machines: Sequence[str]
) -> tuple[Spending, list[str]]:
    """What trainings take at most, and the budgets that would end them before.

    Args:
        experiment: its budgets, resources and prices count.
        runs: number of them.
        hours: of each.
        at_a_time: number that run at a time.
        machines: the types of those that are there.
    """
    search, resources, prices = experiment.search, experiment.resources, experiment.prices

    def taking(clock: float, device_hours: float) -> Spending:
        money = 0.0
        if prices is not None:
            money = clock * prices.per_hour(device_hours / clock, resources.gpus, machines)
        return Spending(clock, device_hours, money)

    whole = taking(math.ceil(runs / at_a_time) * hours, runs * hours * resources.devices)
    clock = min(whole.hours, search.hours or math.inf)
    device_hours = min(
        whole.device_hours,
        search.gpu_hours or math.inf,
        search.cpu_hours or math.inf,
        clock * at_a_time * resources.devices,
    )
    within = taking(clock, device_hours)
    money = min(within.money, search.budget or math.inf)
    return replace(within, money=money), whole.spent_budgets(experiment)
