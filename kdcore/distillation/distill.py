"""Distills one student: from a frozen configuration to an iterator of epoch reports."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.probe import affine_parameters, classifier_weight
from kdcore.backbones.reused_classifier import with_classifier_of
from kdcore.contract.network_pair import NetworkPair
from kdcore.data.image_data import ImageData, open_data
from kdcore.data.split import Split
from kdcore.distillation.config import TermConfig, TrialConfig
from kdcore.errors import ConfigError
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import fastest_execution
from kdcore.execution.workers import Workers
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import Classifier, probe_for
from kdcore.networks.initial_weights import build_student, initial_weights
from kdcore.networks.reused_classifier import reuse_classifier
from kdcore.teacher.teacher import WEIGHTS, load_teacher, prepare_teacher, teacher_folder
from kdcore.teacher_cache.cache import TeacherCache
from kdcore.training.evaluation import default_device
from kdcore.training.fine_tuning import fine_tuning
from kdcore.training.judging import check_judged
from kdcore.training.loop import train
from kdcore.training.report import EpochReport
from kdcore.training.run import Term


def network_pair(
    student: str, teacher: str, data: ImageData, teacher_backbone: Backbone | None = None
) -> NetworkPair:
    """Shapes and parts of two networks on these images, from which methods are built.

    Args:
        student: the name of the network that learns.
        teacher: the name of the network that teaches.
        data: the images.
        teacher_backbone: the teacher with its weights; None for fresh batch norms, and for no
            classifier.

    Raises:
        NetworkError: a network is unknown, or the images are too small for it.
    """

    teaching = probe_for(teacher, data)
    norms, classifier = teaching.fresh_norms, None
    if teacher_backbone is not None:
        norms = affine_parameters(teacher_backbone)
        classifier = classifier_weight(teacher_backbone)
    return NetworkPair(
        probe_for(student, data).shapes, teaching.shapes, data.train.labels, norms, classifier
    )


def reuses_classifier(objective: Iterable[TermConfig]) -> bool:
    """Whether the student takes over its teacher's classifier."""
    return any(CATALOGUE[term.method].reuses_classifier for term in objective)


def build_terms(
    objective: tuple[TermConfig, ...], networks: NetworkPair, seed: int
) -> tuple[Term, ...]:
    """Builds the methods of an objective; `seed` decides the initial weights of their helpers.

    Raises:
        ConfigError: a method cannot work on these networks; the message says why.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tuple(
            Term(term.method, CATALOGUE[term.method](term.params, networks)) for term in objective
        )


def distill(
    config: TrialConfig,
    *,
    workspace: str | Path = "runs",
    checkpoint_dir: str | Path | None = None,
    device: torch.device | None = None,
    parts: int = 1,
    execution: Execution | None = None,
    teacher_execution: Execution | None = None,
    workers: Workers = Workers(),  # noqa: B008  (frozen)
    cache_on_device: bool = True,
) -> Iterator[EpochReport]:
    """Trains one student and yields a report after each epoch.

    Args:
        config: data, networks, objective and recipe.
        workspace: folder for image tables, teachers and cached outputs. A missing teacher is
            trained first.
        checkpoint_dir: where a checkpoint is written before each report. A checkpoint found there
            is resumed, with the reports that the uninterrupted run would have given.
        device: where to compute; by default the GPU, if there is one.
        parts: gradient accumulation, where a whole batch does not fit into memory: each batch is
            split into this many parts, whose gradients are added up for one step. The learning
            rate stays right, but batch norms, and methods that compare the images of a batch, see
            one part at a time.
        execution: the student's precision and layout; by default the fastest, measured once in
            this workspace, or the plain one with `acceleration: off`.
        teacher_execution: the teacher's, likewise.
        workers: this process among those that train the student together, each with a part of the
            images of every batch; see `distill_together`. Only the first of them reads and writes
            checkpoints and yields reports.
        cache_on_device: whether the teacher's cached outputs may go to a GPU as a whole, where a
            view's fit; else they come by batches.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; the message names the term.
        ConfigError: data or weights are missing or damaged, or a method cannot work on these
            networks.
        CheckpointError: the checkpoint is damaged, or belongs to another run.
    """
    workspace = Path(workspace)
    device = device or default_device()
    data = seen = open_data(config.data, workspace)
    student = build_student(config.student, data, seed=config.seed)
    network = config.student.backbone
    data, labelled, passes = _with_or_without_labels(config, data, student)
    if config.training.acceleration == "off":
        execution, teacher_execution = execution or Execution(), teacher_execution or Execution()
    teacher = cache = None
    if any(CATALOGUE[term.method].needs for term in config.objective):
        if config.teacher_data is not None:
            seen = open_data(config.teacher_data, workspace)
        for _ in prepare_teacher(config.teacher, seen, workspace, device):
            pass
        folder = teacher_folder(config.teacher, seen, workspace)
        teacher = load_teacher(folder)
        if teacher_execution is None:
            asked = config.teacher.network, teacher, data.image_size, device, workspace
            teacher_execution = fastest_execution(*asked, workers=workers)
        if config.cache is not None:
            cache = TeacherCache(
                config.cache,
                workspace,
                teacher,
                folder / WEIGHTS,
                data,
                device=device,
                execution=teacher_execution,
                on_device=cache_on_device,
            )
    of_teacher = config.teacher.network, data, teacher.backbone if teacher else None
    networks = network_pair(network, *of_teacher)
    if teacher and reuses_classifier(config.objective):
        network = with_classifier_of(networks.student, networks.teacher)
        student = reuse_classifier(student, teacher, network, seed=config.seed)
        networks = network_pair(network, *of_teacher)
    if execution is None:
        execution = fastest_execution(
            network,
            student,
            data.image_size,
            device,
            workspace,
            batch_size=workers.share_of(config.training.batch_size).images,
            workers=workers,
        )
    terms = build_terms(config.objective, networks, config.seed)
    tuning = fine_tuning(config.training, network)
    for term in terms:
        if reason := tuning.refusal(term.method):
            raise ConfigError(f"{term.name} cannot teach {config.student}: {reason}")
    yield from train(
        student,
        terms,
        teacher,
        data,
        config.training,
        seed=config.seed,
        identity=_identity(config),
        device=device,
        checkpoint_dir=Path(checkpoint_dir) if checkpoint_dir is not None else None,
        execution=execution,
        teacher_execution=teacher_execution or Execution(),
        cache=cache,
        parts=parts,
        tuning=tuning,
        metric=config.metric,
        workers=workers,
        labelled=labelled,
        passes=passes,
    )


def _with_or_without_labels(
    config: TrialConfig, data: ImageData, student: Classifier
) -> tuple[ImageData, Split | None, int]:
    """The images that a student learns from; those that its judge fits its classifier to, None
    where there is no judge; and how often it sees all images in an epoch."""
    if data.unlabelled is None:
        return data, None, 1
    check_judged(student.backbone, config.student.backbone)
    if config.objective:
        return replace(data, train=data.unlabelled), data.train, 1
    # The control has as many steps as those that learn from a teacher.
    return data, data.train, max(1, round(len(data.unlabelled) / len(data.train)))


def _identity(config: TrialConfig) -> str:
    """The trial's, with what the student's weights are, wherever they are stored."""
    if config.student.weights is None:
        return config.identity
    weights = initial_weights(config.student.backbone, config.student.weights)
    return json.dumps([config.identity, weights.identity], sort_keys=True)
