"""Loads weights from other people's files, without running code from them.

Published files and checkpoints store a state dict in many ways: beside an optimiser's state, under
some key, with a prefix before every name, with auxiliary classifiers or without. The names of the
tensors tell them apart.
"""

import argparse
import math
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcore.backbones.positions import Positions, resample_positions, resampled_grids
from kdcore.errors import WeightsError

Grid = tuple[int, int]
NO_POSITIONS: Mapping[str, Positions] = MappingProxyType({})

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "student")

# Of data parallelism, of torch.compile, of a module that holds the network, of LibraryNetwork.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")

# Auxiliary classifiers: ours, torchvision's and timm's.
_AUXILIARY = ("auxiliary.", "aux1.", "aux2.", "AuxLogits.")

# Of batches, in batch norms; older versions of PyTorch did not count.
_COUNTER = "num_batches_tracked"

# Files from before module names lost their dots have `norm.1.weight` for `norm1.weight`.
_DOTTED = re.compile(r"\b(norm|conv)\.(\d)\.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, or a state dict or checkpoint saved by PyTorch.

    Raises:
        WeightsError: the file is damaged, of another kind, or cannot be read without running code
            from it.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # Many training scripts store their arguments as a Namespace; it holds no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"weights file {path} cannot be read: it is damaged or holds Python objects; save "
            "its state dict alone"
        ) from None
    # PyTorch raises arbitrary errors for files of another kind, IndexError among others.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise WeightsError(
            f"weights file {path} cannot be read ({reason}); it must be a safetensors file named "
            "*.safetensors, or a state dict saved by PyTorch"
        ) from None
    return _unwrapped(content)


def _unwrapped(content: object) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return {
                key: value
                for key, value in content.items()
                if isinstance(key, str) and isinstance(value, Tensor)
            }
        content = inner[0]
    return {}


@dataclass(frozen=True)
class Fit:
    """What became of weights that were loaded into a network.

    Args:
        kept: number of tensors that were copied as they are.
        total: number of tensors in the network, but for auxiliary classifiers and counters.
        replaced: names of those of the head, which stay fresh.
        classes: of the weights and of the network, where their numbers differ.
        adapted: name of the first convolution, where it was adapted to other channels; or empty.
        channels: of the weights and of the network, there.
        by_order: whether the tensors' names differ, and their order and shapes told them apart.
        resampled: by name of a position embedding, the grids of patches that it was and is for.
    """

    kept: int
    total: int
    replaced: tuple[str, ...] = ()
    classes: tuple[int, int] | None = None
    adapted: str = ""
    channels: tuple[int, int] | None = None
    by_order: bool = False
    resampled: Mapping[str, tuple[Grid, Grid]] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{self.kept} of {self.total} tensors kept"]
        if self.by_order:
            words[0] += " (named differently, but alike in order and shape)"
        if self.replaced:
            why = "{} classes instead of {}".format(*self.classes[::-1]) if self.classes else ""
            words.append(f"new head {', '.join(self.replaced)}{f' for {why}' if why else ''}")
        if self.channels:
            words.append("{} adapted from {} channels to {}".format(self.adapted, *self.channels))
        for name, grids in self.resampled.items():
            given, made = ("x".join(map(str, grid)) for grid in grids)
            words.append(f"{name} resampled from {given} patches to {made}")
        return ", ".join(words)


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    head: frozenset[str] = frozenset(),
    trained: bool = False,
    new_head: bool = False,
    positions: Mapping[str, Positions] = NO_POSITIONS,
) -> Fit:
    """Copies weights into a network.

    Args:
        network: on any device but the meta device.
        weights: see `match_weights`.
        source: likewise.
        head: likewise.
        trained: likewise.
        new_head: likewise.
        positions: likewise.

    Raises:
        WeightsError: names or shapes differ; the message lists them, with a likely reason.
    """
    fit, matched = match_weights(
        network.state_dict(),
        weights,
        source=source,
        head=head,
        trained=trained,
        new_head=new_head,
        positions=positions,
    )
    network.load_state_dict(matched, strict=False)
    return fit


