"""The cost of a network: parameters, multiply-adds, latency; time and memory of training."""

from dataclasses import dataclass
from typing import Literal

LATENCY_BATCH = 64
"""Batch size of the second latency measurement; the first is for a single image."""

CostName = Literal["parameters", "multiply_adds", "latency_ms", "batch_latency_ms"]
"""The figures of a network's cost, as `NetworkCost` has them."""


@dataclass(frozen=True)
class NetworkCost:
    """The cost of inference, without auxiliary classifiers.

    Args:
        parameters: number of parameters.
        multiply_adds: of convolutions and matrix products for one image.
        latency_ms: median milliseconds for one image.
        batch_latency_ms: median milliseconds for a batch of 64 images.
        device: on which the latencies were measured.
        threads: of the CPU; 0 on a GPU.
    """

    parameters: int
    multiply_adds: int
    latency_ms: float
    batch_latency_ms: float
    device: str
    threads: int


@dataclass(frozen=True)
class TrainingCost:
    """Estimated cost of a training step with cross-entropy alone, in float32.

    Args:
        seconds: for the step.
        memory_bytes: of weights, gradients, momentum, the best weights so far, and saved tensors.
    """

    seconds: float
    memory_bytes: int
