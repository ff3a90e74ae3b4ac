"""Traces a network that declares no taps, on the meta device, into functions that return them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kdcore.backbones.positions import Positions
from kdcore.backbones.tracing.graph import Tracer, call_norms, forbid_writes, redirect_writes
from kdcore.backbones.tracing.tap_finder import TapFinder
from kdcore.backbones.tracing.torch_private import TraceError, has_constants
from kdcore.contract.taps import TapInfo

Outputs = tuple[
    Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor] | None, tuple[tuple[Tensor, Tensor], ...]
]


@dataclass(frozen=True)
class TracedNetwork:
    """The taps of an architecture, and functions that read them from any network of it.

    Args:
        taps: stem and stages; none where there are no spatial maps.
        norms: by tap name, the paths of the batch norms that its activation reads.
        embedding_width: D.
        last_layer: the path of the layer that gives the logits; empty if it is no module.
        outputs: for evaluation and for training, a function from the network and images to logits,
            embedding, the map whose mean is the embedding (None if there is none), the logits of
            classes and of distillation whose mean the logits are (None if there is one head), and
            the maps before and after the activation of each tap.
        maps: the maps alone, without computing the others.
        distillation_head: whether it has two heads.
        positions: of position embeddings, by their paths.
    """

    taps: tuple[TapInfo, ...]
    norms: Mapping[str, tuple[str, ...]]
    embedding_width: int
    last_layer: str
    outputs: tuple[Callable[[nn.Module, Tensor], Outputs], ...]
    maps: tuple[Callable[[nn.Module, Tensor], tuple[tuple[Tensor, Tensor], ...]], ...]
    distillation_head: bool = False
    positions: Mapping[str, Positions] = field(default_factory=dict)


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
        network: on the meta device; modified in place.
        num_classes: K.
        image_size: height and width in pixels.
        leaf_modules: classes that are not traced into.
        leaf_functions: functions that are not traced into.

    Raises:
        TraceError: its control flow depends on values, or it makes tensors of its own.
        NetworkError: it does not return logits, or its last layer does not read an embedding.
    """
    graphs = []
    for training in (False, True):
        tracer = Tracer(leaf_modules, leaf_functions)
        graph = tracer.trace(network.train(training))
        if has_constants(graph):
            raise TraceError("it makes a tensor that is neither parameter nor buffer")
        graphs.append(graph)
    for graph in graphs:
        call_norms(graph, network)
        redirect_writes(graph, network)  # before the in-place flags are cleared
    forbid_writes(network)
    evaluation, training_ = (
        TapFinder(network.train(training), graph, num_classes, image_size)
        for training, graph in zip((False, True), graphs, strict=True)
    )
    if evaluation.taps != training_.taps:
        raise TraceError("its maps differ between training and evaluation")
    functions = [finder.compiled() for finder in (evaluation, training_)]
    return TracedNetwork(
        evaluation.taps,
        evaluation.norms,
        evaluation.embedding_width,
        evaluation.last_layer,
        tuple(outputs for outputs, _ in functions),
        tuple(maps for _, maps in functions),
        evaluation.has_distillation_head,
        evaluation.positions,
    )
