"""Finds the spatial maps, the embedding and the norms in the traced graph of a classifier.

A map whose sides grow with the image's is spatial. A node that every path from the image to the
classifier passes is on the main path; branches of a block and squeezed channels are not. The tap of
a resolution is the last map of the main path that has it. Where all but the first are tokens, these
are the maps.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from kdcore.backbones.drop_path import DropPath
from kdcore.backbones.tracing.graph import Sizes, first_input, normalized
from kdcore.backbones.tracing.tokens import (
    Tokens,
    find_tokens,
    map_of_tokens,
    positions_of,
    stages_of,
)
from kdcore.backbones.tracing.torch_private import DROPOUTS, function_of, modules_around
from kdcore.contract.taps import TapInfo
from kdcore.errors import NetworkError

# Images grow by these; usual strides divide them, and their ratio tells height from width.
_TALLER, _WIDER = 64, 128
_ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "mish", "elu", "leaky_relu")
_SHAPING = {torch.flatten, "flatten", "reshape", "view", "squeeze"}
_DROPPING = {functional.dropout, functional.dropout2d, functional.alpha_dropout}


@dataclass(frozen=True)
class _Map:
    """A node of the main path: a map [B, C, H, W] or, with channels last, [B, H, W, C]; or tokens
    [B, T, C] that make one."""

    node: fx.Node
    reduction: int
    channels: int
    channels_last: bool
    modules: tuple[str, ...]
    tokens: Tokens | None = None


class TapFinder:
    """One graph of a network: for evaluation or for training."""

    def __init__(
        self,
        network: nn.Module,
        graph: fx.Graph,
        num_classes: int,
        image_size: tuple[int, int],
    ) -> None:
        self._network, self._graph = network, graph
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._sizes = self._measure(*image_size)
        (self._end,) = (node for node in graph.nodes if node.op == "output")
        (self._logits,) = self._end.args
        if self._sizes[self._end] != (2, num_classes):
            raise NetworkError("it does not return logits [B, K]")
        self._heads = self._two_heads()
        classifier = self._heads[0] if self._heads else self._classifier()
        main_path = self._main_path(first_input(classifier))
        tokens = find_tokens(main_path, self._sizes)
        self.positions = positions_of(tokens, self._sizes)
        self._embedding = self._embedding_before(classifier)
        self.embedding_width = self._width(classifier)
        self.last_layer = self._path(classifier)
        self._pooled = None if self._heads else self._pooled_before(classifier, tokens)
        tapped = self._tapped(self._maps(main_path, image_size))
        if not tapped and tokens:
            tapped = self._tapped_tokens(tokens, image_size[0])
        self._places = self._named(tapped)

    # Reading the graph

    def _measure(self, height: int, width: int) -> dict[fx.Node, tuple[int, ...]]:
        sizes = Sizes(self._network, self._graph)
        with torch.no_grad():
            sizes.run(torch.empty(2, 3, height, width, device="meta"))
        return sizes.sizes

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _drops(self, node: fx.Node) -> bool:
        """Whether the node is an identity in evaluation."""
        module = self._module(node)
        return node.target in _DROPPING or isinstance(module, (nn.Identity, DROPOUTS, DropPath))

    def _undropped(self, node: fx.Node) -> fx.Node:
        while self._drops(node):
            node = first_input(node)
        return node

    def _has_weights(self, node: fx.Node) -> bool:
        module = self._module(node)
        return any(read.op == "get_attr" for read in node.all_input_nodes) or (
            module is not None and next(module.parameters(), None) is not None
        )

    # The classifier

    def _is_layer(self, node: fx.Node) -> bool:
        functions = (functional.linear, functional.conv2d)
        return isinstance(self._module(node), nn.Linear | nn.Conv2d) or node.target in functions

    def _classifier(self) -> fx.Node:
        layers: list[fx.Node] = [node for node in self._graph.nodes if self._is_layer(node)]
        return layers[-1]

    def _two_heads(self) -> tuple[fx.Node, fx.Node] | None:
        """The two layers whose mean the logits are: of the classes, and of distillation (DeiT's,
        Touvron et al., 2021, arXiv:2012.12877)."""
        mean = self._logits
        assert isinstance(mean, fx.Node)
        if mean.target is not operator.truediv or mean.args[1] != 2:
            return None
        total = first_input(mean)
        heads = tuple(total.all_input_nodes)
        if (
            total.target is not operator.add
            or len(heads) != 2
            or not all(map(self._is_layer, heads))
        ):
            return None
        return heads[0], heads[1]

    @property
    def has_distillation_head(self) -> bool:
        return self._heads is not None

    def _width(self, classifier: fx.Node) -> int:
        """The number of features that the classifier reads: the second dimension of its weight."""
        module = self._module(classifier)
        if isinstance(module, nn.Linear | nn.Conv2d):
            return module.weight.shape[1]
        weight = classifier.args[1]
        assert isinstance(weight, fx.Node)
        return self._sizes[weight][1]

    def _path(self, classifier: fx.Node) -> str:
        """Of the layer's module, which may have been traced into; empty if it is none."""
        if classifier.op == "call_module":
            return str(classifier.target)
        weight = classifier.args[1]
        assert isinstance(weight, fx.Node)
        path = str(weight.target).rpartition(".")[0] if weight.op == "get_attr" else ""
        module = self._network.get_submodule(path)
        return path if isinstance(module, nn.Linear | nn.Conv2d) else ""

    def _embedding_before(self, classifier: fx.Node) -> fx.Node:
        """The classifier's input before dropout, as a new node [B, D].

        Where the classifier is a convolution, the embedding is the mean of the map that it reads.
        """
        node = source = first_input(classifier)
        while self._drops(node) or self._shapes(node):
            dropped, node = self._drops(node), first_input(node)
            source = node if dropped else source
        width, size = self._width(classifier), self._sizes[source]
        embedding: fx.Node
        with self._graph.inserting_after(source):
            if math.prod(size[1:]) == width:
                embedding = self._graph.call_method("flatten", (source, 1))
            elif width in (size[1], size[-1]):
                places = [axis for axis in range(1, len(size)) if axis != size.index(width, 1)]
                embedding = self._graph.call_method("mean", (source, places))
            else:
                raise NetworkError(
                    f"its classifier reads {width} features, but the layer before has shape {size}"
                )
        return embedding

    def _pooled_before(self, classifier: fx.Node, tokens: Sequence[Tokens]) -> fx.Node | None:
        """The map whose mean over positions a linear classifier reads, [B, D, H, W], if any."""
        if not isinstance(self._network.get_submodule(self.last_layer), nn.Linear):
            return None
        node = first_input(classifier)
        while self._drops(node) or self._shapes(node):
            node = first_input(node)
        if not self._averages(node):
            return None
        node = first_input(node)
        size, width = self._sizes[node], self.embedding_width
        if len(size) == 4 and size[1] == width:
            return node
        if len(size) == 4 and size[3] == width:
            with self._graph.inserting_after(node):
                return self._graph.call_method("permute", (node, (0, 3, 1, 2)))
        if tokens and size[1:] == (math.prod(tokens[-1].grid), width):  # without other tokens
            return self._as_tokens_map(node, replace(tokens[-1], first=0))
        return None

    def _averages(self, node: fx.Node) -> bool:
        """Whether the node is the mean over all positions of a map."""
        averaging = {functional.adaptive_avg_pool2d, torch.mean, "mean"}
        averages = node.target in averaging or isinstance(self._module(node), nn.AdaptiveAvgPool2d)
        return averages and math.prod(self._sizes[node][1:]) == self.embedding_width

    def _shapes(self, node: fx.Node) -> bool:
        return node.target in _SHAPING or isinstance(self._module(node), nn.Flatten)

    # The taps

    def _main_path(self, end: fx.Node) -> list[fx.Node]:
        """The nodes that every path from the image to this node passes, in order."""
        (image,) = (node for node in self._graph.nodes if node.op == "placeholder")
        leading = {end}
        for node in reversed(self._graph.nodes):
            if node in leading:
                leading |= {read for read in node.all_input_nodes if read in self._sizes}
        position = {image: 0}
        for node in self._graph.nodes:
            if node in leading and any(read in position for read in node.all_input_nodes):
                position[node] = len(position)
        main, farthest = [], 0  # node that any earlier node leads to
        for node, number in position.items():
            if number >= farthest:
                main.append(node)
            farthest = max([farthest, *(position[user] for user in node.users if user in position)])
        return main[1:]

    def _maps(self, main_path: Iterable[fx.Node], image_size: tuple[int, int]) -> list[_Map]:
        height, width = image_size
        try:
            larger = self._measure(height + _TALLER, width + _WIDER)
        except Exception:  # the network takes one size only
            larger = {}
        maps: list[_Map] = []
        for node in main_path:
            found = self._as_map(node, height, larger)
            if found is not None and (not maps or found.reduction >= maps[-1].reduction):
                maps.append(found)
        return maps

    def _as_map(
        self, node: fx.Node, image_height: int, larger: Mapping[fx.Node, tuple[int, ...]]
    ) -> _Map | None:
        size = self._sizes[node]
        if len(size) != 4:
            return None
        for height, width, channels in ((2, 3, 1), (1, 2, 3)):
            side = size[height]
            if larger:
                taller, wider = (larger[node][axis] - size[axis] for axis in (height, width))
                reduction = _TALLER // max(taller, 1)
                grows = taller * reduction == _TALLER and 2 * taller == wider
            else:
                reduction = 2 ** max(0, round(math.log2(image_height / side)))
                grows = side == size[width] == -(-image_height // reduction)
            if grows and side > 1:
                last = channels == 3
                return _Map(node, reduction, size[channels], last, modules_around(node))
        return None

    def _tapped(self, maps: Sequence[_Map]) -> list[_Map]:
        """One map for the stem and one for each stage."""
        spans: dict[str, tuple[int, int]] = {}
        for number, found in enumerate(maps):
            for path in found.modules:
                spans[path] = (spans.get(path, (number, number))[0], number)

        def leads_on(number: int) -> bool:
            """Whether it is inside a block that begins here and ends at the next resolution."""
            here = maps[number].reduction
            after = next((found.reduction for found in maps if found.reduction > here), here)
            return any(
                first > 0 and maps[first - 1].reduction == here < after == maps[last].reduction
                for first, last in (spans[path] for path in maps[number].modules)
            )

        levels: dict[int, list[int]] = {}
        for number, found in enumerate(maps):
            if not leads_on(number):
                levels.setdefault(found.reduction, []).append(number)
        weighty = [self._order[node] for node in self._graph.nodes if self._has_weights(node)]
        tapped: list[_Map] = []
        before = -1
        for numbers in levels.values():
            here = self._order[maps[numbers[-1]].node]
            # A resolution without any layer that has weights is no stage.
            if any(before < position <= here for position in weighty):
                tapped.append(maps[numbers[-1]])
            before = here
        if len(tapped) < 2:  # the rest are tokens
            return []
        if tapped[0].reduction >= 4:
            # A stem that cuts patches: the first stage has its resolution.
            stem = maps[self._end_of_stem(maps, spans, tapped[0].reduction)]
            tapped = [stem, *(found for found in tapped if found is not stem)]
        return tapped

    def _tapped_tokens(self, tokens: Sequence[Tokens], image_height: int) -> list[_Map]:
        """The patches as stem, and the ends of stages."""
        patches = tokens[0].patches
        reduction = image_height // tokens[0].grid[0]
        stem = _Map(patches, reduction, tokens[0].channels, tokens[0].channels_last, ())
        return [
            stem,
            *(
                _Map(each.node, reduction, each.channels, False, (), each)
                for each in stages_of(tokens, self._network)
            ),
        ]

    def _end_of_stem(
        self, maps: Sequence[_Map], spans: Mapping[str, tuple[int, int]], reduction: int
    ) -> int:
        """The last map of the module that cuts the patches and of the norm and activation after."""
        at_stem = [number for number, found in enumerate(maps) if found.reduction == reduction]
        start = next((n for n in at_stem if self._has_weights(maps[n].node)), at_stem[0])
        end = start
        for path in maps[start].modules:
            first, last = spans[path]
            if first <= start and last in at_stem:
                end = last
                break
        while end + 1 in at_stem:
            node = maps[end + 1].node
            norm = isinstance(self._module(node), nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm)
            norm = norm or node.target is normalized
            if not (norm or self._drops(node) or self._activation(node) != "none"):
                break
            end += 1
        return end

    def _activation(self, node: fx.Node) -> str:
        """The function of `torch.nn.functional` that computes what this node does, or `none`."""
        if len(node.all_input_nodes) != 1 or self._has_weights(node):
            return "none"
        function: Callable[..., Any]
        if node.op == "call_module":
            function = self._network.get_submodule(str(node.target))
        elif node.op == "call_method":
            function = getattr(Tensor, str(node.target))
        elif callable(node.target):
            function = node.target
        else:
            return "none"
        given = torch.linspace(-8, 8, 99, device="cpu")
        try:
            made = function(given, *node.args[1:], **node.kwargs)
        except Exception:  # not elementwise, so no activation
            return "none"
        for name in _ACTIVATIONS:
            if isinstance(made, Tensor) and torch.equal(getattr(functional, name)(given), made):
                return name
        return "none"

    def _named(self, tapped: Iterable[_Map]) -> list[tuple[TapInfo, _Map]]:
        places = []
        for number, found in enumerate(tapped):
            name = f"stage{number}" if number else "stem"
            at = replace(found, node=self._undropped(found.node))
            info = TapInfo(name, at.channels, at.reduction, self._activation(at.node))
            places.append((info, at))
        return places

    @property
    def taps(self) -> tuple[TapInfo, ...]:
        return tuple(info for info, _ in self._places)

    @property
    def norms(self) -> dict[str, tuple[str, ...]]:
        depths: dict[fx.Node, int] = {}
        for node in self._graph.nodes:
            depths[node] = 1 + max((depths[read] for read in node.all_input_nodes), default=0)
        found = {
            info.name: self._norms_behind(first_input(at.node), depths)
            for info, at in self._places
            if info.activation != "none"
        }
        return {name: paths for name, paths in found.items() if paths}

    def _norms_behind(self, node: fx.Node, depths: Mapping[fx.Node, int]) -> tuple[str, ...]:
        node = self._undropped(node)
        if node.target in (operator.add, torch.add, "add"):  # the shallower one is the shortcut
            summands = sorted(node.all_input_nodes, key=depths.__getitem__, reverse=True)
            return next(filter(None, (self._norms_behind(s, depths) for s in summands)), ())
        if node.target is torch.cat:
            parts = [self._norms_behind(part, depths) for part in node.all_input_nodes]
            return tuple(path for part in parts for path in part) if all(parts) else ()
        if node.op != "call_module" and node.target is not normalized:
            return ()
        path = modules_around(node)[-1]
        module = self._network.get_submodule(path)
        return (path,) if isinstance(module, nn.BatchNorm2d) and module.affine else ()

    # Compiling

    def compiled(self) -> tuple[Any, Any]:
        """Two functions of a network and images: one returns all outputs, one the maps alone."""
        end = self._end
        maps = tuple(self._read_out(info, at) for info, at in self._places)
        end.args = ((self._logits, self._embedding, self._pooled, self._heads, maps),)
        outputs = function_of(self._network, self._graph)
        end.args = (maps,)
        needed = {node for pair in maps for node in pair}
        for node in reversed(self._graph.nodes):
            if node is not end and node in needed:
                break
            if node is not end and node.op != "placeholder":
                self._graph.erase_node(node)
        return outputs, function_of(self._network, self._graph)

    def _read_out(self, info: TapInfo, at: _Map) -> tuple[fx.Node, fx.Node]:
        after = self._channels_first(at.node, at)
        if info.activation == "none":
            return after, after
        return self._channels_first(first_input(at.node), at), after

    def _as_tokens_map(self, node: fx.Node, tokens: Tokens) -> fx.Node:
        settings = tokens.patches, tokens.first, tokens.channels_last
        with self._graph.inserting_after(node):
            return self._graph.call_function(map_of_tokens, (node, *settings))

    def _channels_first(self, node: fx.Node, at: _Map) -> fx.Node:
        if at.tokens is not None:
            return self._as_tokens_map(node, at.tokens)
        if not at.channels_last:
            return node
        with self._graph.inserting_after(node):
            return self._graph.call_method("permute", (node, 0, 3, 1, 2))
