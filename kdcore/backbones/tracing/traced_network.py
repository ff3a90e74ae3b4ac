"""Finds the maps and the embedding of a network that declares none.

The network is traced with torch.fx and run on the meta device at two image sizes. A node whose
sides grow with the image's is a spatial map. A node that every path from the image to the
classifier passes is on the main path; what lies beside it (branches of a block, squeezed channels)
is no place to read. The tap of a resolution is the last map of the main path that has it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from kdcore.backbones.tracing.graph import Tracer, forbid_writes, keep_norms, redirect_writes
from kdcore.backbones.tracing.tap_finder import TapFinder
from kdcore.contract.taps import TapInfo

Outputs = tuple[Tensor, Tensor, tuple[tuple[Tensor, Tensor], ...]]


@dataclass(frozen=True)
class TracedNetwork:
    """Where a network of one architecture shows what.

    Args:
        taps: stem and stages; none where there are no spatial maps.
        norms: by tap name, the paths of the batch norms that its activation reads.
        embedding_width: D.
        outputs: for evaluation and for training, a function from the network and images to logits,
            embedding, and the maps before and after the activation of each tap.
        maps: the same without logits and embedding, and without computing them.
    """

    taps: tuple[TapInfo, ...]
    norms: Mapping[str, tuple[str, ...]]
    embedding_width: int
    outputs: tuple[Callable[[nn.Module, Tensor], Outputs], ...]
    maps: tuple[Callable[[nn.Module, Tensor], tuple[tuple[Tensor, Tensor], ...]], ...]


def trace_network(
    network: nn.Module,
    num_classes: int,
    image_size: tuple[int, int],
    *,
    leaf_modules: tuple[type[nn.Module], ...] = (),
    leaf_functions: tuple[Callable[..., Any], ...] = (),
) -> TracedNetwork:
    """Traces a classifier of 3-channel images.

    Args:
        network: on the meta device; it is changed.
        num_classes: K.
        image_size: height and width that it takes.
        leaf_modules: classes that tracing cannot look into.
        leaf_functions: functions that tracing cannot look into.

    Raises:
        TraceError: the network's path depends on values, or it has tensors that are no parameters.
        ValueError: it does not give logits, or its last layer does not read an embedding.
    """
    graphs = []
    for training in (False, True):
        tracer = Tracer(leaf_modules, leaf_functions)
        graph = tracer.trace(network.train(training))
        if any("_tensor_constant" in str(node.target) for node in graph.nodes):
            raise fx.proxy.TraceError("a tensor that is no parameter was made while tracing")
        graphs.append(graph)
    for graph in graphs:
        keep_norms(graph, network)
        redirect_writes(graph, network)  # reads the flags that are cleared now
    forbid_writes(network)
    evaluation, training_ = (
        TapFinder(network.train(training), graph, num_classes, image_size)
        for training, graph in zip((False, True), graphs, strict=True)
    )
    if evaluation.taps != training_.taps:
        raise fx.proxy.TraceError("the maps of training are not those of evaluation")
    functions = [dissection.compiled() for dissection in (evaluation, training_)]
    return TracedNetwork(
        evaluation.taps,
        evaluation.norms,
        evaluation.embedding_width,
        tuple(outputs for outputs, _ in functions),
        tuple(maps for _, maps in functions),
    )
