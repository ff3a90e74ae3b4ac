"""A training run: its networks and optimiser, its steps, and the state that a checkpoint holds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise, repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcore.backbones.tracing.torch_private import BATCH_NORMS
from kdcore.contract.method import Method
from kdcore.contract.taps import STUDENTS_ALONE, Batch, Tap, Taps
from kdcore.data.image_data import ImageData
from kdcore.data.source import UNLABELLED
from kdcore.execution.cuda_graph import WARMUP_STEPS, CapturedStep
from kdcore.execution.execution import Execution
from kdcore.execution.synchronized_norms import synchronized_norms
from kdcore.execution.workers import OwnNumbers, Share, Workers
from kdcore.networks.classifier import Classifier
from kdcore.teacher_cache.cache import TeacherCache, Wanted, rounded
from kdcore.teacher_cache.view import CachedView, Rows
from kdcore.training.average import WeightAverage
from kdcore.training.fine_tuning import FineTuning
from kdcore.training.label_terms import label_terms
from kdcore.training.optimizer import build_optimizer, freeze, parameter_groups
from kdcore.training.recipe import Recipe
from kdcore.training.timeline import Timeline
from kdcore.training.whole_batch import whole_taps


@dataclass(frozen=True)
class Term:
    """A method of an objective, with its name in the catalogue."""

    name: str
    method: Method


class Meters:
    """Sums over an epoch, kept on the device so that no step synchronises with it."""

    def __init__(self, terms: int, device: torch.device) -> None:
        self.sums = torch.zeros(terms + 1, dtype=torch.float64, device=device)
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.first_bad_step = torch.full((terms,), torch.iinfo(torch.int64).max, device=device)

    def add(
        self, terms: Tensor, weighted: Tensor, logits: Tensor, labels: Tensor, share: float
    ) -> None:
        """Adds a part of a step, with its share of the step's images."""
        # In place, because a captured step adds to these tensors.
        self.sums += share * torch.cat([weighted.sum()[None], terms])
        self.right += (logits.argmax(1) == labels).sum()
        this_step = torch.minimum(self.first_bad_step, self.step)
        self.first_bad_step.copy_(torch.where(weighted.isfinite(), self.first_bad_step, this_step))

    def add_up(self, workers: Workers) -> None:
        """Makes them those of all processes."""
        workers.add_up([self.sums])
        workers.add_up([self.right])
        workers.smallest(self.first_bad_step)


@dataclass(frozen=True)
class _Epoch:
    """What is the same in all steps of an epoch.

    Args:
        number: of the epoch, from 1.
        cached: the teacher's outputs; None if it computes.
        weights: of the terms.
        counted: which of them count.
        meters: add up over the steps.
    """

    number: int
    cached: CachedView | None
    weights: Tensor
    counted: Sequence[bool]
    meters: Meters


