"""Everything that can be refused before anything is trained."""

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from kdcore.backbones.catalogue import constructor_of
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.plugin_faults import ending_hangs
from kdcore.contract.published import benchmark_of
from kdcore.data.image_data import ImageData, open_data
from kdcore.distillation.distill import network_pair
from kdcore.distillation.method_check import MethodCheck
from kdcore.errors import ConfigError
from kdcore.execution.execution import Execution
from kdcore.networks.classifier import build_classifier
from kdcore.networks.cost import NetworkCost
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.judging import check_judged
from kdcore.training.metric import check_metric
from kdcore.training.recipe import BaseRecipe
from search.errors import ExperimentError, KdsearchError, Problem
from search.experiment.running import own_data_code, use_plugins
from search.experiment.schema import Experiment
from search.experiment.space.asked_points import asked_points
from search.experiment.space.derivation import derive_space, networks_in_words
from search.experiment.space.point import Point
from search.experiment.space.space import Space
from search.experiment.space.trial_config import trial_config
from search.record.files import read_record
from search.record.storage import Storage, workspace_of
from search.session.constraints import (
    Constrained,
    constrained_in_words,
    reused_problems,
    within_constraints,
)
from search.session.preparation import (
    PlannedTeacher,
    device_of_trials,
    measured_executions,
    named_members,
    planned_teachers,
    starts_in_words,
    with_evaluation,
)
from search.session.prior import prior_points
from search.session.recipe_checks import drop_path_problems, view_problems
from search.session.sampling.grid import capped
from search.session.sampling.named import missing_packages


@dataclass(frozen=True)
class Prepared:
    """An experiment whose data, teachers and networks are there, or can be made.

    Args:
        experiment: what was asked for, with the students that its constraints leave, the benchmark
            of its published settings, the trials that one is compared with, numbers for an
            evaluation that is left to weights, and no more trials than a grid has.
        data: its images.
        teachers: by their labels.
        networks: by student and teacher, their shapes.
        starts: by network, what becomes of the weights that it begins with, and what of it is
            trained; those left out begin with fresh weights, or are ready.
        evaluation: how images are evaluated, in words, where weights decide it; else empty.
        excluded: the students that cost too much, with the reason in words.
        measured: by student, what was measured of it on this machine to decide that.
    """

    experiment: Experiment
    data: ImageData
    teachers: Mapping[str, PlannedTeacher]
    networks: Mapping[tuple[str, str], NetworkPair]
    starts: Mapping[str, str]
    evaluation: str
    excluded: Mapping[str, str]
    measured: Mapping[str, NetworkCost]


@dataclass(frozen=True)
class Plan(Prepared):
    """An experiment that can be searched.

    Args:
        space: what is searched.
    """

    space: Space


@ending_hangs()
def plan(experiment: Experiment, storage: Storage, source: str, *, begun: bool = False) -> Plan:
    """Checks storage, data, teachers, taps and methods.

    Args:
        experiment: what a user asks for.
        storage: where the search would be kept.
        source: the experiment's file, for messages.
        begun: whether it comes from a record, where it is decided whose published settings come
            first, and among which trials one is compared; earlier versions did not decide.

    Raises:
        ExperimentError: with all that is wrong.
    """
    problems: list[Problem] = []
    if not experiment.data.heldout_fraction:
        message = (
            "is 0, which would rank the trials on the test split; hold out a share of the training "
            "part, like 0.1"
        )
        problems.append(Problem(key="data.heldout_fraction", message=message))
    prepared, more = _prepared(experiment, storage, source, begun=begun)
    problems += more
    experiment, pairs = prepared.experiment, prepared.networks
    if len(pairs) < len(experiment.pairs):
        raise ExperimentError(source, problems)
    problems += missing_packages(experiment)
    try:
        space = derive_space(experiment, pairs, source)
    except ExperimentError as error:
        raise ExperimentError(source, (*problems, *error.problems)) from None
    asked, more = asked_points(experiment, space)
    space = replace(space, asked=asked)
    prior, without = prior_points(experiment, storage, space)
    problems += more + without
    if problems:  # what follows takes seconds
        raise ExperimentError(source, problems)
    # Teachers of one network differ in their weights alone.
    different = {(student, each.teacher.network): label for (student, label), each in pairs.items()}
    for (student, _), teacher in different.items():
        networks = pairs[student, teacher]
        update = {
            "student": experiment.student_configs[student],
            "teacher": experiment.teacher_configs[teacher],
        }
        one = experiment.model_copy(update=update)
        points = derive_space(one, {one.pairs[0]: networks}, source).points_to_check()
        words = networks_in_words(experiment, networks)
        problems += _refusals(one, points, networks, prepared.data, words)
    if not problems and not begun:
        problems = reused_problems(experiment, prepared.data)
    if problems:
        raise ExperimentError(source, problems)
    space = replace(space, prior=tuple(each.point for each in prior))
    search = experiment.search.model_copy(update={"prior": prior})
    experiment = experiment.model_copy(update={"search": search})
    return Plan(**vars(prepared) | {"experiment": capped(experiment, space)}, space=space)


