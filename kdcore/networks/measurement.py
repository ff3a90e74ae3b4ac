"""Measures the cost of a network: parameters, multiply-adds, latency, training."""

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import build_backbone
from kdcore.backbones.tracing.torch_private import count_flops
from kdcore.contract.taps import Tap
from kdcore.networks.cost import LATENCY_BATCH, NetworkCost, TrainingCost

# For the median of the latency: at most this many repetitions and this many seconds.
_REPETITIONS, _SECONDS = 50, 1.0

# Images of the measured step: a few seconds for the largest networks, on any machine.
_STEP_IMAGES = 8

# Of a step that is all launches and hardly images; batch norms need two.
_FEWEST_IMAGES = 2


def count_parameters(network: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_multiply_adds(backbone: Backbone, image_size: tuple[int, int]) -> int:
    """Multiply-adds of the convolutions and matrix products for one image, in evaluation.

    Args:
        backbone: on any device, including meta.
        image_size: height and width in pixels.
    """
    was_training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    flops = count_flops(backbone, torch.empty(1, backbone.in_channels, *image_size, device=device))
    backbone.train(was_training)
    return flops // 2  # a multiply-add is two floating-point operations


def count_network(
    name: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> tuple[int, int]:
    """The parameters and multiply-adds that `measure_network` counts; nothing is computed.

    Args:
        name: of the network.
        num_classes: K.
        in_channels: channels of the images.
        image_size: height and width in pixels.

    Raises:
        NetworkError: there is no such network.
    """
    with torch.device("meta"):
        backbone = build_backbone(
            name,
            num_classes=num_classes,
            in_channels=in_channels,
            seed=0,
            image_size=image_size,
        )
    backbone.drop_auxiliary()
    return count_parameters(backbone), count_multiply_adds(backbone, image_size)


def measure_latency(network: nn.Module, images: torch.Tensor) -> float:
    """Median milliseconds of a forward pass in evaluation mode, after a warm-up.

    Args:
        network: on the device of the images.
        images: a batch.
    """
    was_training = network.training
    network.eval()
    latency = median_latency(network, images)
    network.train(was_training)
    return latency


def median_latency(predict: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    """Median milliseconds of a call without gradients, after a warm-up.

    Args:
        predict: computes on the device of the images.
        images: a batch.
    """

    def seconds() -> float:
        started = time.perf_counter()
        predict(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - started

    with torch.inference_mode():
        for _ in range(3):
            seconds()
        times = [seconds()]
        while len(times) < _REPETITIONS and sum(times) < _SECONDS:
            times.append(seconds())
    return 1000 * statistics.median(times)


def measure_training(
    network: Backbone, image_size: tuple[int, int], batch_size: int, device: torch.device
) -> TrainingCost:
    """Measures forward and backward passes: their memory with a few images, extrapolated; their
    time with a batch, or likewise where that would take long, or the device has no memory for it.

    Args:
        network: moved to the device and put into training mode.
        image_size: height and width in pixels.
        batch_size: images in a step, at least 2.
        device: where to compute.
    """
    network.to(device).train()
    few = min(batch_size, _STEP_IMAGES)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, int] = {}  # bytes by storage

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def seconds(images: int) -> float:
        batch = torch.zeros(images, network.in_channels, *image_size, device=device)
        return _step_seconds(network, batch)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        seconds(few)
    batches = batch_size / few
    maps = sum(size for storage, size in saved.items() if storage not in own)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    memory = int(batches * maps) + 4 * weights
    if batches * seconds(few) < _SECONDS:
        with suppress(torch.OutOfMemoryError):
            return TrainingCost(statistics.median(seconds(batch_size) for _ in range(3)), memory)
    return TrainingCost(batches * statistics.median(seconds(few) for _ in range(3)), memory)


def measure_busy_share(
    network: Backbone, image_size: tuple[int, int], batch_size: int, device: torch.device
) -> float:
    """Measures the share of a training step's time that its images take: near 0 where launches take
    it all, so that other processes can use the device meanwhile, and near 1 for large networks.

    A step of two images is taken for the launches. Where the device has no memory for a batch, the
    share is 1.

    Args:
        network: moved to the device and put into training mode.
        image_size: height and width in pixels.
        batch_size: images in a step, at least 2.
        device: where to compute.
    """
    network.to(device).train()
    batches = [
        torch.zeros(images, network.in_channels, *image_size, device=device)
        for images in (_FEWEST_IMAGES, batch_size)
    ]

    try:
        turns = [[_step_seconds(network, images) for images in batches] for _ in range(6)]
    except torch.OutOfMemoryError:
        return 1.0
    few, many = (statistics.median(column) for column in zip(*turns[1:], strict=True))
    share: float = 1 - few / many
    return max(0.0, share)


def _step_seconds(network: Backbone, images: torch.Tensor) -> float:
    """Seconds of a forward and backward pass."""
    started = time.perf_counter()
    torch.autograd.backward(network(images).logsumexp(1).sum())
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started


def measure_evaluation_memory(
    network: Backbone, image_size: tuple[int, int], batch_size: int, device: torch.device
) -> int:
    """Measures the bytes of weights, and of the largest maps on the way, of a batch without
    gradients; of a few images, extrapolated. The arguments are those of `measure_training`."""
    network.to(device).eval()
    images = min(batch_size, _STEP_IMAGES)
    largest = 0

    def note(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal largest
        held = [each for each in (*inputs, output) if isinstance(each, torch.Tensor)]
        largest = max(largest, sum(each.nbytes for each in held))

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    with torch.no_grad():
        network(torch.zeros(images, network.in_channels, *image_size, device=device))
    for hook in hooks:
        hook.remove()
    weights = sum(parameter.nbytes for parameter in network.parameters())
    # Beside what a module reads and writes, a shortcut may be held.
    return weights + int(2 * largest * batch_size / images)


def count_outputs(network: Backbone, image_size: tuple[int, int], kinds: frozenset[Tap]) -> int:
    """The number of values that a network puts out for one image: logits, embedding, and what else
    is of these kinds.

    Args:
        network: put into evaluation mode.
        image_size: height and width in pixels.
        kinds: of outputs.
    """
    device = next(network.parameters()).device
    image = torch.zeros(1, network.in_channels, *image_size, device=device)
    with torch.no_grad():
        taps = network.eval().taps(image, kinds)
    return sum(each.numel() for each in taps.tensors())


def measure_network(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    device: torch.device,
) -> NetworkCost:
    """Measures a network in float32.

    Args:
        name: of the network.
        num_classes: K.
        in_channels: channels of the images.
        image_size: height and width in pixels.
        device: on which to measure latencies.

    Raises:
        NetworkError: there is no such network.
    """
    backbone = build_backbone(
        name, num_classes=num_classes, in_channels=in_channels, seed=0, image_size=image_size
    )
    backbone.drop_auxiliary()
    backbone.to(device)
    images = torch.zeros(LATENCY_BATCH, in_channels, *image_size, device=device)
    on_gpu = device.type == "cuda"
    return NetworkCost(
        parameters=count_parameters(backbone),
        multiply_adds=count_multiply_adds(backbone, image_size),
        latency_ms=measure_latency(backbone, images[:1]),
        batch_latency_ms=measure_latency(backbone, images),
        device=device_name(device),
        threads=0 if on_gpu else torch.get_num_threads(),
    )


def device_memory(device: torch.device) -> int | None:
    """Bytes of a device's own memory; None for a CPU, which has that of the machine."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def device_name(device: torch.device) -> str:
    """The model of the GPU or of the processor, or the architecture if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
