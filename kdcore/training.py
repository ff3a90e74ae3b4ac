"""The training loop: cross-entropy plus weighted terms, one report after each epoch."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdcore.checkpoint import read_checkpoint, write_checkpoint
from kdcore.classifier import Classifier
from kdcore.cuda_graph import WARMUP_STEPS, CapturedStep
from kdcore.data import ImageData, Split
from kdcore.execution import Execution, keep_freed_memory
from kdcore.method import Method
from kdcore.taps import Batch, Tap, Taps
from kdcore.teacher_cache import CachedView, TeacherCache, Wanted, rounded

# Where the step schedule divides the learning rate by 10: epochs 150, 180 and 210 of the field's
# 240.
_STEP_MILESTONES = (0.625, 0.75, 0.875)


class Recipe(BaseModel):
    """How a network is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images in a step; a last incomplete batch is left out of its epoch.
        optimizer: `sgd` with momentum, or `adamw`.
        learning_rate: at its peak.
        momentum: of SGD.
        weight_decay: of all parameters.
        schedule: after the warm-up, `cosine` to zero, `step` (a tenth after 62.5, 75 and 87.5
            percent), or `constant`.
        warmup_epochs: linear rise of the learning rate at the start.
        gradient_clip_norm: the largest norm of the gradient of student and helpers together; none:
            no limit.
        acceleration: `auto` takes half precision and the memory layout with which a step was
            measured to be fastest on the device; `off` is float32.
        compile: `torch.compile` the student; worth its minute at the start of each process where
            trials are long. It needs a C++ compiler.
        cuda_graph: on a GPU, replay each epoch's steps as one CUDA graph; worth it where the
            kernels are shorter than their launches. A method that waits for the device cannot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    gradient_clip_norm: float | None = Field(None, gt=0)
    acceleration: Literal["auto", "off"] = "auto"
    compile: bool = False
    cuda_graph: bool = False

    @model_validator(mode="after")
    def _warmup_within_budget(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, but must be below epochs, which is "
                f"{self.epochs}"
            )
        return self

    def learning_rate_at(self, progress_epochs: float) -> float:
        """The learning rate after so many epochs, 0 to `epochs`."""
        if progress_epochs < self.warmup_epochs:
            return self.learning_rate * progress_epochs / self.warmup_epochs
        share = (progress_epochs - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** sum(
                share >= milestone for milestone in _STEP_MILESTONES
            )
        return self.learning_rate


@dataclass(frozen=True)
class Term:
    """A method at work in an objective, under its name in the catalogue."""

    name: str
    method: Method


@dataclass(frozen=True)
class EpochReport:
    """What an epoch gave. Accuracies are shares of 1, losses in nats and means over images.

    Args:
        epoch: from 1.
        epochs: the run's budget.
        train_loss: cross-entropy plus weighted terms.
        train_terms: each term before its weight, by name: `cross_entropy`, `auxiliary` (the sum
            over the auxiliary classifiers of a network that has some), and the methods'.
        train_accuracy: on the augmented training images, while learning.
        heldout_accuracy: after the epoch, in float32.
        heldout_loss: cross-entropy, likewise.
        best_heldout_accuracy: of all epochs so far; equal ones are decided by the lower held-out
            loss.
        best_epoch: the epoch that it belongs to.
        learning_rate: of the last step.
        epoch_seconds: training and evaluation.
        teacher: where its outputs came from: `cached`; `computed` now for all; `live` in every
            step; `none` were needed.
        teacher_seconds_saved: what computing the cached outputs had taken.
        parts: that each batch went through the networks in, one after the other.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_terms: dict[str, float]
    train_accuracy: float
    heldout_accuracy: float
    heldout_loss: float
    best_heldout_accuracy: float
    best_epoch: int
    learning_rate: float
    epoch_seconds: float
    teacher: Literal["none", "live", "computed", "cached"] = "none"
    teacher_seconds_saved: float = 0.0
    parts: int = 1


class NonFiniteLossError(ArithmeticError):
    """A loss became NaN or infinite; the message names the first term that did."""


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def evaluate(classifier: Classifier, split: Split) -> tuple[float, float]:
    """Accuracy (share of 1) and cross-entropy (nats) on unaugmented images, in float32.

    Args:
        classifier: is put into evaluation mode, and back.
        split: at least one image; may lie on another device.
    """
    was_training = classifier.training
    classifier.eval()
    device = classifier.mean.device
    right = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    size = split.batch_without_gradients()
    every_label = torch.split(split.labels.to(device), size)
    for images, labels in zip(split.batches(size), every_label, strict=True):
        logits = classifier(images.to(device))
        right += (logits.argmax(1) == labels).sum()
        loss += cross_entropy(logits, labels, reduction="sum")
    classifier.train(was_training)
    return right.item() / len(split), loss.item() / len(split)


def _optimizer(
    recipe: Recipe,
    decayed: Sequence[nn.Parameter],
    undecayed: Sequence[nn.Parameter],
    *,
    captured: bool,
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": recipe.weight_decay}]
    if undecayed:
        groups.append({"params": undecayed, "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, fused=True)
        if recipe.momentum > 0:
            # The fused step cannot make the momentum of parameters whose first gradient comes
            # later than others', as that of what waits for a preparation does. Momentum 0 is where
            # all begin anyway.
            for parameter in (*decayed, *undecayed):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, recipe.learning_rate, fused=True, capturable=captured)


class _Meters:
    """Sums over an epoch that stay on the device: nothing in the loop waits for them."""

    def __init__(self, terms: int, device: torch.device) -> None:
        self.sums = torch.zeros(terms + 1, dtype=torch.float64, device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.first_bad_step = torch.full((terms,), torch.iinfo(torch.int64).max, device=device)

    def add(
        self, terms: Tensor, weighted: Tensor, logits: Tensor, labels: Tensor, share: float
    ) -> None:
        """Counts a part of a step's images, which are a share of them."""
        # All in place: a captured step finds the sums where it left them.
        self.sums += share * torch.cat([weighted.sum()[None], terms])
        self.right += (logits.argmax(1) == labels).sum()
        this_step = torch.minimum(self.first_bad_step, self.step)
        self.first_bad_step.copy_(torch.where(weighted.isfinite(), self.first_bad_step, this_step))


class _Run:
    """Student, helpers and optimiser on their device: what changes while training."""

    def __init__(
        self,
        student: Classifier,
        terms: Sequence[Term],
        teacher: Classifier | None,
        data: ImageData,
        recipe: Recipe,
        device: torch.device,
        execution: Execution,
        teacher_execution: Execution,
        cache: TeacherCache | None,
        parts: int,
    ) -> None:
        self.execution, self.teacher_execution, self.parts = execution, teacher_execution, parts
        self.student = student.train()
        self.methods = [term.method for term in terms]
        self.helpers = nn.ModuleList(self.methods).train()
        # Small gradients vanish in float16 unless they are scaled up; elsewhere this does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=execution.precision == "float16")
        # The scaler waits for the device, which a graph cannot.
        graphs = device.type == "cuda" and not self.scaler.is_enabled()
        self.captures = recipe.cuda_graph and graphs
        self.look: Callable[..., Taps] = student.taps
        if recipe.compile:
            self.look = torch.compile(student.taps, dynamic=False)
        execution.place(self.student, device)
        execution.place(self.helpers, device)
        self.needs = frozenset[Tap]().union(*(method.needs for method in self.methods))
        self.wanted = Wanted(
            self.needs,
            frozenset(pair.teacher for method in self.methods for pair in method.pairs),
        )
        self.teacher = teacher
        batch_statistics = any(method.teacher_batch_statistics for method in self.methods)
        if teacher and batch_statistics:
            _use_batch_statistics(teacher)
        cacheable = self.wanted.cacheable and not batch_statistics
        self.cache = cache if teacher and cacheable else None
        # A network's auxiliary classifiers, where it has any, are one more term.
        backbone = student.backbone
        auxiliary = {"auxiliary": backbone.auxiliary_weight} if backbone.auxiliary else {}
        self.names = ["cross_entropy", *auxiliary, *(term.name for term in terms)]
        self.weights = torch.tensor(
            [1.0, *auxiliary.values(), *(method.params.weight for method in self.methods)],
            device=device,
        )
        self.data, self.recipe, self.device = data, recipe, device
        self.split = data.train.to(device)
        self.batch_size = min(recipe.batch_size, len(self.split))
        self.steps = len(self.split) // self.batch_size
        spared = {
            id(parameter)
            for method in self.methods
            for name, parameter in method.named_parameters()
            if name in method.undecayed
        }
        self.parameters = [*student.parameters(), *self.helpers.parameters()]
        self.optimizer = _optimizer(
            recipe,
            [parameter for parameter in self.parameters if id(parameter) not in spared],
            [parameter for parameter in self.parameters if id(parameter) in spared],
            captured=self.captures,
        )

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "student": self.student.backbone.state_dict(),
            "helpers": self.helpers.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.student.backbone.load_state_dict(state["student"])
        self.helpers.load_state_dict(state["helpers"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def lesson(self, view: int) -> CachedView | None:
        """The teacher's outputs for a view, where they are cached; else the teacher is made ready
        to give them."""
        cached = self.cache.view(view, self.wanted) if self.cache is not None else None
        if cached is None and self.teacher is not None:
            self.teacher_execution.place(self.teacher, self.device)
        return cached

    def source(self, lesson: CachedView | None) -> Literal["none", "live", "computed", "cached"]:
        """Where the teacher's outputs come from in an epoch with this lesson."""
        if self.teacher is None:
            return "none"
        if lesson is None:
            return "live"
        return "computed" if lesson.computed else "cached"

    def epoch(self, epoch: int, order: Tensor, view: int, lesson: CachedView | None) -> _Meters:
        """Trains on the images in the given order of positions."""
        meters = _Meters(len(self.names), self.device)
        preparing = [
            epoch <= method.preparation_epochs(self.recipe.epochs) for method in self.methods
        ]
        # While any method prepares, nothing else trains: its preparation alone is minimised.
        weights, counted = self.weights, [True] * len(self.names)
        if any(preparing):
            counted = [False] * (len(self.names) - len(preparing)) + preparing
            weights = torch.tensor([float(counts) for counts in counted], device=self.device)
        for method in self.methods:
            method.begin_epoch(epoch, self.recipe.epochs)
        order = order[: self.steps * self.batch_size]
        views = self.split.views(order, view, self.batch_size)

        def step(images: Tensor, positions: Tensor) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            for part, places in zip(
                images.tensor_split(self.parts), positions.tensor_split(self.parts), strict=True
            ):
                batch = Batch(self.split.labels[places], places, epoch, self.recipe.epochs)
                share = len(places) / len(positions)
                self._add_gradients(part, batch, lesson, weights, counted, meters, share)
            meters.step += 1
            if self.recipe.gradient_clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()

        captured: CapturedStep | None = None
        for number, images in enumerate(views):
            positions = order[number * self.batch_size : (number + 1) * self.batch_size]
            self._set_rate(self.recipe.learning_rate_at(epoch - 1 + (number + 0.5) / self.steps))
            if self.captures and number == WARMUP_STEPS:
                captured = CapturedStep(step, images, positions)
            (captured or step)(images, positions)
        return meters

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if self.captures:  # a captured step reads it where it lies
                if not isinstance(group["lr"], Tensor):
                    group["lr"] = torch.tensor(rate, device=self.device)
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _add_gradients(
        self,
        images: Tensor,
        batch: Batch,
        lesson: CachedView | None,
        weights: Tensor,
        counted: Sequence[bool],
        meters: _Meters,
        share: float,
    ) -> None:
        """Adds those of some images, which are a share of the step's."""
        labels = batch.labels
        with self.execution.autocast(self.device):
            shown = self.look(images, self.needs, labels)
            taught = self._taught(images, batch, lesson, shown)
            terms = [cross_entropy(shown.logits.float(), labels)]
            if shown.auxiliary_logits:
                guesses = [cross_entropy(each.float(), labels) for each in shown.auxiliary_logits]
                terms.append(torch.stack(guesses).sum())
            terms += [method(shown, taught, batch).float() for method in self.methods]
        # What does not count gives no gradient. A gradient of zero would leave weights that wait
        # to weight decay: 0.05 / (1 - 0.9) * 5e-4 * 23,430 steps (the field's 30 epochs of CIFAR)
        # = 5.9, and e^-5.9 = 0.003 of them would be left.
        values = torch.stack(
            [term if counts else term.detach() for term, counts in zip(terms, counted, strict=True)]
        )
        weighted = weights * values
        torch.autograd.backward(self.scaler.scale(share * weighted.sum()))
        for method in self.methods:
            method.after_step()
        meters.add(values.detach(), weighted.detach(), shown.logits.detach(), labels, share)

    def _taught(self, images: Tensor, batch: Batch, lesson: CachedView | None, shown: Taps) -> Taps:
        """The teacher's outputs; where no term reads any, the student's stand in for them."""
        if self.teacher is None:
            return shown
        if lesson is not None:
            return lesson.at(batch.indices)
        with torch.no_grad(), self.teacher_execution.autocast(self.device):
            taps = self.teacher.taps(images, self.needs, batch.labels)
        # In float32, as the cache gives them: then it changes nothing that is learned.
        return taps.widened() if self.cache is None else rounded(taps, self.cache.config)


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
) -> Iterator[EpochReport]:
    """Trains a student, and yields a report after each epoch.

    Args:
        student: is trained in place; after the last epoch it has the last epoch's weights.
        terms: the objective beside cross-entropy.
        teacher: in evaluation mode and frozen; none where no term needs one.
        data: what to learn from.
        recipe: how.
        seed: of the order of the images, and of what methods draw.
        identity: names the run; a checkpoint of another run is refused.
        device: where to compute.
        checkpoint_dir: written before each report; a checkpoint found there is continued.
        execution: how the student computes. A continued checkpoint keeps its own.
        teacher_execution: how the teacher does, likewise.
        cache: of the teacher's outputs; none: the teacher computes in every step.
        parts: as `kdcore.distill` explains.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
        ValueError: the checkpoint is damaged or belongs to another run.
    """
    state = read_checkpoint(checkpoint_dir, device) if checkpoint_dir is not None else None
    if state is not None:
        if state["identity"] != identity:
            raise ValueError(f"checkpoint in {checkpoint_dir} belongs to another run; remove it")
        execution = Execution.restored(state["execution"])
        # In version 0.1.0 both computed in the same way.
        teacher_execution = Execution.restored(state.get("teacher_execution", state["execution"]))
    if device.type == "cpu":
        keep_freed_memory()
    run = _Run(
        student, terms, teacher, data, recipe, device, execution, teacher_execution, cache, parts
    )
    heldout = data.heldout.to(device)
    finished, best = 0, None
    if state is not None:
        run.restore(state)
        finished, best = state["epoch"], state["best"]

    for epoch in range(finished + 1, recipe.epochs + 1):
        started = time.perf_counter()
        view = data.view_of(epoch)
        lesson = run.lesson(view)
        # An epoch draws from a state of its own: what is drawn between epochs, or before a
        # resumption, changes nothing, and a checkpoint need not hold it.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_epoch_seed(seed, epoch))
            meters = run.epoch(epoch, data.train.shuffled().to(device), view, lesson)
        _refuse_non_finite(meters, run.names, epoch)
        accuracy, heldout_loss = evaluate(student, heldout)
        if not math.isfinite(heldout_loss):
            raise NonFiniteLossError(
                f"the held-out loss is not finite after epoch {epoch}; lower the learning rate"
            )
        if best is None or (accuracy, -heldout_loss) > (best["accuracy"], -best["loss"]):
            best = {
                "epoch": epoch,
                "accuracy": accuracy,
                "loss": heldout_loss,
                "student": {k: v.clone() for k, v in student.backbone.state_dict().items()},
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
        means = (meters.sums / run.steps).tolist()
        yield EpochReport(
            epoch=epoch,
            epochs=recipe.epochs,
            train_loss=means[0],
            train_terms=dict(zip(run.names, means[1:], strict=True)),
            train_accuracy=meters.right.item() / (run.steps * run.batch_size),
            heldout_accuracy=accuracy,
            heldout_loss=heldout_loss,
            best_heldout_accuracy=best["accuracy"],
            best_epoch=best["epoch"],
            learning_rate=float(run.optimizer.param_groups[0]["lr"]),
            epoch_seconds=time.perf_counter() - started,
            teacher=run.source(lesson),
            teacher_seconds_saved=lesson.seconds_saved if lesson is not None else 0.0,
            parts=parts,
        )


def _use_batch_statistics(network: nn.Module) -> None:
    """Makes batch norms normalise by the batch, and leaves their running statistics as they are."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = True
            module.momentum = 0.0  # running = 1 * running + 0 * batch


def _epoch_seed(seed: int, epoch: int) -> int:
    """A seed for an epoch; runs with neighbouring seeds share none."""
    return seed * 1_000_003 + epoch


def _refuse_non_finite(meters: _Meters, names: Sequence[str], epoch: int) -> None:
    steps = meters.first_bad_step.tolist()
    first = min(range(len(names)), key=steps.__getitem__)
    if steps[first] == torch.iinfo(torch.int64).max:
        return
    raise NonFiniteLossError(
        f"the term {names[first]} is not finite at epoch {epoch}, step {steps[first] + 1}; "
        f"lower the learning rate or the term's weight"
    )


def best_student(checkpoint_dir: Path) -> dict[str, Any]:
    """The best epoch in a run's checkpoint: `student` (weights), `epoch`, `accuracy` and `loss`.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the checkpoint is damaged.
    """
    state = read_checkpoint(checkpoint_dir, torch.device("cpu"))
    if state is None:
        raise FileNotFoundError(f"no checkpoint in {checkpoint_dir}")
    best: dict[str, Any] = state["best"]
    return best


def identity_of(*parts: BaseModel) -> str:
    """A text that two runs share only if their settings are the same."""
    return json.dumps([part.model_dump(mode="json") for part in parts], sort_keys=True)