@ending_hangs()
def prepare(experiment: Experiment, storage: Storage, source: str) -> Prepared:
    """Checks as `plan` does, but for methods and space; nothing need be held out.

    Raises:
        ExperimentError: with all that is wrong.
    """
    prepared, problems = _prepared(experiment, storage, source, begun=False)
    if problems:
        raise ExperimentError(source, problems)
    return prepared


@ending_hangs()
def check_methods(prepared: Prepared, points: Iterable[Point], source: str) -> None:
    """Tries the methods of points of one student on a few images.

    Raises:
        ExperimentError: with all that cannot work.
    """
    experiment = prepared.experiment
    (networks,) = prepared.networks.values()
    student = networks.student.network
    problems = _refusals(experiment, points, networks, prepared.data, student)
    if problems:
        raise ExperimentError(source, problems)


def _prepared(
    experiment: Experiment, storage: Storage, source: str, *, begun: bool
) -> tuple[Prepared, list[Problem]]:
    """What needs no space, and what is wrong with it.

    Raises:
        ExperimentError: so much is wrong that nothing more can be said.
    """
    use_plugins(experiment)
    problems = _network_problems(experiment)
    if problems:
        raise ExperimentError(source, problems)
    experiment, evaluation = with_evaluation(experiment, source)
    workspace = workspace_of(storage)
    try:
        data = open_data(experiment.data, workspace)
    except ConfigError as error:
        raise ExperimentError(source, [Problem(key="data", message=str(error))]) from None
    except OSError as error:  # the table is made in the storage
        raise ExperimentError(source, [_unwritable(storage, error)]) from None
    unbuilt: list[Problem] = []
    pairs, constrained = _network_pairs(experiment, data, unbuilt), Constrained(experiment)
    if not begun:
        built = dict.fromkeys(student for student, _ in pairs)
        constrained = within_constraints(experiment, data, built, source)
        experiment = _decided(constrained.experiment, data)
        pairs = {each: pair for each, pair in pairs.items() if each in experiment.pairs}
    problems = _storage_problems(storage) + _warm_start_problems(experiment, storage)
    try:
        check_metric(experiment.search.metric, data.num_classes)
    except ConfigError as error:
        problems.append(Problem(key="search.metric", message=str(error)))
    teachers, more = planned_teachers(experiment, data, workspace)
    problems += more
    beginning = [label for label, each in teachers.items() if not each.ready]
    starts, more = starts_in_words(experiment, data, beginning)
    problems += more + [problem for problem in unbuilt if problem not in more]
    networks = dict.fromkeys(experiment.student_configs[label].backbone for label, _ in pairs)
    problems += drop_path_problems(experiment, networks, data) + view_problems(experiment, data)
    prepared = Prepared(
        experiment,
        data,
        teachers,
        pairs,
        starts,
        evaluation,
        constrained.excluded,
        constrained.measured,
    )
    return prepared, problems


def _decided(experiment: Experiment, data: ImageData) -> Experiment:
    """An experiment with what a search decides as it begins: whose published settings come first,
    and among which trials one is compared, where there are several students."""
    if experiment.published is None:
        published = benchmark_of(data.image_size)
        experiment = experiment.model_copy(update={"published": published})
    if len(experiment.students) > 1:
        by_student = experiment.search.stopping_by_student()
        experiment = experiment.model_copy(update={"search": by_student})
    return experiment


def _network_problems(experiment: Experiment) -> list[Problem]:
    """Networks that their library does not have, for those of the catalogue are known to be there;
    and those that cannot be judged."""
    students = dict.fromkeys(each.backbone for each in experiment.student_configs.values())
    named = {
        f"{key}.{part}": list(networks)
        for label in experiment.teachers
        for key, teacher in experiment.members(label).items()
        for part, networks in (
            ("backbone", (teacher.backbone,)),
            ("assistants", teacher.assistants),
        )
    }
    named["student"] = list(students)
    problems = []
    for key, names in named.items():
        for name in names:
            try:
                constructor = constructor_of(name)
                if experiment.data.judge is not None:
                    with torch.device("meta"):
                        check_judged(constructor(2, 3), name)
            except ConfigError as error:
                problems.append(Problem(key=key, message=str(error)))
    return problems


def _network_pairs(
    experiment: Experiment, data: ImageData, problems: list[Problem]
) -> dict[tuple[str, str], NetworkPair]:
    """By student and teacher; a pair that cannot be built is missing, and its reason among the
    problems."""
    pairs = {}
    students, teachers = experiment.student_configs, experiment.teacher_configs
    for label in teachers:
        for key, teacher in experiment.members(label).items():
            if teacher.assistants:
                try:
                    for above, below in pairwise(teacher.networks):
                        network_pair(below, above, data)
                except ConfigError as error:
                    problems.append(Problem(key=f"{key}.assistants", message=str(error)))
    for student, label in experiment.pairs:
        networks = students[student].backbone, teachers[label].network
        try:
            pairs[student, label] = network_pair(*networks, data)
        except ConfigError as error:
            problem = Problem(key="student", message=str(error))
            if problem not in problems:  # a network's comes with every other one
                problems.append(problem)
    return pairs


