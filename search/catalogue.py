"""The tables of methods and networks, generated from their declarations."""

import torch
from rich.table import Table

from kdcore.backbones import BACKBONES
from kdcore.method import Method
from kdcore.methods import CATALOGUE
from kdcore.span import Choice, LayerChoice, Span

_COLUMNS = ("name", "what it does", "paper", "reads", "searched (published value)")


def _searched(method: type[Method]) -> str:
    published = method.Params()
    texts = []
    for name, mark in method.Params.searched().items():
        match mark:
            case Span():
                values = f"{mark.low:g} to {mark.high:g}"
            case Choice():
                values = ", ".join(map(str, mark.options))
            case LayerChoice():
                values = "pairs, all"
        texts.append(f"{name}: {values} ({getattr(published, name)})")
    return "; ".join(texts) or "-"


def _methods() -> list[tuple[str, ...]]:
    return [
        (
            name,
            (method.__doc__ or "").strip().splitlines()[0],
            method.paper,
            ", ".join(sorted(method.needs)) or "-",
            _searched(method),
        )
        for name, method in CATALOGUE.items()
    ]


def methods_markdown() -> str:
    """The catalogue of methods as a Markdown table."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *_methods()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def methods_table() -> Table:
    """The catalogue of methods for a terminal."""
    table = Table(*_COLUMNS, show_lines=True)
    for cells in _methods():
        table.add_row(*cells)
    return table


def backbones_table() -> Table:
    """The networks with parameters (100 classes, 3 channels) and taps (channels, reduction)."""
    table = Table("name", "parameters", "embedding", "taps: channels/reduction")
    for name, constructor in BACKBONES.items():
        with torch.device("meta"):
            network = constructor(100, 3)
        taps = [f"{t.name} {t.channels}/{t.reduction}" for t in network.declared]
        parameters = sum(parameter.numel() for parameter in network.parameters())
        table.add_row(name, f"{parameters:,}", str(network.embedding_width), ", ".join(taps))
    return table
