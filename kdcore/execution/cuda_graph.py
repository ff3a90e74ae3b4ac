"""A training step as a CUDA graph: one launch instead of hundreds of small ones."""

from collections.abc import Callable

import torch
from torch import Tensor

# Steps before a capture, in which libraries choose their kernels and optimisers make their state.
WARMUP_STEPS = 3


class CapturedStep:
    """A step whose kernels were recorded once and are replayed for other images.

    What the step computes from numbers of Python (an epoch's ramp, a preparation's end) is recorded
    as it is: a step is captured anew for each epoch. Random numbers go on from PyTorch's generator.

    Args:
        step: reads images and positions; is recorded, not run.
        images: a batch of the size that all batches have.
        positions: of its images in the training split.

    Raises:
        RuntimeError: the step waits for the device, or needs memory in another way each time.
    """

    def __init__(
        self, step: Callable[[Tensor, Tensor], None], images: Tensor, positions: Tensor
    ) -> None:
        self._images, self._positions = images.clone(), positions.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            step(self._images, self._positions)

    def __call__(self, images: Tensor, positions: Tensor) -> None:
        self._images.copy_(images)
        self._positions.copy_(positions)
        self._graph.replay()
