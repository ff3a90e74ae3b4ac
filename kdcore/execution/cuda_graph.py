"""A training step as a CUDA graph: one launch instead of hundreds."""

from collections.abc import Callable

import torch
from torch import Tensor

# Steps before a capture, in which libraries choose kernels and optimisers create their state.
WARMUP_STEPS = 3


class CapturedStep:
    """A step whose kernels are recorded once and replayed for other batches.

    Python numbers (a warm-up factor, the end of a preparatory stage) become constants, so that each
    epoch captures its step again. Random numbers continue PyTorch's generator.

    Args:
        step: function of images and positions; recorded, not run.
        images: a batch of the size of all others.
        positions: of its images in the training split.

    Raises:
        RuntimeError: the step synchronises with the device, or its allocations vary.
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
