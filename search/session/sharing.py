"""What trials occupy where `resources` is left to the cluster: a share of a GPU, or the CPU.

Where there are GPUs, trials have them; CPU machines beside them then run none. A share is 1/n of a
GPU with 1/n of its cores, n as in `search.record.sharing`. It is the same on all machines, so it
goes by the smallest: the GPU with the least memory, on which a training step is measured, and the
fewest cores for a GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdcore.contract.plugin_faults import ending_hangs, told_as
from kdcore.contract.taps import Tap
from kdcore.data.image_data import ImageData, open_data
from kdcore.errors import PluginError
from kdcore.execution.workers import Workers
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import build_classifier
from kdcore.networks.measurement import (
    count_outputs,
    device_memory,
    measure_busy_share,
    measure_evaluation_memory,
    measure_training,
)
from kdcore.teacher_cache.cache import goes_to_device
from kdcore.training.evaluation import default_device
from search.cluster.connection import check_prices, places_for_trials
from search.cluster.machines import (
    MachineWithGpus,
    gpus,
    machines,
    machines_with_gpus,
    smallest_gpu,
)
from search.errors import ClusterError, ExperimentError, Problem, SearchFailedError
from search.experiment.proposal.machine import this_machine
from search.experiment.running import experiment_to_run
from search.experiment.schema import CONTROL, Experiment, Resources
from search.record.record import SearchRecord
from search.record.sharing import Sharing, gib, trials_on_a_gpu
from search.record.storage import Storage, workspace_of
from search.session.cautions import idle_gpus
from search.session.preflight import Prepared
from search.session.reused import reused_students

AnyPrepared = TypeVar("AnyPrepared", bound=Prepared)


@dataclass(frozen=True)
class Needs:
    """What a trial takes of a GPU; see `Sharing`."""

    trial_bytes: int
    busy: float


@dataclass(frozen=True)
class Decided:
    """An experiment whose resources are known.

    Args:
        experiment: with resources in numbers.
        sharing: what they went by; none without GPUs, and where they are the user's.
        words: the decision in a line; empty where it is the user's.
    """

    experiment: Experiment
    sharing: Sharing | None = None
    words: str = ""


def needs_of(experiment: Experiment, data: ImageData, device: torch.device) -> Needs:
    """Measures training steps of the students, and what the teacher takes beside them.

    Args:
        experiment: networks, methods, batch size and cache.
        data: its images.
        device: where to compute.
    """
    sizes = (recipe.batch_size for recipe in experiment.training.variants("batch_size"))
    # Of each of its workers; the first has the most images.
    shared = Workers(0, experiment.resources.workers).share_of(min(max(sizes), len(data.taught)))
    batch, trained, busy = shared.images, 0, 0.0
    seen = batch * views_of_an_image(experiment)
    whole = (each.network for each in reused_students(experiment, data).values())
    alone = (each.backbone for each in experiment.student_configs.values())
    for name in dict.fromkeys((*alone, *whole)):
        student = build_classifier(name, data, seed=0).backbone
        cost = measure_training(student, data.image_size, seen, device)
        trained = max(trained, cost.memory_bytes)
        busy = max(busy, measure_busy_share(student, data.image_size, seen, device))
    images = data.taught.device_bytes + data.heldout.device_bytes
    return Needs(trained + images + _teacher_bytes(experiment, data, batch, device), busy)


def views_of_an_image(experiment: Experiment) -> int:
    """The most that a student sees of an image in a step."""
    return 2 if Tap.STRONG_LOGITS in _kinds(experiment) else 1


def _teacher_bytes(
    experiment: Experiment, data: ImageData, batch: int, device: torch.device
) -> int:
    """The largest teacher, and its outputs that methods read: those of a batch or, cached, of a
    view that goes to the device as a whole."""
    kinds, most, cache = _kinds(experiment), 0, experiment.cache
    if not kinds:
        return 0
    for name, view in _view_bytes(experiment, data).items():
        teacher = build_classifier(name, data, seed=0).backbone
        computing = measure_evaluation_memory(teacher, data.image_size, batch, device)
        outputs = 4 * batch * (view // (len(data.taught) * _cached_bytes(experiment)))
        # One that has no room on disk is computed in every step.
        if cache and view <= cache.max_gb * 1e9 and goes_to_device(view, cache, device):
            outputs = max(outputs, view)
        most = max(most, computing + outputs)
    return most


def _kinds(experiment: Experiment) -> frozenset[Tap]:
    """The outputs of a teacher that methods read."""
    methods = {name for slot in experiment.objective for name in slot} - {CONTROL}
    return frozenset[Tap]().union(*(CATALOGUE[name].needs for name in methods))


def _cached_bytes(experiment: Experiment) -> int:
    """Of a value in the cache."""
    return 2 if experiment.cache is not None and experiment.cache.precision == "float16" else 4


def _view_bytes(experiment: Experiment, data: ImageData) -> dict[str, int]:
    """By network of a teacher, what its outputs take for a view where methods read all of them."""
    kinds, networks = _kinds(experiment), (e.network for e in experiment.teacher_configs.values())
    return {
        name: len(data.taught)
        * count_outputs(build_classifier(name, data, seed=0).backbone, data.image_size, kinds)
        * _cached_bytes(experiment)
        for name in dict.fromkeys(networks)
    }


def cached_by_batches(experiment: Experiment, data: ImageData, gpu_bytes: int) -> list[str]:
    """The teachers whose cached outputs may be too large to go to a GPU with this memory as a
    whole, a line each."""
    cache = experiment.cache
    if cache is None or not _kinds(experiment):
        return []
    return [
        f"cache    a view of what {network} gives takes up to {gib(size)}, more than "
        f"{cache.device_share:g} of the GPU's {gib(gpu_bytes)}: then it comes by batches from the "
        f"machine's memory"
        for network, size in _view_bytes(experiment, data).items()
        if cache.device_share * gpu_bytes < size <= cache.max_gb * 1e9
    ]


@told_as(PluginError)
@ending_hangs()
def measure_needs(experiment_json: str, storage_uri: str) -> Needs:
    """As `needs_of`, where a trial would run."""
    experiment = experiment_to_run(experiment_json)
    data = open_data(experiment.data, workspace_of(Storage(storage_uri)))
    return needs_of(experiment, data, default_device())


def decided(
    experiment: Experiment,
    there: Sequence[MachineWithGpus],
    measured: Callable[[MachineWithGpus], Needs],
    runs: int,
    why_none: str = "there is no GPU",
) -> Decided:
    """Decides what trials occupy.

    Args:
        experiment: whose resources are to be decided.
        there: the machines with GPUs.
        measured: measures on a GPU of a machine.
        runs: number of trainings, of which `concurrent_trials` go at a time.
        why_none: why no trial would have a GPU where there are no such machines, in words.

    Raises:
        ExperimentError: a budget is of what the trials do not use then.
    """
    asked = experiment.resources
    if not there:
        resources = Resources(cpus=asked.cpus, gpus=0, workers=asked.workers)
        cores, sharing = f"{asked.cpus} core{'s' if asked.cpus > 1 else ''}", None
        which = f"{asked.workers} workers a trial" if asked.workers > 1 else "trials"
        words = f"{which} compute on the CPU, {cores} each: {why_none}"
    else:
        smallest = min(there, key=lambda machine: machine.gpu_bytes)
        needs = measured(smallest)
        cores_a_gpu = min(machine.cores // machine.gpus for machine in there)
        given = "cpus" in asked.model_fields_set
        at_a_time = min(runs, experiment.search.concurrent_trials or runs)
        trials, limit = trials_on_a_gpu(
            needs.trial_bytes,
            needs.busy,
            smallest.gpu_bytes,
            cores_a_gpu // asked.cpus if given else cores_a_gpu,
            at_a_time / sum(machine.gpus for machine in there),
        )
        if asked.workers > 1:
            trials, limit = 1, "workers"
        cpus = asked.cpus if given else max(1, cores_a_gpu // trials)
        resources = Resources(cpus=cpus, gpus=1 / trials, workers=asked.workers)
        sharing = Sharing(
            trials=trials,
            cpus=cpus,
            gpu=smallest.gpu,
            gpu_bytes=smallest.gpu_bytes,
            trial_bytes=needs.trial_bytes,
            busy=needs.busy,
            limit=limit,
        )
        words = str(sharing)
    experiment = experiment.model_copy(update={"resources": resources})
    if experiment.wrong_budget:
        problem = Problem(key="", message=experiment.wrong_budget)
        raise ExperimentError(experiment.name, [problem])
    return Decided(experiment, sharing, f"share    {words}")


def decided_here(prepared: Prepared) -> Decided:
    """Decides as a search would that starts Ray on this machine."""
    experiment = prepared.experiment
    if experiment.resources.is_decided:
        return Decided(experiment)
    found = smallest_gpu()
    here = found and MachineWithGpus(this_machine().cores, torch.cuda.device_count(), *found)
    return decided(
        experiment,
        [here] if here else [],
        lambda machine: needs_of(experiment, prepared.data, default_device()),
        experiment.search.trials,
    )


def decided_on_ray(
    prepared: Prepared,
    storage: Storage,
    runs: int | None = None,
    waiting: Callable[[], None] | None = None,
) -> Decided:
    """Decides by the machines of the connected Ray.

    Args:
        prepared: what is to run there.
        storage: that its machines reach.
        runs: number of trainings; none: the trials.
        waiting: called before the first machine for trials is waited for, where the cluster is yet
            to grow; none: it is not waited for, and nothing is decided.

    Raises:
        ClusterError: there is no such machine, and the cluster is not said to grow; or a machine
            does not see the storage.
        ExperimentError: as `decided`.
        SearchFailedError: a training step could not be measured.
    """
    experiment = prepared.experiment
    if experiment.resources.is_decided:
        return Decided(experiment)
    places_for_trials(experiment, storage)  # before anything is measured there
    while not any(machine["Resources"].get("CPU", 0) >= 1 for machine in machines()):
        if waiting is None:
            return Decided(experiment, words="share    the first machine that comes decides it")
        waiting()
        ray.get(ray.remote(_there).options(num_cpus=1).remote())

    def measured(machine: MachineWithGpus) -> Needs:
        task = ray.remote(measure_needs).options(
            num_cpus=1,
            num_gpus=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, soft=False),
        )
        try:
            found: Needs = ray.get(task.remote(experiment.model_dump_json(), storage.uri))
        except RayError as error:
            cause = getattr(error, "cause", error)
            raise SearchFailedError(f"a training step could not be measured: {cause}") from None
        return found

    why = "there is no GPU"
    if number := gpus():
        why = f"PyTorch can use none of the {number} GPUs there, or their machines have no cores"
    trials = experiment.search.trials if runs is None else runs
    return decided(experiment, machines_with_gpus(), measured, trials, why)


def share(
    prepared: AnyPrepared, storage: Storage, place: str, *, on_ray: bool
) -> tuple[list[str], AnyPrepared]:
    """What a search would decide, for a check: in words, and what it would run.

    Args:
        prepared: what is to run.
        storage: where the search would be kept.
        place: where it would run, as `this machine`.
        on_ray: whether the connected Ray is asked, and checked as well; else this machine is.

    Raises:
        ClusterError: as `check_prices` and `places_for_trials`.
        ExperimentError, SearchFailedError: as `decided_on_ray`.
    """
    if on_ray:
        check_prices(prepared.experiment)
        found, number = decided_on_ray(prepared, storage), gpus()
        places_for_trials(found.experiment, storage)
    else:
        found, number = decided_here(prepared), torch.cuda.device_count()
    words = [found.words] if found.words else idle_gpus(prepared.experiment, number, place)
    gpu_bytes = found.sharing.gpu_bytes if found.sharing else None
    if not on_ray and found.experiment.resources.gpus:
        gpu_bytes = gpu_bytes or device_memory(default_device())
    if gpu_bytes is not None:
        words += cached_by_batches(found.experiment, prepared.data, gpu_bytes)
    return words, replace(prepared, experiment=found.experiment)


def _there() -> None:
    """Runs as soon as there is a machine."""


def settled(
    prepared: AnyPrepared,
    record: SearchRecord,
    storage: Storage,
    say: Callable[[str], None],
    waiting: Callable[[], None],
    runs: int | None = None,
) -> tuple[AnyPrepared, SearchRecord]:
    """What is to run on the connected Ray, and its record, with the resources in both; says what
    was decided now. What the record has decided stays. The arguments are those of `decided_on_ray`.

    Raises:
        ClusterError: as `decided_on_ray`; or GPUs have no memory for so many trials as the record
            has decided.
        ExperimentError, SearchFailedError: as `decided_on_ray`.
    """
    if prepared.experiment.resources.is_decided:
        if record.sharing is not None and record.sharing.trials > 1:
            _check_memory(record, record.sharing)
        return prepared, record
    found = decided_on_ray(prepared, storage, runs, waiting)
    say(found.words)
    update = {"experiment": found.experiment, "sharing": found.sharing}
    return replace(prepared, experiment=found.experiment), record.model_copy(update=update)


def _check_memory(record: SearchRecord, sharing: Sharing) -> None:
    """Refuses GPUs with less memory than a decision went by, where the trials need it."""
    anew = f"kdsearch resume {record.name} --set resources=auto decides anew"
    if record.reproduces:
        anew = "another --name decides anew"
    for machine in machines_with_gpus():
        if not sharing.holds(machine.gpu_bytes):
            raise ClusterError(
                f"{sharing.trials} trials a GPU, each with about {sharing.process_gib}, were "
                f"decided for {sharing.gpu} with {gib(sharing.gpu_bytes)}, but {machine.gpu} has "
                f"{gib(machine.gpu_bytes)}; {anew}"
            )
