"""LAMB: Large Batch Optimization for Deep Learning. You et al., 2019, arXiv:1904.00962.

timm's `Lamb` is the same without `trust_clip`; ours can be recorded in a CUDA graph, and needs no
package beside PyTorch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Adam's steps, each scaled to the norm of the weights that it changes (algorithm 2).

    Groups without weight decay, like norms and biases, take Adam's steps as they are, as in the
    authors' code.

    Args:
        groups: with `params` and `weight_decay`.
        learning_rate: a number; a tensor in `group["lr"]` for a captured step.
        betas: of the means of gradients and of their squares.
        eps: added to the root of the second mean.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        learning_rate: float,
        betas: tuple[float, float],
        *,
        eps: float = 1e-6,
    ) -> None:
        defaults = {"lr": learning_rate, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Changes every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if parameters:
                self._change(parameters, group)

    def _change(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for each in parameters:
            state = self.state[each]
            if not state:
                # On the device, so that a captured step counts too; in float64: 1 - 0.999 has four
                # digits in float32.
                state["step"] = torch.zeros((), dtype=torch.float64, device=each.device)
                state["exp_avg"] = torch.zeros_like(each)
                state["exp_avg_sq"] = torch.zeros_like(each)
        gradients = [each.grad for each in parameters if each.grad is not None]
        steps, means, squares = (
            [self.state[each][name] for each in parameters]
            for name in ("step", "exp_avg", "exp_avg_sq")
        )
        first, second = group["betas"]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        # Both means begin at 0. What that takes from them depends on a parameter's own steps: the
        # first gradient of some comes later, as after a preparatory stage.
        counts = torch.stack(steps)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - second**counts).sqrt().unbind())
        torch._foreach_add_(roots, group["eps"])
        changes = torch._foreach_div(means, (1 - first**counts).unbind())
        torch._foreach_div_(changes, roots)
        if group["weight_decay"]:
            torch._foreach_add_(changes, parameters, alpha=group["weight_decay"])
            weights = torch.stack(torch._foreach_norm(parameters))
            sizes = torch.stack(torch._foreach_norm(changes))
            known = (weights > 0) & (sizes > 0)
            torch._foreach_mul_(changes, torch.where(known, weights / sizes, 1.0).unbind())
        torch._foreach_mul_(changes, group["lr"])
        torch._foreach_sub_(parameters, changes)
