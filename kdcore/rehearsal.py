"""A step on a few images: what cannot work is found before anything is trained."""

import torch
from torch import Tensor

from kdcore.classifier import Classifier
from kdcore.distillation import TermConfig
from kdcore.methods import CATALOGUE
from kdcore.taps import Batch, Setting, Tap

# Preparatory stages have ended by the last of so many epochs, and have begun with the first.
_EPOCHS = 10


class Rehearsal:
    """Student and teacher on the same images; then any method between them is quickly tried.

    Both networks go forward once, and the student backward, with everything that a method may read.

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
        setting: Setting,
        images: Tensor,
        labels: Tensor,
    ) -> None:
        self._setting, self._labels = setting, labels
        self._positions = torch.arange(len(images))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            every = frozenset(Tap)
            shown = student.train().taps(images, every, labels)
            squares = [tensor.float().square().mean() for tensor in shown.tensors()]
            torch.autograd.backward(torch.stack(squares).sum())
            with torch.no_grad():
                self._taught = teacher.eval().taps(images, every, labels)
        self._shown = shown.detach()

    def attempt(self, term: TermConfig) -> str:
        """Builds a method, and lets its loss go forward and backward.

        Returns:
            Why it cannot work; empty where it can. Whatever is not a refusal is raised.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                method = CATALOGUE[term.method](term.params, self._setting)
                for epoch in (1, _EPOCHS):
                    method.begin_epoch(epoch, _EPOCHS)
                    shown = self._shown.changed(lambda tensor: tensor.clone().requires_grad_())
                    batch = Batch(self._labels, self._positions, epoch, _EPOCHS)
                    loss = method(shown, self._taught, batch)
                    if not loss.isfinite():
                        return f"its loss is {loss.item()} on fresh networks"
                    if loss.requires_grad:
                        torch.autograd.backward(loss)
            except ValueError as error:
                return str(error)
        return ""