def match_weights(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    source: str,
    head: frozenset[str] = frozenset(),
    trained: bool = False,
    new_head: bool = False,
    positions: Mapping[str, Positions] = NO_POSITIONS,
) -> tuple[Fit, dict[str, Tensor]]:
    """Finds the weights of a network among given ones.

    Tensors whose names differ are accepted where all of them agree in order, in shape and in the
    last part of their names.

    Args:
        own: the network's tensors by name, on any device.
        weights: tensors by name; a known prefix that all names share is ignored.
        source: what to call them in messages.
        head: names of the network's classifier.
        trained: whether a training follows: then the head stays as it is in the network where it
            does not fit, and the first convolution is adapted to other channels; else all must fit.
        new_head: whether the head stays as it is in any case.
        positions: of the network's position embeddings, which are resampled where those given are
            for images of another size.

    Returns:
        What becomes of them, and the tensors to copy into the network.

    Raises:
        WeightsError: names or shapes differ; the message lists them, with a likely reason.
    """
    if not weights:
        raise WeightsError(f"{source} does not fit: it has no named tensors")
    prefix = _common_prefix(own)
    expected = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    strip = len(_common_prefix(weights))
    given = {}
    for name, tensor in weights.items():
        plain = name[strip:]
        renamed = _DOTTED.sub(r"\1\2.", plain)
        given[renamed if renamed in expected else plain] = tensor
    head = frozenset(name.removeprefix(prefix) for name in head)
    positions = {name.removeprefix(prefix): at for name, at in positions.items()}
    first = next((name for name, tensor in expected.items() if tensor.ndim == 4), "")
    in_order = _renamed_by_order(given, expected, head, first)
    given = in_order or given
    replaced = {
        name
        for name in (head if trained else ())
        if new_head or name not in given or _differs_in(given[name], expected[name], 0)
    }
    missing = [
        name
        for name in expected.keys() - given.keys() - replaced
        if not (name.startswith(_AUXILIARY) or name.endswith(_COUNTER))
    ]
    unexpected = [
        name for name in given.keys() - expected.keys() if not name.startswith(_AUXILIARY)
    ]
    shared = [name for name in expected if name in given and name not in replaced]
    adapts = trained and first in shared and _differs_in(given[first], expected[first], 1)
    adapted = first if adapts else ""
    grids = resampled_grids(given, expected, positions)
    changed = {adapted, *grids}
    reshaped = [
        name for name in shared if given[name].shape != expected[name].shape and name not in changed
    ]
    if missing or unexpected or reshaped:
        pairs = {name: (given[name], expected[name]) for name in reshaped}
        shapes = [
            f"{name} {_shape(given[name])} instead of {_shape(expected[name])}" for name in reshaped
        ]
        raise WeightsError(
            f"{source} does not fit: "
            + "; ".join(
                f"{len(names)} {what} ({_shortened(names)})"
                for what, names in (
                    ("missing", sorted(missing, key=list(expected).index)),
                    ("unexpected", sorted(unexpected, key=list(given).index)),
                    ("of another shape", shapes),
                )
                if names
            )
            + ("" if trained else _other_images(pairs, first, missing or unexpected))
        )
    loaded = {name: given[name] for name in shared}
    channels = None
    if adapted:
        channels = given[adapted].shape[1], expected[adapted].shape[1]
        loaded[adapted] = adapt_first_convolution(given[adapted], channels[1])
    for name, grid in grids.items():
        loaded[name] = resample_positions(given[name], grid, positions[name])
    classes = {
        (len(given[name]), len(expected[name]))
        for name in replaced
        if name in given and len(given[name]) != len(expected[name])
    }
    counted = [n for n in expected if not (n.startswith(_AUXILIARY) or n.endswith(_COUNTER))]
    fit = Fit(
        kept=sum(name in loaded and name not in changed for name in counted),
        total=len(counted),
        replaced=tuple(n for n in expected if n in replaced and not n.startswith(_AUXILIARY)),
        classes=next(iter(classes), None),
        adapted=adapted,
        channels=channels,
        by_order=in_order is not None,
        resampled={name: (grid, positions[name].grid) for name, grid in grids.items()},
    )
    return fit, {prefix + name: tensor for name, tensor in loaded.items()}


def adapt_first_convolution(weight: Tensor, channels: int) -> Tensor:
    """The weight of a convolution that reads images, for images of other channels.

    One channel is read with the sum of the kernels, so that a grey image gives what it gave with
    equal channels; more channels with the kernels in turn, scaled to keep the size of the sum, as
    timm's `adapt_input_conv` does.

    Args:
        weight: [O, C, H, W].
        channels: C of the new weight.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    given = weight.shape[1]
    tiled = weight.repeat(1, math.ceil(channels / given), 1, 1)[:, :channels]
    return tiled * (given / channels)


def _renamed_by_order(
    given: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    head: frozenset[str],
    first: str,
) -> dict[str, Tensor] | None:
    """The given tensors with the expected names in the same order; None where the names are those
    that are expected, or the tensors do not agree one to one."""
    theirs, ours = (
        [n for n in names if not (n.startswith(_AUXILIARY) or n.endswith(_COUNTER))]
        for names in (given, expected)
    )
    if len(theirs) != len(ours) or set(theirs) & set(ours):
        return None
    for their, our in zip(theirs, ours, strict=True):
        old, new = given[their], expected[our]
        fits = (
            old.shape == new.shape
            or (our in head and _differs_in(old, new, 0))
            or (our == first and _differs_in(old, new, 1))
        )
        if not fits or their.rpartition(".")[2] != our.rpartition(".")[2]:
            return None
    return {our: given[their] for their, our in zip(theirs, ours, strict=True)}


def _differs_in(given: Tensor, expected: Tensor, dimension: int) -> bool:
    """Whether the shapes differ in this dimension alone."""
    if given.ndim != expected.ndim:
        return False
    differing = [
        number
        for number, (old, new) in enumerate(zip(given.shape, expected.shape, strict=True))
        if old != new
    ]
    return differing == [dimension]


def _common_prefix(names: Iterable[str]) -> str:
    """The longest chain of known prefixes that all names share."""
    names, prefix = list(names), ""
    while names:
        further = [p for p in _PREFIXES if all(n.startswith(prefix + p) for n in names)]
        if not further:
            break
        prefix += further[0]
    return prefix


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _other_images(
    reshaped: Mapping[str, tuple[Tensor, Tensor]], first: str, others: Sequence[str]
) -> str:
    """A hint, where only the number of classes differs, or that of channels, or both."""
    rest = dict(reshaped)
    given, expected = rest.pop(first, (None, None))
    trained_on = []
    if given is not None and expected is not None:
        if not _differs_in(given, expected, 1):
            return ""
        trained_on.append(f"{given.shape[1]} channels; the data has {expected.shape[1]}")
    classes = {(len(given), len(expected)) for given, expected in rest.values() if given.ndim}
    same = all(_differs_in(*pair, 0) for pair in rest.values())
    if others or not same or len(classes) > 1 or len(rest) > 2:
        return ""
    trained_on += [f"{given} classes; the data has {expected}" for given, expected in classes]
    return (
        f". It was probably trained on {', and on '.join(trained_on)}. Add training, which adapts "
        "the weights"
    )
