"""The tables of methods and networks, generated from their declarations."""

import re

import torch
import torchinfo
from rich.console import Group
from rich.table import Table

from kdcore.backbones.backbone import Backbone
from kdcore.backbones.catalogue import BACKBONES, constructor_of
from kdcore.backbones.probe import probe_shapes
from kdcore.contract.method import Method
from kdcore.contract.published import BENCHMARKS
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.methods import CATALOGUE, check_method
from kdcore.networks.measurement import count_multiply_adds, count_parameters
from search.record.wording import markdown_table

# The largest image that networks for small images are designed for.
_CIFAR_SIDE = 64
_BACKBONES_CAPTION = """For three channels, and 100 classes (1000 for images larger than 64x64).
Also: NAME+fpn is a pyramid over a network; torchvision/NAME and timm/NAME are these libraries' own.
kdsearch describe NAME shows its layers."""
_COLUMNS = ("name", "what it does", "paper", "reads", "searched (published value)")


def _values(mark: Span | Choice | LayerChoice) -> str:
    match mark:
        case Span():
            return f"{mark.low:g} to {mark.high:g}"
        case Choice():
            return ", ".join(map(str, mark.options))
        case LayerChoice():
            return "pairs, all"


def _searched(method: type[Method]) -> str:
    published = method.Params()
    texts = [
        f"{name}: {_values(mark)} ({getattr(published, name)})"
        for name, mark in method.Params.searched().items()
    ]
    return "; ".join(texts) or "-"


def _reads(method: type[Method]) -> str:
    return ", ".join(sorted(method.needs)) or "-"


def _methods() -> list[tuple[str, ...]]:
    return [
        (
            name,
            (method.__doc__ or "").strip().splitlines()[0],
            method.paper,
            _reads(method),
            _searched(method),
        )
        for name, method in CATALOGUE.items()
    ]


def methods_markdown() -> str:
    """The catalogue of methods as a Markdown table."""
    return markdown_table((_COLUMNS, *_methods()))


def methods_table() -> Table:
    """The catalogue of methods for a terminal."""
    table = Table(*_COLUMNS, show_lines=True)
    for cells in _methods():
        table.add_row(*cells)
    return table


def describe_method(name: str) -> Group:
    """A method's settings: what is legal to search, and what is published for each benchmark.

    Raises:
        ValueError: there is no such method.
    """
    method = CATALOGUE[check_method(name)]
    published = {benchmark: method.published_on(benchmark) for benchmark in BENCHMARKS}
    table = Table("setting", "searched", *published)
    of = {each: method.Params.model_validate(it.settings) for each, it in published.items()}
    marks = method.Params.searched()
    for setting in method.Params.model_fields:
        table.add_row(
            setting,
            _values(marks[setting]) if setting in marks else "-",
            *(f"{getattr(params, setting)}" for params in of.values()),
        )
    besides = [", ".join(it.companions().values()) for it in published.values()]
    if any(besides):
        table.add_row("beside", "", *besides)
    table.add_row("source", "", *(it.source for it in published.values()))
    first = (method.__doc__ or "").strip().splitlines()[0]
    return Group(f"{name}: {first}\n{method.paper}; reads {_reads(method)}", table)


def _classes(backbone: Backbone) -> int:
    """As many as the data sets have that a network was designed for: CIFAR-100 or ImageNet."""
    return 100 if max(backbone.native_size) <= _CIFAR_SIDE else 1000


def _taps(backbone: Backbone) -> str:
    return ", ".join(f"{tap.name} {tap.channels}/{tap.reduction}" for tap in backbone.declared)


def backbones_table() -> Table:
    """The networks with what they cost at their native image, and their taps."""
    table = Table(
        "name",
        "image",
        "parameters",
        "multiply-adds",
        "embedding",
        "taps: channels/reduction",
        caption=_BACKBONES_CAPTION,
        caption_justify="left",
    )
    for name, constructor in BACKBONES.items():
        with torch.device("meta"):
            probe = constructor(2, 3)
            network = constructor(_classes(probe), 3)
        network.drop_auxiliary()
        height, width = network.native_size
        table.add_row(
            name,
            f"{height}x{width}",
            f"{count_parameters(network):,}",
            f"{count_multiply_adds(network, network.native_size):,}",
            str(network.embedding_width),
            _taps(network),
        )
    return table


def describe(name: str, image: tuple[int, int, int] | None, classes: int | None) -> Group:
    """A network's layers, what they cost, and its taps.

    Args:
        name: of the network.
        image: channels, height and width; none: three channels of the native size.
        classes: none: those of the data set that it was designed for.

    Raises:
        ValueError: there is no such network, or the image is too small for it.
    """
    constructor = constructor_of(name, None if image is None else image[1:])
    channels = 3 if image is None else image[0]
    with torch.device("meta"):
        network = constructor(2, channels)
        classes = classes or _classes(network)
        network = constructor(classes, channels).eval()
    network.drop_auxiliary()
    size = network.native_size if image is None else image[1:]
    shapes = probe_shapes(name, num_classes=classes, in_channels=channels, image_size=size)
    layers = torchinfo.summary(
        network,
        input_data=torch.empty(1, channels, *size, device="meta"),
        device="meta",
        depth=8,
        verbose=0,
        col_names=("output_size", "num_params", "mult_adds"),
        row_settings=("var_names",),
    )
    # Its own totals below the last ruler count another way: batch norms are multiply-adds there.
    ruled = re.split(r"=+\n", str(layers))
    taps = Table("tap", "channels x height x width", "reduction", "activation")
    if network.further:
        taps.add_column("note")
    for tap in (*network.declared, *network.further.values()):
        shape = "x".join(map(str, shapes.maps[tap.name]))
        note = [tap.note] if network.further else []
        taps.add_row(tap.name, shape, str(tap.reduction), tap.activation, *note)
    taps.add_row("embedding", str(shapes.embedding_width), "", "")
    taps.add_row("logits", str(shapes.num_classes), "", "")
    return Group(
        "\n".join(part.strip("\n") for part in ruled[1:3]),
        "",
        f"{name}: {count_parameters(network):,} parameters, "
        f"{count_multiply_adds(network, size):,} multiply-adds of convolutions and matrix products "
        f"for an image of {channels}x{size[0]}x{size[1]}, {classes} classes",
        taps,
    )
