"""TODO-DOC"""

from dataclasses import dataclass

LATENCY_BATCH = 64
"""Images in the batch whose latency is measured beside that of a single image."""


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs where it is used, without what only training needs.

    Args:
        parameters: their number.
        multiply_adds: of the convolutions and matrix products for one image.
        latency_ms: median milliseconds for one image.
        batch_latency_ms: median milliseconds for a batch of 64 images.
        device: where the latencies were measured, in words.
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
    """About what a step of training costs, cross-entropy alone, in float32.

    Args:
        seconds: for the step.
        memory_bytes: for weights, gradients, momentum, the kept best weights, and what the backward
            pass reads.
    """

    seconds: float
    memory_bytes: int
