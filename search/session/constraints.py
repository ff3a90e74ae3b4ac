"""Which students an experiment's constraints leave, before anything is trained."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from kdcore import StudentConfig
from kdcore.data.image_data import ImageData
from kdcore.networks.cost import LATENCY_BATCH, CostName, NetworkCost
from kdcore.networks.measurement import count_network
from search.errors import ExperimentError, Problem
from search.experiment.schema import Experiment
from search.record.wording import cost_figure, excess_in_words
from search.session.preparation import cost_of, device_of_trials
from search.session.reused import reused_students

_MEASURED: tuple[CostName, ...] = ("latency_ms", "batch_latency_ms")


@dataclass(frozen=True)
class Constrained:
    """What constraints leave.

    Args:
        experiment: with the students that are within the limits.
        excluded: the others, with the reason in words.
        measured: what those that are left cost, as it was measured on this machine; empty where no
            limit is on a latency.
    """

    experiment: Experiment
    excluded: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, NetworkCost] = field(default_factory=dict)


def within_constraints(
    experiment: Experiment, data: ImageData, students: Iterable[str], source: str
) -> Constrained:
    """Leaves out the students that cost too much.

    Args:
        experiment: what a user asks for.
        data: its images.
        students: those that can be built; the others stay, to be refused with their reasons.
        source: the experiment's file, for messages.

    Raises:
        ExperimentError: none is left, or one where the front of several is sought.
    """
    limits, known = experiment.constraints.limits, experiment.student_configs
    excluded: dict[str, str] = {}
    measured: dict[str, NetworkCost] = {}
    for label in students if limits else ():
        words, cost = _compared(experiment, known[label].backbone, data)
        if words:
            excluded[label] = words
        elif cost is not None:
            measured[label] = cost
    left = tuple(config for label, config in known.items() if label not in excluded)
    _refuse_too_few(experiment, left, excluded, source)
    if excluded:
        experiment = experiment.model_copy(update={"student": left})
    return Constrained(experiment, excluded, measured)


def reused_problems(experiment: Experiment, data: ImageData) -> list[Problem]:
    """What is wrong with students that take over their teacher's classifier: they are beyond a
    limit, or on no front of the students' own costs."""
    problems = []
    for key, each in reused_students(experiment, data).items():
        if experiment.search.goal == "pareto":
            message = (
                f"is pareto, by what students cost alone, but those of {each.method} have their "
                f"teacher's classifier, too; leave goal out, or {each.method}"
            )
            return [Problem(key="search.goal", message=message)]
        words, _ = _compared(experiment, each.network, data)
        if words:
            message = (
                f"{key}, has the teacher's classifier, and as a whole {words}; raise the limit, or "
                f"leave {each.method} out"
            )
            problems.append(Problem(key="constraints", message=message))
    return problems


def constrained_in_words(
    excluded: Mapping[str, str], measured: Mapping[str, NetworkCost]
) -> list[str]:
    """What constraints came to, a line each: who is left out, and what was measured of the others;
    the arguments are those of `Constrained`."""
    out = [f"excluded {student}: it {words}" for student, words in excluded.items()]
    within = [
        f"latency  {student}: {cost_figure('latency_ms', cost.latency_ms)} ms an image, "
        f"{cost_figure('batch_latency_ms', cost.batch_latency_ms)} ms a batch of {LATENCY_BATCH}, "
        f"measured on this machine: {_device(cost)}"
        for student, cost in measured.items()
    ]
    return [*out, *within]


def _compared(
    experiment: Experiment, network: str, data: ImageData
) -> tuple[str, NetworkCost | None]:
    """How a network exceeds the limits, in words, empty if it does not; and what was measured for
    it, if anything was."""
    limits = experiment.constraints.limits
    words = _excess(_counted(network, data), limits)
    if words or not limits.keys() & set(_MEASURED):
        return words, None
    cost = _measured(experiment, network, data)
    words = _excess({name: getattr(cost, name) for name in _MEASURED}, limits)
    return (f"{words} (measured on this machine: {_device(cost)})" if words else ""), cost


def _excess(figures: Mapping[CostName, float], limits: Mapping[CostName, float]) -> str:
    """Which figures are beyond their limits, in words; empty if none is."""
    return " and ".join(
        excess_in_words(name, figure, f"constraints.{name}", limits[name])
        for name, figure in figures.items()
        if figure > limits.get(name, math.inf)
    )


def _refuse_too_few(
    experiment: Experiment,
    left: tuple[StudentConfig, ...],
    excluded: Mapping[str, str],
    source: str,
) -> None:
    if not left:
        every = "; ".join(f"{student} {words}" for student, words in excluded.items())
        message = f"leave no student: {every}. Raise the limits, or list smaller students"
        raise ExperimentError(source, [Problem(key="constraints", message=message)])
    if len(left) == 1 and experiment.search.goal == "pareto":
        message = (
            f"is pareto, but constraints leave one student, {left[0].label}; raise a limit, or "
            f"leave goal out"
        )
        raise ExperimentError(source, [Problem(key="search.goal", message=message)])


def _counted(network: str, data: ImageData) -> dict[CostName, float]:
    parameters, multiply_adds = count_network(
        network,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
    )
    return {"parameters": parameters, "multiply_adds": multiply_adds}


def _measured(experiment: Experiment, network: str, data: ImageData) -> NetworkCost:
    """What a network costs with a trial's resources on this machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.resources.cpus)
    try:
        return cost_of(network, data, device_of_trials(experiment))
    finally:
        torch.set_num_threads(threads)


def _device(cost: NetworkCost) -> str:
    threads = f", {cost.threads} thread{'' if cost.threads == 1 else 's'}" if cost.threads else ""
    return f"{cost.device}{threads}"
