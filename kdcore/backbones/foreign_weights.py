"""Weights that come from elsewhere: reading a file without running code from it, and fitting it.

Published files and other people's checkpoints hold the same tensors in many wrappings: beside the
state of an optimiser, under another key, with a prefix before every name, with auxiliary
classifiers or without. These are told apart by the tensors' names alone.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "student")

# Of data parallelism, of compilation, of a module that holds the network; `backbones.libraries`.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")

# Classifiers that only training has: ours, and those of the libraries' networks.
_AUXILIARY = ("auxiliary.", "aux1.", "aux2.", "AuxLogits.")

# Files from before module names lost their dots have `norm.1.weight` for `norm1.weight`.
_DOTTED = re.compile(r"\b(norm|conv)\.(\d)\.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict or checkpoint saved by PyTorch.

    Raises:
        ValueError: the file is damaged, or cannot be read without running code from it.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # The command line that many training scripts keep; it holds no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"weights file {path} cannot be read: it is damaged or holds Python objects; save "
            "its state dict alone"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"weights file {path} cannot be read: {error}") from None
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


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copies weights into a network.

    Args:
        network: on any device but the meta device.
        weights: by name; a prefix of all names is ignored.
        source: where they come from, for messages.

    Raises:
        ValueError: names or shapes differ; the message tells which, and a likely reason.
    """
    if not weights:
        raise ValueError(f"{source} does not fit: it holds no tensors with names")
    own = network.state_dict()
    prefix = _common_prefix(own)
    expected = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    strip = len(_common_prefix(weights))
    given = {}
    for name, tensor in weights.items():
        plain = name[strip:]
        renamed = _DOTTED.sub(r"\1\2.", plain)
        given[renamed if renamed in expected else plain] = tensor
    missing = [
        name
        for name in expected.keys() - given.keys()
        # Older versions of PyTorch did not count batches.
        if not (name.startswith(_AUXILIARY) or name.endswith("num_batches_tracked"))
    ]
    unexpected = [
        name for name in given.keys() - expected.keys() if not name.startswith(_AUXILIARY)
    ]
    shared = [name for name in expected if name in given]
    reshaped = [name for name in shared if given[name].shape != expected[name].shape]
    if missing or unexpected or reshaped:
        shapes = [
            f"{name} {_shape(given[name])} instead of {_shape(expected[name])}" for name in reshaped
        ]
        raise ValueError(
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
            + _other_classes(
                [(given[name], expected[name]) for name in reshaped], missing or unexpected
            )
        )
    network.load_state_dict({prefix + name: given[name] for name in shared}, strict=False)


def _common_prefix(names: Iterable[str]) -> str:
    """The known prefixes, one after the other, with which all names begin."""
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


def _other_classes(reshaped: Sequence[tuple[Tensor, Tensor]], others: Sequence[str]) -> str:
    """The end of the message, where the first dimension of the last layer is all that differs."""
    pairs = {(len(given), len(expected)) for given, expected in reshaped if given.ndim}
    same = all(given.shape[1:] == expected.shape[1:] for given, expected in reshaped)
    if others or not same or len(pairs) != 1 or len(reshaped) > 2:
        return ""
    ((given, expected),) = pairs
    return f". It was probably trained on {given} classes; here they are {expected}"
