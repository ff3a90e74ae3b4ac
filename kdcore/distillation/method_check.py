"""A step on a few images: what cannot work is found before anything is trained."""

from functools import cached_property

import torch
from torch import Tensor

from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.distillation.config import TermConfig
from kdcore.methods import CATALOGUE
from kdcore.networks.classifier import Classifier

# Preparatory stages have ended by the last of so many epochs, and have begun with the first.
_EPOCHS = 10

# What a network shows without being differentiated twice.
_USUAL = frozenset(Tap) - {Tap.INPUT_GRADIENT, Tap.FLIPPED_INPUT_GRADIENT}


class MethodCheck:
    """Student and teacher on the same images; then any method between them is quickly tried.

    Both networks go forward once, and the student backward, with everything that methods read.

    Args:
        student: with fresh weights.
        teacher: with any weights.
        setting: of the two.
        images: [B, C, H, W], B >= 2, uint8.
        labels: [B], int64, not all the same.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        setting: NetworkPair,
        images: Tensor,
        labels: Tensor,
    ) -> None:
        self._setting, self._labels, self._images = setting, labels, images
        self._student, self._teacher = student.train(), teacher.eval()
        self._positions = torch.arange(len(images))
        self._shown, self._taught = self._outputs(_USUAL)

    def _outputs(self, kinds: frozenset[Tap]) -> tuple[Taps, Taps]:
        """What student and teacher show, after the student has gone backward from all of it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shown = self._student.taps(self._images, kinds, self._labels)
            squares = [tensor.float().square().mean() for tensor in shown.tensors()]
            torch.autograd.backward(torch.stack(squares).sum())
            with torch.no_grad():
                return shown.detach(), self._teacher.taps(self._images, kinds, self._labels)

    @cached_property
    def _with_gradients(self) -> tuple[Taps, Taps] | None:
        """The outputs with the input's gradients; none where a network has no second derivative."""
        try:
            return self._outputs(frozenset(Tap))
        except RuntimeError:
            return None

    def attempt(self, term: TermConfig) -> str:
        """Builds a method, and lets its loss go forward and backward.

        Returns:
            Why it cannot work; empty where it can. Whatever is not a refusal is raised.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                method = CATALOGUE[term.method](term.params, self._setting)
                outputs: tuple[Taps, Taps] | None = self._shown, self._taught
                if not method.needs <= _USUAL:
                    outputs = self._with_gradients
                if outputs is None:
                    return (
                        f"it reads gradients by the pixels, but {self._setting.student.network} "
                        f"cannot be differentiated twice"
                    )
                for epoch in (1, _EPOCHS):
                    method.begin_epoch(epoch, _EPOCHS)
                    shown = outputs[0].changed(lambda tensor: tensor.clone().requires_grad_())
                    batch = Batch(self._labels, self._positions, epoch, _EPOCHS)
                    loss = method(shown, outputs[1], batch)
                    if not loss.isfinite():
                        return f"its loss is {loss.item()} on fresh networks"
                    if loss.requires_grad:
                        torch.autograd.backward(loss)
            except ValueError as error:
                return str(error)
        return ""