class Run:
    """Student, helpers and optimiser on their device; see `train` for the arguments."""

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
        tuning: FineTuning,
        workers: Workers,
        passes: int = 1,
    ) -> None:
        self.workers, self.own_numbers = workers, OwnNumbers(workers)
        self.norms = synchronized_norms(workers if recipe.sync_batch_norms else Workers())
        self.execution, self.teacher_execution, self.parts = execution, teacher_execution, parts
        if recipe.drop_path is not None:
            student.backbone.set_drop_path(recipe.drop_path)
        self.student = student.train()
        self.methods = [term.method for term in terms]
        self.helpers = nn.ModuleList(self.methods).train()
        # Small gradients underflow in float16 unless scaled up.
        self.scaler = torch.amp.GradScaler(device.type, enabled=execution.precision == "float16")
        # The scaler synchronises with the device, which a graph cannot.
        graphs = device.type == "cuda" and not self.scaler.is_enabled()
        self.captures = recipe.cuda_graph and graphs and passes == 1
        self.run_student: Callable[..., Taps] = student.taps
        if recipe.compile:
            self.run_student = torch.compile(student.taps, dynamic=False)
        execution.place(self.student, device)
        execution.place(self.helpers, device)
        self.average = WeightAverage(student, recipe.ema_decay) if recipe.ema_decay else None
        self.needs = frozenset[Tap]().union(*(method.needs for method in self.methods))
        pairs = [pair for method in self.methods for pair in method.pairs]
        self.student_maps = frozenset(pair.student for pair in pairs)
        of_teacher = frozenset(pair.teacher for pair in pairs)
        self.wanted = Wanted(self.needs - STUDENTS_ALONE, of_teacher)
        self.teacher = teacher
        batch_statistics = any(method.teacher_batch_statistics for method in self.methods)
        if teacher and batch_statistics:
            teacher.use_batch_statistics()
        cacheable = self.wanted.cacheable and not batch_statistics
        self.cache = cache if teacher and cacheable else None
        self.split = data.train.to(device)
        self.strong = self.split.strong() if Tap.STRONG_LOGITS in self.needs else None
        self.has_labels = not bool((self.split.labels == UNLABELLED).any())
        self.data, self.recipe, self.device = data, recipe, device
        self._weigh(terms)
        self.epochs_on_top = recipe.epochs_on_top(method.params for method in self.methods)
        for method in self.methods:
            method.epochs_on_top = self.epochs_on_top
        self.epochs = self.epochs_on_top + recipe.epochs
        self.batch_size = min(recipe.batch_size, len(self.split))
        self.shares, self.own_places = workers.divided(self.batch_size, parts, device)
        ends = list(accumulate((share.images for share in self.shares), initial=0))
        self.places_of_parts = [slice(*both) for both in pairwise(ends)]
        batches = len(self.split) // self.batch_size
        self.accumulation = min(recipe.accumulation, batches)
        self.steps_in_pass = batches // self.accumulation
        self.steps = passes * self.steps_in_pass
        self.frozen_norms = freeze(student, tuning.frozen)
        self._prepare_optimizer(tuning)

    def _weigh(self, terms: Sequence[Term]) -> None:
        """Names and weights of what is minimised."""
        # Auxiliary classifiers, if there are any, are one more term.
        backbone = self.student.backbone
        crosses = {"cross_entropy": 1.0} if self.has_labels else {}
        if crosses and backbone.auxiliary:
            crosses["auxiliary"] = backbone.auxiliary_weight
        self.names = [*crosses, *(term.name for term in terms)]
        labels = max((method.params.cross_entropy for method in self.methods), default=1.0)
        self.weights = torch.tensor(
            [
                *(labels * weight for weight in crosses.values()),
                *(method.params.weight for method in self.methods),
            ],
            device=self.device,
        )

    @property
    def images_in_step(self) -> int:
        """Images in a step of the optimiser."""
        return self.batch_size * self.accumulation

    def _prepare_optimizer(self, tuning: FineTuning) -> None:
        """Groups what is trained by learning rate and weight decay."""
        undecayed = {
            id(parameter)
            for method in self.methods
            for name, parameter in method.named_parameters()
            if name in method.undecayed
        }
        trained = [each for each in self.student.parameters() if each.requires_grad]
        self.parameters = [*trained, *self.helpers.parameters()]
        if not self.recipe.decay_norms_and_biases:
            undecayed |= {id(each) for each in self.parameters if each.ndim <= 1}
        named = self.student.backbone.named_parameters()
        factors = {id(each): tuning.factors.get(name, 1.0) for name, each in named}
        groups = parameter_groups(self.parameters, undecayed, factors, self.recipe.weight_decay)
        self._factors = [factor for factor, _ in groups]
        self.optimizer = build_optimizer(
            self.recipe, [group for _, group in groups], captured=self.captures
        )

    def state(self) -> dict[str, Any]:
        """Everything that later epochs depend on."""
        return {
            "student": self.student.backbone.state_dict(),
            "helpers": self.helpers.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **({"average": self.average.state()} if self.average else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Loads what `state` returned."""
        self.student.backbone.load_state_dict(state["student"])
        self.helpers.load_state_dict(state["helpers"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.restore(state["average"])

    def cached_view(self, view: int) -> CachedView | None:
        """The teacher's cached outputs for a view; if there are none, places the teacher."""
        cached = self.cache.view(view, self.wanted) if self.cache is not None else None
        if cached is None and self.teacher is not None:
            self.teacher_execution.place(self.teacher, self.device)
        return cached

    def teacher_source(
        self, cached: CachedView | None
    ) -> Literal["none", "live", "computed", "cached"]:
        """Where the teacher's outputs come from in an epoch."""
        if self.teacher is None:
            return "none"
        if cached is None:
            return "live"
        return "computed" if cached.computed else "cached"

    def accuracy_of(self, meters: Meters) -> float | None:
        """The share of an epoch's images that were classified right; None without labels."""
        if not self.has_labels:
            return None
        return float(meters.right.item() / (self.steps * self.images_in_step))

    def epoch(
        self, epoch: int, views: Sequence[int], cached: CachedView | None, timeline: Timeline
    ) -> Meters:
        """Trains on all images in random order, once in each of the views."""
        self.timeline = timeline
        orders = [self.split.shuffled().to(self.device) for _ in views]
        meters = Meters(len(self.names), self.device)
        for norm in self.frozen_norms:
            norm.eval()
        preparing = [epoch <= method.preparation_epochs(self.epochs) for method in self.methods]
        # In a preparatory stage, the preparation alone is minimised.
        weights, counted = self.weights, [True] * len(self.names)
        if any(preparing):
            counted = [False] * (len(self.names) - len(preparing)) + preparing
            weights = torch.tensor([float(counts) for counts in counted], device=self.device)
        for method in self.methods:
            method.begin_epoch(epoch, self.epochs)
        now = _Epoch(epoch, cached, weights, counted, meters)
        size = len(self.own_places)
        batches = (
            batch
            for order, view in zip(orders, views, strict=True)
            for batch in self._batches(order, view, size, cached)
        )
        self.own_numbers.begin()

        def whole_step(images: Tensor, positions: Tensor) -> None:
            split = (torch.split(whole, size) for whole in (images, positions))
            self._step(zip(*split, repeat(None, self.accumulation), strict=True), now)

        # A graph reads what is always in one place.
        captures = self.captures and (cached is None or cached.resident)
        captured: CapturedStep | None = None
        for number in range(self.steps):
            self._set_rate(self._rate_at(epoch - 1 + (number + 0.5) / self.steps))
            of_step = islice(batches, self.accumulation)
            if not captures or number < WARMUP_STEPS:
                self._step(of_step, now)
                continue
            both = ((images, positions) for images, positions, _ in of_step)
            images, positions = map(torch.cat, zip(*both, strict=True))
            captured = captured or CapturedStep(whole_step, images, positions)
            captured(images, positions)
        meters.add_up(self.workers)
        if self.workers.together and not self.recipe.sync_batch_norms:
            self._average_statistics()
        timeline.mark("student")
        return meters

    def _batches(
        self, order: Tensor, view: int, size: int, cached: CachedView | None
    ) -> Iterator[tuple[Tensor, Tensor, Rows | None]]:
        """The images in a view, their positions, and what has come of the cached outputs with
        them, by batch."""
        order = order[: self.steps_in_pass * self.images_in_step].view(-1, self.batch_size)
        order = order[:, self.own_places].flatten()
        images = self.timeline.steps(self._views(order, view, size))
        fetched = self._ahead(cached, order, size)
        self.classes, self.mixed = self.split.classes(view)
        return zip(images, torch.split(order, size), fetched, strict=True)

    def _views(self, order: Tensor, view: int, size: int) -> Iterator[Tensor]:
        """The images by batch; with their second views, where these are needed, [B, 2, ...]."""
        views = self.split.views(order, view, size)
        if self.strong is None:
            return views
        both = zip(views, self.strong.views(order, view, size), strict=True)
        return (torch.stack(pair, 1) for pair in both)

    def _step(self, batches: Iterable[tuple[Tensor, Tensor, Rows | None]], now: _Epoch) -> None:
        """A step of the optimiser: images, their positions, and what has come of the cached outputs
        with them, by batch."""
        self.optimizer.zero_grad(set_to_none=True)
        for images, positions, fetched in batches:
            for own, of_part in zip(self.places_of_parts, self.shares, strict=True):
                places = positions[own]
                batch = replace(
                    self._batch(places, now.number), first=of_part.first, whole=of_part.whole
                )
                rows = fetched and {name: values[own] for name, values in fetched.items()}
                self._add_gradients(images[own], batch, rows, now, of_part)
        self.workers.add_up(each.grad for each in self.parameters if each.grad is not None)
        now.meters.step += 1
        if self.recipe.gradient_clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()

    def _ahead(self, cached: CachedView | None, order: Tensor, size: int) -> Iterator[Rows | None]:
        """What comes of the teacher's cached outputs with each batch; see `CachedView.ahead`."""
        if cached is None:
            yield from repeat(None, len(order) // size)
            return
        for rows in cached.ahead(order, size):
            self.timeline.mark("teacher")
            yield rows

    def _batch(self, places: Tensor, epoch: int) -> Batch:
        """The training images at these positions."""
        second = None if self.mixed is None else self.mixed.at(places)
        return Batch(self.classes[places], places, epoch, self.epochs, second)

    def _average_statistics(self) -> None:
        """Makes the running statistics of batch norms the means over all processes, each of which
        has seen its own images."""
        networks = [self.student, self.helpers]
        if self.average:
            networks.append(self.average.network)
        norms = [m for network in networks for m in network.modules() if isinstance(m, BATCH_NORMS)]
        buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.workers.average(buffer for buffer in buffers if buffer.is_floating_point())

    def _rate_at(self, progress_epochs: float) -> float:
        """The learning rate; the schedule begins after the epochs on top."""
        if progress_epochs < self.epochs_on_top:
            return self.recipe.learning_rate
        return self.recipe.learning_rate_at(progress_epochs - self.epochs_on_top)

    def _set_rate(self, rate: float) -> None:
        for group, factor in zip(self.optimizer.param_groups, self._factors, strict=True):
            if self.captures:  # a captured step reads this tensor
                if not isinstance(group["lr"], Tensor):
                    group["lr"] = torch.tensor(rate * factor, device=self.device)
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _add_gradients(
        self, images: Tensor, batch: Batch, rows: Rows | None, now: _Epoch, of_part: Share
    ) -> None:
        """Forward and backward pass of a part of a step, with its share of the step's images."""
        labels, share = batch.labels, len(batch.labels) / self.images_in_step
        strong = None
        if self.strong is not None:
            images, strong = images.unbind(1)
        full = now.weights.dtype  # float32, unless PyTorch's default is another
        with self.execution.autocast(self.device):
            with self.norms:
                with self.own_numbers.drawn():
                    student_taps = self.run_student(
                        images, self.needs, labels, self.student_maps, batch.mixed, strong
                    )
                teacher_taps = student_taps  # a placeholder, if no term reads any
                if self.teacher is not None:
                    self.timeline.mark("student")
                    teacher_taps = self._teacher_taps(
                        self.teacher, images, strong, batch, rows, now.cached
                    )
                    self.timeline.mark("teacher")
            terms: list[Tensor] = []
            if self.has_labels:
                smoothing = self.recipe.label_smoothing
                terms += label_terms(student_taps, batch, smoothing=smoothing, dtype=full)
            terms += [
                term.to(full) for term in self._terms(student_taps, teacher_taps, batch, of_part)
            ]
        # Terms that do not count give no gradient at all. With zero gradients, weight decay would
        # shrink waiting weights by a factor of exp(-0.05 / (1 - 0.9) * 5e-4 * 23,430 steps) =
        # exp(-5.9) = 0.003 in the literature's 30 epochs of CIFAR.
        counting = zip(terms, now.counted, strict=True)
        values = torch.stack([term if counts else term.detach() for term, counts in counting])
        weighted = now.weights * values
        torch.autograd.backward(self.scaler.scale(share * weighted.sum()))
        for method in self.methods:
            method.after_step()
        logits = student_taps.logits.detach()
        now.meters.add(values.detach(), weighted.detach(), logits, labels, share)

    def _terms(
        self, student: Taps, teacher: Taps, batch: Batch, of_part: Share
    ) -> Iterator[Tensor]:
        """The methods' terms: of this process's images, or of those of all processes, where a
        method compares them."""
        whole = None
        for method in self.methods:
            if not (self.workers.together and method.compares_images):
                with self.norms:
                    yield method(student, teacher, batch)
                continue
            if whole is None:
                comparing = [each for each in self.methods if each.compares_images]
                places = self.workers.whole(batch.indices, of_part)
                whole = (
                    *whole_taps(self.workers, of_part, comparing, student, teacher),
                    self._batch(places, batch.epoch),
                )
            yield method(*whole)

    def _teacher_taps(
        self,
        teacher: Classifier,
        images: Tensor,
        strong: Tensor | None,
        batch: Batch,
        rows: Rows | None,
        cached: CachedView | None,
    ) -> Taps:
        """The teacher's outputs, cached or computed."""
        if cached is not None:
            return cached.at(batch.indices) if rows is None else cached.taps(rows)
        with torch.no_grad(), self.teacher_execution.autocast(self.device):
            kinds, maps = self.wanted.kinds, self.wanted.maps
            taps = teacher.taps(images, kinds, batch.labels, maps, batch.mixed, strong)
        # In float32 and rounded as in the cache, so that caching does not change the training.
        return taps.widened() if self.cache is None else rounded(taps, self.cache.config)
