"""Loads weights from other people's files, without running code from them.

Published files and checkpoints store a state dict in many ways: beside an optimiser's state, under
some key, with a prefix before every name, with auxiliary classifiers or without. The names of the
tensors tell them apart.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcore.errors import WeightsError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "student")

# Of data parallelism, of torch.compile, of a module that holds the network, of LibraryNetwork.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")

# Auxiliary classifiers: ours, torchvision's and timm's.
_AUXILIARY = ("auxiliary.", "aux1.", "aux2.", "AuxLogits.")

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


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copies weights into a network.

    Args:
        network: on any device but the meta device.
        weights: tensors by name; a known prefix that all names share is ignored.
        source: what to call them in messages.

    Raises:
        WeightsError: names or shapes differ; the message lists them, with a likely reason.
    """
    if not weights:
        raise WeightsError(f"{source} does not fit: it has no named tensors")
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
            + _other_classes(
                [(given[name], expected[name]) for name in reshaped], missing or unexpected
            )
        )
    network.load_state_dict({prefix + name: given[name] for name in shared}, strict=False)


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


def _other_classes(reshaped: Sequence[tuple[Tensor, Tensor]], others: Sequence[str]) -> str:
    """A hint, where only the number of classes differs."""
    pairs = {(len(given), len(expected)) for given, expected in reshaped if given.ndim}
    same = all(given.shape[1:] == expected.shape[1:] for given, expected in reshaped)
    if others or not same or len(pairs) != 1 or len(reshaped) > 2:
        return ""
    ((given, expected),) = pairs
    return f". It was probably trained on {given} classes; the data has {expected}"
