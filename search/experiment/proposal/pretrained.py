"""Which pretrained networks are at hand: files that a user names, and the libraries' caches."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch

from kdcore.backbones.catalogue import constructor_of
from kdcore.errors import DataError, NetworkError
from kdcore.networks.measurement import count_multiply_adds

_SIDE = 96  # pixels, that networks of ImageNet's size take if they take any other


@dataclass(frozen=True)
class Pretrained:
    """A network whose weights need not be fetched.

    Args:
        backbone: the network.
        weights: the file, or the name of the library's published weights.
        file: where they lie.
    """

    backbone: str
    weights: str
    file: Path


def named(weights: Sequence[Path], backbones: Sequence[str]) -> list[Pretrained]:
    """The files that a user names, in pairs with their networks.

    Raises:
        DataError: a file is missing, or they are not pairs.
        NetworkError: there is no such network, or it takes images of one size only.
    """
    if len(weights) != len(backbones):
        raise DataError(
            f"--weights is given {len(weights)} times and --backbone {len(backbones)} times, but "
            f"each file needs its network, like --weights FILE --backbone resnet18"
        )
    for file in weights:
        if not file.expanduser().is_file():
            raise DataError(f"--weights is {file}, but there is no such file")
    for name in backbones:
        if not _takes_any_size(name):
            raise NetworkError(
                f"--backbone is {name}, which takes images of one size only; name another, or "
                f"write the experiment by hand"
            )
    paths = [file.expanduser().absolute() for file in weights]
    return [Pretrained(name, str(path), path) for name, path in zip(backbones, paths, strict=True)]


def cached() -> list[Pretrained]:
    """The published weights of torchvision and timm in this user's caches, one a network; without
    those that take images of one size only."""
    found = [*_of_torchvision()]
    if importlib.util.find_spec("timm") is not None:
        found += _of_timm()
    by_network = {each.backbone: each for each in sorted(found, key=lambda each: each.weights)}
    return [by_network[name] for name in sorted(by_network) if _takes_any_size(name)]


def _takes_any_size(name: str) -> bool:
    """Whether a network computes with small images too, as most transformers do not.

    Raises:
        NetworkError: there is no such network.
    """
    with torch.device("meta"):
        network = constructor_of(name)(2, 3)
    try:
        count_multiply_adds(network, (_SIDE, _SIDE))
    except Exception:  # whatever an assertion or a shape of the library's gives
        return False
    return True


def _of_torchvision() -> Iterator[Pretrained]:
    folder = _checkpoints()
    files = {path.name for path in folder.glob("*.pth")} if folder.is_dir() else set()
    if not files:
        return
    from torchvision import models

    for name in models.list_models(module=models):
        for each in models.get_model_weights(name):
            file = Path(urlparse(each.url).path).name
            if file in files and each.meta["categories"]:
                yield Pretrained(f"torchvision/{name}", each.name, folder / file)


def _of_timm() -> Iterator[Pretrained]:
    """Of Hugging Face's cache: `models--timm--NAME.TAG` with a snapshot that has the weights."""
    import timm

    known = set(timm.list_pretrained())
    for folder in sorted(_hub().glob("models--timm--*")):
        name = folder.name.removeprefix("models--timm--")
        files = sorted(folder.glob("snapshots/*/*"))
        files = [path for path in files if path.name in ("model.safetensors", "pytorch_model.bin")]
        if name in known and files:
            network, _, tag = name.partition(".")
            yield Pretrained(f"timm/{network}", tag, files[0])


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def _hub() -> Path:
    """Hugging Face's cache, as its own library finds it."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    usual = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HOME", usual), "hub").expanduser()
