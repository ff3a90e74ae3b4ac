"""Which pretrained networks are at hand: files that a user names, and the libraries' caches."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch

from kdcore.backbones.names import check_backbone
from kdcore.errors import DataError


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
        NetworkError: there is no such network.
    """
    if len(weights) != len(backbones):
        raise DataError(
            f"--weights is given {len(weights)} times and --backbone {len(backbones)} times, but "
            f"each file needs its network, like --weights FILE --backbone resnet18"
        )
    for file in weights:
        if not file.expanduser().is_file():
            raise DataError(f"--weights is {file}, but there is no such file")
    return [
        Pretrained(check_backbone(name), str(path), path)
        for name, path in zip(
            backbones, (file.expanduser().absolute() for file in weights), strict=True
        )
    ]


def cached() -> list[Pretrained]:
    """The published weights of torchvision and timm in this user's caches."""
    found = [*_of_torchvision()]
    if importlib.util.find_spec("timm") is not None:
        found += _of_timm()
    return sorted(found, key=lambda each: (each.backbone, each.weights))


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
