"""Tokens of vision transformers as maps: where patches become tokens, and which blocks end a stage.

Their blocks all have one resolution, so they make four stages of equally many blocks, as for the
transformers of OFA (Hao et al., 2023, arXiv:2310.19444). Tokens that are no patches (class,
distillation, registers) are no part of a map.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from kdcore.backbones.positions import Positions
from kdcore.backbones.tracing.torch_private import modules_around

STAGES = 4

_ADDING = (operator.add, torch.add, "add")


@dataclass(frozen=True)
class Tokens:
    """A node [B, T, C] of the main path.

    Args:
        node: the tokens.
        patches: the map that they were made of, [B, C, H, W] or, with channels last, [B, H, W, C].
        channels_last: of the map.
        first: the number of tokens before those of the patches.
        grid: H and W, of the images that the network was traced with.
        channels: C.
    """

    node: fx.Node
    patches: fx.Node
    channels_last: bool
    first: int
    grid: tuple[int, int]
    channels: int


def map_of_tokens(tokens: Tensor, patches: Tensor, first: int, channels_last: bool) -> Tensor:
    """The patches' tokens, [B, C, H, W], of tokens [B, T, C]; see `Tokens`."""
    height, width = patches.shape[1:3] if channels_last else patches.shape[2:]
    of_patches = tokens[:, first : first + height * width]
    return of_patches.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def find_tokens(
    main_path: Sequence[fx.Node], sizes: Mapping[fx.Node, tuple[int, ...]]
) -> list[Tokens]:
    """The tokens on the main path, from the last map there to where they are pooled.

    Args:
        main_path: nodes in order.
        sizes: of all nodes.
    """
    found: list[Tokens] = []
    patches: fx.Node | None = None
    first, length = 0, 0
    seen: set[fx.Node] = set()
    for node in main_path:
        size = sizes[node]
        if len(size) == 4:
            patches, first, length, found = node, 0, 0, []
        elif patches is not None and len(size) == 3:
            if node.target is torch.cat and length:
                if seen.isdisjoint(node.all_input_nodes):  # of tokens that came apart meanwhile
                    return []
                first += _before(node, seen, sizes)
                length = size[1]
            for last, (height, width, channels) in enumerate(((2, 3, 1), (1, 2, 3))):
                _, *of_map = sizes[patches]
                grid = of_map[height - 1], of_map[width - 1]
                area = grid[0] * grid[1]
                if size[2] == of_map[channels - 1] and size[1] == (length or area) >= area:
                    length = size[1]
                    found.append(Tokens(node, patches, bool(last), first, grid, size[2]))
                    break
        elif found and size:
            break
        seen.add(node)
    return found


def _before(joined: fx.Node, seen: set[fx.Node], sizes: Mapping[fx.Node, tuple[int, ...]]) -> int:
    """How many tokens a concatenation puts before those that were there."""
    before = 0
    for part in joined.all_input_nodes:
        if part in seen:
            break
        before += sizes[part][1]
    return before


def stages_of(found: Sequence[Tokens], network: nn.Module) -> list[Tokens]:
    """The ends of stages: of their last blocks, and for the last stage where the tokens end, behind
    a norm if there is one.

    Blocks are the most modules of one class in one place.
    """
    ends: dict[str, int] = {}
    for number, tokens in enumerate(found):
        for path in modules_around(tokens.node):
            if next(network.get_submodule(path).parameters(), None) is not None:
                ends[path] = number
    alike: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for path in ends:
        place = path.rpartition(".")[0], type(network.get_submodule(path))
        alike.setdefault(place, []).append(path)
    blocks = max(alike.values(), key=len, default=[])
    stages = min(STAGES, len(blocks))
    whole = [blocks[-(-len(blocks) * stage // stages) - 1] for stage in range(1, stages)]
    return [*(found[ends[path]] for path in whole), found[-1]]


def positions_of(
    found: Sequence[Tokens], sizes: Mapping[fx.Node, tuple[int, ...]]
) -> dict[str, Positions]:
    """The position embeddings, which are added to tokens, by their paths.

    Args:
        found: the tokens.
        sizes: of all nodes.
    """
    positions = {}
    for tokens in found:
        height, width = tokens.grid
        for read in tokens.node.all_input_nodes if tokens.node.target in _ADDING else ():
            source: fx.Node = read
            while source.op != "get_attr" and source.all_input_nodes:
                source = source.all_input_nodes[0]  # of what is resampled, say
            size = sizes.get(source, ())
            before = size[1] - height * width if len(size) == 3 else -1
            if source.op == "get_attr" and before in (0, tokens.first):
                positions[str(source.target)] = Positions(before, tokens.grid)
    return positions
