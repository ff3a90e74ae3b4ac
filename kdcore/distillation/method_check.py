"""Tries methods on a few images, so that one that cannot work is found before training."""

import copy
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from kdcore.backbones.probe import probe_shapes
from kdcore.backbones.reused_classifier import with_classifier_of
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.plugin_faults import beat, fault_in_plugin
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.distillation.config import TermConfig
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import Classifier
from kdcore.networks.reused_classifier import reuse_classifier
from kdcore.training.fine_tuning import FineTuning

# Of 10 epochs, the first belongs to a preparatory stage, if there is one, and the last does not.
_EPOCHS = 10

# Outputs that need no second derivative.
_USUAL = frozenset(Tap) - {Tap.INPUT_GRADIENT, Tap.FLIPPED_INPUT_GRADIENT}


class MethodCheck:
    """Tries methods on the outputs of a student and a teacher for the same images.

    The networks run once, forward and for the student backward; each method then costs little.

    Args:
        student: with fresh weights.
        teacher: with any weights.
        networks: their shapes and norms.
        images: [B, C, H, W], B >= 2, uint8.
        labels: [B], int64, not all the same.
        tunings: which parts of the student may be trained; none: all of it.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        networks: NetworkPair,
        images: Tensor,
        labels: Tensor,
        *tunings: FineTuning,
    ) -> None:
        self._tunings = tunings
        self._networks, self._labels, self._images = networks, labels, images
        self._student, self._teacher = student.train(), teacher.eval()
        self._positions = torch.arange(len(images))
        self._outputs = self._run(self._student, _USUAL)

    def _run(self, student: Classifier, kinds: frozenset[Tap]) -> tuple[Taps, Taps]:
        """Runs both networks, the student backward too; returns their outputs."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            student_taps = self._every_tap(student, kinds)
            squares = [tensor.float().square().mean() for tensor in student_taps.tensors()]
            torch.autograd.backward(torch.stack(squares).sum())
            with torch.no_grad():
                teacher_taps = self._every_tap(self._teacher, kinds)
            return student_taps.detach(), teacher_taps

    def _every_tap(self, network: Classifier, kinds: frozenset[Tap]) -> Taps:
        return network.taps(
            self._images,
            kinds,
            self._labels,
            frozenset(network.backbone.further),
            strong=self._images,
        )

    @cached_property
    def _with_gradients(self) -> tuple[Taps, Taps] | None:
        """The outputs with input gradients; None if a network cannot be differentiated twice."""
        try:
            return self._run(self._student, frozenset(Tap))
        except RuntimeError:
            return None

    @cached_property
    def _reused(self) -> tuple[NetworkPair, tuple[Taps, Taps]]:
        """Shapes and outputs where the student has the teacher's classifier.

        Raises:
            NetworkError: it cannot.
        """
        shapes = self._networks.student
        name = with_classifier_of(shapes, self._networks.teacher)
        student = copy.deepcopy(self._student)
        whole = reuse_classifier(student, self._teacher, name, seed=0).train()
        probed = probe_shapes(
            name,
            num_classes=shapes.num_classes,
            in_channels=self._images.shape[1],
            image_size=(self._images.shape[2], self._images.shape[3]),
        )
        return replace(self._networks, student=probed), self._run(whole, _USUAL)

    def attempt(self, term: TermConfig) -> str:
        """Builds a method and runs its loss forward and backward.

        Returns:
            Why it cannot work, or an empty text. Errors other than a refusal are raised.
        """
        beat()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                networks, usual = self._networks, self._outputs
                if CATALOGUE[term.method].reuses_classifier:
                    networks, usual = self._reused
                method = CATALOGUE[term.method](term.params, networks)
                for tuning in self._tunings:
                    if refusal := tuning.refusal(method):
                        return refusal
                outputs: tuple[Taps, Taps] | None = usual
                if not method.needs <= _USUAL:
                    outputs = self._with_gradients
                if outputs is None:
                    return (
                        f"it reads input gradients, but {self._networks.student.network} cannot be "
                        f"differentiated twice"
                    )
                for epoch in (1, _EPOCHS):
                    method.begin_epoch(epoch, _EPOCHS)
                    student_taps = outputs[0].changed(
                        lambda tensor: tensor.clone().requires_grad_()
                    )
                    batch = Batch(self._labels, self._positions, epoch, _EPOCHS)
                    loss = method(student_taps, outputs[1], batch)
                    if wrong := _wrong_in(loss):
                        return wrong
                    if loss.requires_grad:
                        torch.autograd.backward(loss)
            except (Exception, SystemExit) as error:
                fault = fault_in_plugin(error)
                if not fault and not isinstance(error, ValueError):
                    raise
                return fault or str(error)
        return ""


def _wrong_in(loss: Tensor) -> str:
    if not isinstance(loss, Tensor):
        return f"its loss is {loss!r:.40}, but must be a tensor"
    if loss.ndim:
        return f"its loss has the shape {tuple(loss.shape)}, but must be a scalar, like a mean"
    return "" if loss.isfinite() else f"its loss is {loss.item()} on fresh networks"
