"""An exponential moving average of a network's weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcore.networks.classifier import Classifier


class WeightAverage:
    """The moving average of a student's parameters, Polyak and Juditsky, 1992.

    After each step, average += (1 - d) (value - average), where d is the smaller of the decay and
    (1 + n) / (10 + n) after n earlier steps. Floating-point buffers, such as the running statistics
    of batch norms, are averaged alike, and counters are copied, as timm's `ModelEmaV3` does. All of
    it happens on the device, also in a captured step.

    Args:
        student: on its device and in its layout; the average begins as a copy of it.
        decay: above 0, below 1.
    """

    def __init__(self, student: Classifier, decay: float) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self._decay = decay
        pairs = [
            *zip(self.network.parameters(), student.parameters(), strict=True),
            *zip(self.network.buffers(), student.buffers(), strict=True),
        ]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._steps = torch.zeros((), dtype=torch.float64, device=student.mean.device)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the student's weights after a step."""
        warm = (1 + self._steps) / (10 + self._steps)
        taken = (1 - warm.clamp(max=self._decay)).to(self.network.mean.dtype)
        averages = [average for average, _ in self._averaged]
        differences = torch._foreach_sub([value.detach() for _, value in self._averaged], averages)
        torch._foreach_mul_(differences, taken)
        torch._foreach_add_(averages, differences)
        for copied, value in self._copied:
            copied.copy_(value)
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """Everything that later updates depend on."""
        return {"steps": self._steps, "network": self.network.backbone.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Loads what `state` returned."""
        steps: Tensor = state["steps"]
        self._steps.copy_(steps)
        self.network.backbone.load_state_dict(state["network"])
