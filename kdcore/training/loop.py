"""The training loop: cross-entropy plus weighted terms, one report after each epoch."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcore.backbones.normalization import Normalization
from kdcore.data.image_data import ImageData
from kdcore.data.split import Split
from kdcore.errors import CheckpointError, NonFiniteLossError
from kdcore.execution.execution import Execution
from kdcore.execution.fastest import keep_freed_memory
from kdcore.execution.workers import Workers
from kdcore.networks.classifier import Classifier, build_classifier
from kdcore.teacher_cache.cache import TeacherCache
from kdcore.training.checkpoint import read_checkpoint, write_checkpoint
from kdcore.training.evaluation import Evaluation, evaluate_classes
from kdcore.training.fine_tuning import FineTuning
from kdcore.training.judging import judged
from kdcore.training.metric import Metric
from kdcore.training.recipe import Recipe
from kdcore.training.report import EpochReport
from kdcore.training.run import Meters, Run, Term
from kdcore.training.timeline import Timeline


def train(
    student: Classifier,
    terms: Sequence[Term],
    teacher: Classifier | None,
    data: ImageData,
    recipe: Recipe,
    *,
    seed: int,
    identity: str,
    device: torch.device,
    checkpoint_dir: Path | None,
    execution: Execution = Execution(),  # noqa: B008  (frozen)
    teacher_execution: Execution = Execution(),  # noqa: B008
    cache: TeacherCache | None = None,
    parts: int = 1,
    tuning: FineTuning = FineTuning(),  # noqa: B008
    metric: Metric = "accuracy",
    workers: Workers = Workers(),  # noqa: B008
    labelled: Split | None = None,
    passes: int = 1,
) -> Iterator[EpochReport]:
    """Trains a student, and yields a report after each epoch.

    Args:
        student: trained in place; ends with the weights of the last epoch, not the best; where
            nothing is held out, with their moving average, if there is one.
        terms: added to cross-entropy.
        teacher: frozen and in evaluation mode; None if no term needs one.
        data: the images.
        recipe: optimiser, schedule, precision.
        seed: of the order of the images, and of the methods' random numbers.
        identity: of the run; a checkpoint of another run is refused.
        device: where to compute.
        checkpoint_dir: written before each report; a checkpoint found there is resumed.
        execution: of the student. A resumed checkpoint overrides it.
        teacher_execution: of the teacher, likewise.
        cache: of the teacher's outputs; None to run the teacher in every step.
        parts: see `kdcore.distill`.
        tuning: which parts of the student are trained, and how.
        metric: by which the best epoch is chosen.
        workers: this process among those that train the student together, all with the same
            arguments. Only the first of them reads and writes checkpoints and yields reports.
        labelled: the images to which the judge of the data fits its classifier after each epoch;
            the head of the best one is then a linear probe. None: the student's own head is
            evaluated, also where the data has a judge.
        passes: over the images in an epoch, each with a view of its own; more than 1 without terms.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
        CheckpointError: the checkpoint is damaged, or belongs to another run.
    """
    recipe.check_workers(workers.number)
    state = workers.from_first(
        lambda: read_checkpoint(checkpoint_dir, device) if checkpoint_dir is not None else None
    )
    if state is not None:
        if state["identity"] != identity:
            raise CheckpointError(
                f"checkpoint in {checkpoint_dir} belongs to another run; remove it, or choose "
                "another folder"
            )
        execution = Execution.restored(state["execution"])
        # Version 0.1.0 had one execution for both.
        teacher_execution = Execution.restored(state.get("teacher_execution", state["execution"]))
    if device.type == "cpu":
        keep_freed_memory()
    run = Run(
        *(student, terms, teacher, data, recipe, device),
        *(execution, teacher_execution, cache, parts, tuning, workers),
        passes=passes,
    )
    data = replace(data, heldout=data.heldout.to(device))
    nothing_held_out = data.config.heldout_fraction == 0
    finished, best = 0, None
    if state is not None:
        run.restore(state)
        # A checkpoint of before knows accuracies alone.
        finished, best = state["epoch"], {"score": state["best"]["accuracy"], **state["best"]}

    for epoch in range(finished + 1, run.epochs + 1):
        started = time.perf_counter()
        timeline = Timeline(device)
        views = [data.view_of(passes * (epoch - 1) + number) for number in range(1, passes + 1)]
        cached = None  # before the next one takes its memory
        cached = run.cached_view(views[0])
        timeline.mark("teacher")
        # Each epoch has a random state of its own, so that checkpoints need none and a resumed run
        # draws the same numbers.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_epoch_seed(seed, epoch))
            meters = run.epoch(epoch, views, cached, timeline)
        decoding_share = data.train.decoding_share()
        _refuse_non_finite(meters, run.names, epoch)
        if workers.rank > 0:
            continue
        (found, head), result, of_average = _evaluated(student, data, labelled), student, False
        if not math.isfinite(found.loss):
            raise NonFiniteLossError(
                f"the held-out loss is not finite after epoch {epoch}; lower the learning rate"
            )
        if run.average is not None:
            averaged, its_head = _evaluated(run.average.network, data, labelled)
            # Without held-out images, a choice would be made on the test split.
            of_average = nothing_held_out or _place(averaged, metric) > _place(found, metric)
            if of_average:
                found, head, result = averaged, its_head, run.average.network
        timeline.mark("evaluation")
        if best is None or _place(found, metric) > (best["score"], -best["loss"]):
            best = {
                "epoch": epoch,
                "accuracy": found.accuracy,
                "loss": found.loss,
                "score": found.by(metric),
                "student": {k: v.clone() for k, v in result.backbone.state_dict().items()} | head,
                "normalization": [list(each) for each in student.normalization],
                "origin": dict(student.origin),
                **({"suffix": suffix} if (suffix := student.backbone.suffix) else {}),
            }
        if checkpoint_dir is not None:
            progress = {
                "identity": identity,
                "execution": asdict(execution),
                "teacher_execution": asdict(teacher_execution),
                "epoch": epoch,
                "best": best,
            }
            write_checkpoint(checkpoint_dir, run.state() | progress)
            timeline.mark("checkpoint")
        means = (meters.sums / run.steps).tolist()
        yield EpochReport(
            epoch=epoch,
            epochs=run.epochs,
            train_loss=means[0],
            train_terms=dict(zip(run.names, means[1:], strict=True)),
            train_accuracy=run.accuracy_of(meters),
            heldout_accuracy=found.accuracy,
            heldout_loss=found.loss,
            best_heldout_accuracy=best["accuracy"],
            best_epoch=best["epoch"],
            learning_rate=float(run.optimizer.param_groups[0]["lr"]),
            epoch_seconds=time.perf_counter() - started,
            teacher=run.teacher_source(cached),
            teacher_seconds_saved=cached.seconds_saved if cached is not None else 0.0,
            parts=parts,
            of_average=of_average,
            seconds_by_part=timeline.seconds(decoding_share),
            heldout_balanced_accuracy=found.balanced_accuracy,
            heldout_top5=found.top5,
            best_score=best["score"] if metric != "accuracy" else None,
        )
    if run.average is not None and nothing_held_out:
        student.backbone.load_state_dict(run.average.network.backbone.state_dict())


def _evaluated(
    network: Classifier, data: ImageData, labelled: Split | None
) -> tuple[Evaluation, dict[str, Tensor]]:
    """On the held-out images; and the tensors of the head, where that is not the network's own."""
    if labelled is None or data.config.judge is None:
        return evaluate_classes(network, data.heldout), {}
    return judged(network, data.config.judge, labelled, data.heldout)


