"""Batch norms that normalise by the images of all processes, on any device.

PyTorch's `SyncBatchNorm` takes tensors of GPUs alone, has no second derivative, and stands in the
place of a network's modules, which those of libraries with an activation of their own do not
survive.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from kdcore.execution.workers import Workers


def synchronized_norms(workers: Workers) -> AbstractContextManager[object]:
    """The context in which batch norms are those of all processes; one process needs none."""
    return SynchronizedNorms(workers) if workers.together else nullcontext()


class SynchronizedNorms(TorchFunctionMode):
    """Within it, `torch.nn.functional.batch_norm`, by which all batch norms normalise, takes the
    statistics of training over all processes. All of them must call it alike.

    Args:
        workers: the processes.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self._workers = workers

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.batch_norm:
            return self._normalized(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _normalized(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As `torch.nn.functional.batch_norm`, of [B, C, ...]."""
        if not training:
            return functional.batch_norm(
                *(input, running_mean, running_var, weight, bias, False, momentum, eps)
            )
        half = input.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(input.device.type, enabled=False):
            wide = input.float() if half else input
            mean, variance, count = self._statistics(wide)
            if running_mean is not None and running_var is not None:
                with torch.no_grad():
                    unbiased = variance * (count / (count - 1))
                    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                    running_var.lerp_(unbiased.to(running_var.dtype), momentum)
            shape = (1, -1, *[1] * (input.ndim - 2))
            factor = (variance + eps).rsqrt()
            normal = (wide - mean.view(shape)) * factor.view(shape)
            if weight is not None:
                normal = normal * weight.view(shape)
            if bias is not None:
                normal = normal + bias.view(shape)
            return normal.to(input.dtype)

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance [C] over all processes, and their number of values for a channel.

        Each process sends its own mean and sum of squared deviations, which are combined as by
        Chan, Golub and LeVeque, 1979, so that nothing cancels.
        """
        workers, over = self._workers, [d for d in range(values.ndim) if d != 1]
        count = values.new_tensor(values.numel() // values.shape[1])
        mean = values.mean(over)
        squares = (values - mean.view(1, -1, *[1] * (values.ndim - 2))).square().sum(over)
        own = torch.cat([mean, squares, count[None]])[None]
        share = workers.share_of(workers.number)
        means, sums, counts = torch.split(
            workers.whole(own, share), [len(mean), len(mean), 1], dim=1
        )
        total = counts.sum()
        common = (counts * means).sum(0) / total
        deviations = (sums + counts * (means - common).square()).sum(0)
        return common, deviations / total, total