def _refusals(
    experiment: Experiment,
    points: Iterable[Point],
    networks: NetworkPair,
    data: ImageData,
    words: str,
) -> list[Problem]:
    """What of the points cannot work with the one student and teacher, which messages call `words`:
    the methods of each go forward and backward on a few images. Of a space these are every
    candidate, as published or as narrowed, with every choice of layers."""
    student = networks.student.network
    chosen = torch.stack([(data.train.labels == label).nonzero()[0, 0] for label in (0, 1)])
    (images,) = data.train.views(chosen, 0, len(chosen))
    labels = data.train.labels[chosen]
    recipes = experiment.training.variants("linear_probe", "frozen_stages")
    check = MethodCheck(
        build_classifier(student, data, seed=0),
        build_classifier(networks.teacher.network, data, seed=0),
        networks,
        images,
        labels,
        *(fine_tuning(recipe, student) for recipe in recipes),
    )
    problems: list[Problem] = []
    for point in points:
        for term in trial_config(experiment, point).objective:
            reason = check.attempt(term)
            problem = Problem(
                key="objective", message=f"{term.method} cannot teach {words}: {reason}"
            )
            if reason and problem not in problems:
                problems.append(problem)
    return problems


def _same_images(first: Experiment, second: Experiment) -> bool:
    """Whether the trials of two searches have the same images, but for what is searched of them."""
    irrelevant = {"decoded_gb"}
    if first.searched_views is not None or second.searched_views is not None:
        irrelevant.add("augmentation")
    ours, theirs = (
        (each.data.model_dump(exclude=irrelevant), own_data_code(each)) for each in (first, second)
    )
    return ours == theirs


def _warm_start_problems(experiment: Experiment, storage: Storage) -> list[Problem]:
    """Earlier searches that are not there, or whose accuracies cannot be compared."""
    problems = []
    for number, name in enumerate(experiment.search.warm_start):
        message = ""
        try:
            earlier = read_record(storage, name).experiment
        except KdsearchError as error:
            message = str(error)
        else:
            if not _same_images(earlier, experiment):
                message = (
                    f"search {name!r} had other data, so its accuracies cannot be compared; "
                    f"search.prior begins with its best settings"
                )
            elif earlier.search.metric != experiment.search.metric:
                message = f"search {name!r} ranked by {earlier.search.metric}, this one does not"
        if message:
            problems.append(Problem(key=f"search.warm_start.{number}", message=message))
    return problems


def evaluation(prepared: Prepared) -> list[str]:
    """How weights have images evaluated, in a line; none where they were not asked."""
    return [f"evaluate {prepared.evaluation}"] if prepared.evaluation else []


def constrained(prepared: Prepared) -> list[str]:
    """What constraints came to, a line each; none where they are not asked for."""
    return constrained_in_words(prepared.excluded, prepared.measured)


def starts(prepared: Prepared) -> list[str]:
    """What each network begins with that does not begin with fresh weights, a line each."""
    return [f"start    {network}: {words}" for network, words in prepared.starts.items()]


def recipes(experiment: Experiment) -> list[str]:
    """How teachers and students are trained, a line each; none for a teacher that is not."""
    several = len(experiment.teachers) > 1
    named: dict[str, BaseRecipe | None] = {
        f"teacher {name}" if several or name != label else "teacher": teacher.training
        for label in experiment.teachers
        for name, _, teacher in named_members(experiment, label)
    }
    named["students"] = experiment.training
    return [f"recipe   {who}: {recipe}" for who, recipe in named.items() if recipe is not None]


def executions(prepared: Plan, storage: Storage) -> list[str]:
    """By network, the precision and layout that are fastest on this machine, in words."""
    experiment, device = prepared.experiment, device_of_trials(prepared.experiment)
    torch.set_num_threads(experiment.resources.cpus)
    found = measured_executions(experiment, prepared.data, workspace_of(storage), device)
    teachers = dict.fromkeys(each.network for each in experiment.teacher_configs.values())
    networks = found.students | {f"teacher {name}": found.of_teacher(name) for name in teachers}
    why = f"fastest on this machine ({device.type}); a search measures where its trials run"
    if experiment.training.acceleration == "off":
        why = "as training.acceleration is off"
    return [
        f"compute  {network}: {_in_words(execution)}, {why}"
        for network, execution in networks.items()
    ]


def _in_words(execution: Execution) -> str:
    layout = "channels last" if execution.channels_last else "channels first"
    beside = ", narrow maps side by side" if execution.side_by_side else ""
    return f"{execution.precision}, {layout}{beside}"


def _storage_problems(storage: Storage) -> list[Problem]:
    probe = f".write-test-{secrets.token_hex(8)}"
    try:
        storage.write(probe, b"")
        storage.remove(probe)
    except OSError as error:
        with suppress(OSError):
            storage.remove(probe)
        return [_unwritable(storage, error)]
    return []


def _unwritable(storage: Storage, error: OSError) -> Problem:
    reason = error.strerror or error
    message = f"{storage.uri} cannot be written to: {reason}; choose another with --storage"
    return Problem(key="storage", message=message)
