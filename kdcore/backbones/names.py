"""Names of networks, checked without importing PyTorch."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kdcore.contract import plugged
from kdcore.contract.plugin import Kind
from kdcore.errors import NetworkError, did_you_mean

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "inception": (
        "inception_v1",
        "inception_v1_bn",
        "inception_v1_cifar",
        "bn_inception",
        "inception_v2",
        "inception_v2_cifar",
    ),
    "mobilenet": ("mobilenetv2",),
    "resnet": (
        *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)),
        *("resnet8x4", "resnet32x4", "resnet50_cifar"),
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    ),
    "shufflenet": ("shufflenetv1", "shufflenetv2"),
    "vgg": (
        *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
        *("vgg8", "vgg11_cifar", "vgg13_cifar", "vgg16_cifar", "vgg19_cifar"),
    ),
    "wrn": ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
}
"""The names in `NETWORKS` of each family, by its file in this folder."""

FAMILY_OF: Mapping[str, str] = {name: family for family in FAMILIES for name in FAMILIES[family]}
"""The family of each network."""

plugged.reserve(Kind.BACKBONES, FAMILY_OF)

LIBRARIES = ("torchvision", "timm")
"""Packages whose networks are named `PACKAGE/NAME`."""

_PYRAMID = re.compile(r"fpn([1-9]\d*)?(-extra)?")


class PyramidName(NamedTuple):
    """A parsed name like `resnet50+fpn128-extra`.

    Args:
        body: name of the network below.
        width: channels of each level; None for the default.
        extra_level: whether there is one more, coarser level.
    """

    body: str
    width: int | None
    extra_level: bool


def pyramid_name(name: str) -> PyramidName | None:
    """Parses a pyramid's name; None for other names.

    Raises:
        NetworkError: the part after the plus sign has another form.
    """
    body, plus, suffix = name.partition("+")
    if not plus:
        return None
    parts = _PYRAMID.fullmatch(suffix)
    if parts is None:
        raise NetworkError(
            f"unknown backbone {name!r}: the part after the plus sign is {suffix!r}, but "
            f"must be 'fpn', 'fpn128' for 128 channels, or these with '-extra' for one more level"
        )
    width, extra = parts.groups()
    return PyramidName(body, int(width) if width else None, extra is not None)


_REUSED = re.compile(r"(.*)\+projector(\d+)(?:/(\d+))?")


class ReusedName(NamedTuple):
    """A parsed name like `resnet8+projector256/2`: of a student with its teacher's classifier.

    Args:
        body: name of the network below.
        width: of the teacher's embedding.
        pooling: side of the squares over which the body's map is averaged.
    """

    body: str
    width: int
    pooling: int


def reused_name(body: str, width: int, pooling: int) -> str:
    """The name of a network with a projector to a teacher's classifier; see `ReusedName`."""
    return f"{body}+projector{width}" + (f"/{pooling}" if pooling > 1 else "")


def parsed_reused_name(name: str) -> ReusedName | None:
    """Parses the name of such a network; None for other names. Trainings make them; in a
    configuration they are unknown."""
    found = _REUSED.fullmatch(name)
    return ReusedName(found[1], int(found[2]), int(found[3] or 1)) if found else None


_ENSEMBLE = re.compile(r"ensemble\((.+)\)")


def ensemble_name(members: Iterable[str]) -> str:
    """The name of several networks that answer together."""
    return f"ensemble({','.join(members)})"


def ensemble_members(name: str) -> tuple[str, ...]:
    """The networks of an ensemble, by its name; none of other names."""
    found = _ENSEMBLE.fullmatch(name)
    return tuple(found[1].split(",")) if found else ()


def library_name(name: str) -> tuple[str, str] | None:
    """Splits a name like `timm/resnet50` into library and network; None for other names."""
    package, slash, network = name.partition("/")
    return (package, network) if slash and package in LIBRARIES and "+" not in network else None


def check_backbone(name: str) -> str:
    """Returns the name if it is known, or has the form of a library's network.

    Whether the library has that network is checked by `catalogue.constructor_of`.

    Raises:
        NetworkError: the network is unknown.
    """
    pyramid = pyramid_name(name)
    if pyramid is not None:
        check_backbone(pyramid.body)
    elif not (
        name in FAMILY_OF
        or library_name(name) is not None
        or plugged.is_plugged(Kind.BACKBONES, name)
    ):
        known = (*FAMILY_OF, *plugged.names_of(Kind.BACKBONES))
        raise NetworkError(
            f"unknown backbone {name!r}{did_you_mean(name, known)} "
            f"The catalogue has {', '.join(known)}"
        )
    return name


def own_digests(name: str) -> dict[str, str]:
    """By name, the digests of the users' own networks in a network's name; none in most."""
    parts = [part.partition("+")[0] for part in ensemble_members(name) or (name,)]
    found = {part: plugged.digest_of_name(Kind.BACKBONES, part) for part in parts}
    return {part: digest for part, digest in found.items() if digest}


def versioned(name: str) -> str:
    """A network's name, with the digests of users' own networks in it: what is remembered of a
    network is remembered under this."""
    return " ".join((name, *own_digests(name).values()))