def _place(found: Evaluation, metric: Metric) -> tuple[float, float]:
    """Is larger for the better of two evaluations; the loss breaks ties."""
    return found.by(metric), -found.loss


def _epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch, which no run with a neighbouring seed shares."""
    return seed * 1_000_003 + epoch


def _refuse_non_finite(meters: Meters, names: Sequence[str], epoch: int) -> None:
    steps = meters.first_bad_step.tolist()
    first = min(range(len(names)), key=steps.__getitem__)
    if steps[first] == torch.iinfo(torch.int64).max:
        return
    raise NonFiniteLossError(
        f"the term {names[first]} is not finite at epoch {epoch}, step {steps[first] + 1}; "
        f"lower the learning rate or the term's weight"
    )


def best_classifier(network: str, data: ImageData, best: Mapping[str, Any]) -> Classifier:
    """The student of a checkpoint's best epoch, on the CPU.

    Args:
        network: its name in the catalogue.
        data: the images that it was trained on.
        best: as `best_student` returns it.

    Raises:
        RuntimeError: the checkpoint is of another network.
    """
    normalization = None
    if "normalization" in best:  # in version 0.1.0 always that of the data
        normalization = Normalization(*map(tuple, best["normalization"]))
    whole = network + best.get("suffix", "")
    student = build_classifier(whole, data, seed=0, normalization=normalization)
    student.origin = best.get("origin", {})
    student.backbone.load_state_dict(best["student"])
    return student


def best_student(checkpoint_dir: Path) -> dict[str, Any]:
    """The best epoch of a checkpoint: `student` (its weights), `epoch`, `accuracy`, `loss`, and
    what `best_classifier` reads.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    state = read_checkpoint(checkpoint_dir, torch.device("cpu"))
    if state is None:
        raise FileNotFoundError(f"no checkpoint in {checkpoint_dir}")
    best: dict[str, Any] = state["best"]
    return best
