"""Commands that list methods and networks."""

import re
from typing import Annotated

import typer

from search.cli.options import console
from search.errors import SearchError


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Only this method, with what is published of it."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, as in kdcore/README.md.")
    ] = False,
) -> None:
    """List the distillation methods, or show one."""
    from search.cli.catalogue import describe_method, methods_markdown, methods_table

    if name is not None:
        console().print(describe_method(name), highlight=False)
    elif markdown:
        print(methods_markdown())
    else:
        console().print(methods_table())


def backbones() -> None:
    """List the networks that can teach or learn."""
    from search.cli.catalogue import backbones_table

    console().print(backbones_table())


def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a network.")],
    image: Annotated[
        str | None,
        typer.Option(
            metavar="CxHxW", help="Image size, like 3x224x224 (default: the native size)."
        ),
    ] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Number of classes.")] = None,
) -> None:
    """Show a network's layers, costs and taps."""
    from search.cli.catalogue import describe as description

    size = None
    if image is not None:
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", image)
        if found is None:
            raise SearchError(f"--image is {image!r}, but must have the form 3x224x224")
        channels, height, width = map(int, found.groups())
        size = channels, height, width
    console().print(description(name, size, classes), highlight=False, soft_wrap=True)
