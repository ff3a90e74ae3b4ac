"""Commands for a user's own code: check-plugin, new."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from search.cli.plugin_templates import METHOD, TEST
from search.errors import SearchError

new = typer.Typer(help="Write a first file for code of your own.", no_args_is_help=True)


def check_plugin(
    plugin: Annotated[
        str, typer.Argument(metavar="FILE", help="A Python file, or a module of a package.")
    ],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of its data sets' files.")
    ] = None,
) -> None:
    """Check your own methods, networks and data sets against their contract."""
    import kdcore.backbones.catalogue
    import kdcore.data.registry  # noqa: F401  (these two keep their names)
    from kdcore.contract.plugged import read_plugin
    from kdcore.distillation.plugin_contract import breaches_of

    found = read_plugin(plugin, Path())
    with tempfile.TemporaryDirectory() as workspace:
        wrong = breaches_of(found, Path(workspace), root)
    for each in wrong:
        print(f"{plugin}: {each}")
    if wrong:
        raise typer.Exit(2)
    print(f"{found}: it keeps its contract\nIn an experiment: plugins: [{plugin}]")


@new.command("method")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the method, and of its file.")],
) -> None:
    """Write NAME.py, a method that can be searched, and test_NAME.py, its test."""
    if not name.isidentifier() or name != name.lower():
        raise SearchError(f"{name!r} is no name of a method: use small letters, digits and _")
    from kdcore.methods import CATALOGUE

    if name in CATALOGUE:
        raise SearchError(f"the catalogue has a method {name!r}; choose another, like my_{name}")
    names = {"NAME": name, "CLASS": "".join(part.title() for part in name.split("_"))}
    files = {Path(f"{name}.py"): METHOD, Path(f"test_{name}.py"): TEST}
    for file in files:
        if file.exists():
            raise SearchError(f"{file} is there already; choose another name")
    for file, text in files.items():
        for placeholder, value in names.items():
            text = text.replace(placeholder, value)  # noqa: PLW2901
        file.write_text(text)
    print(
        f"wrote {name}.py, which works as it is, and test_{name}.py\n\nNext:\n"
        f"  kdsearch check-plugin {name}.py   # the contract of methods\n"
        f"  pytest test_{name}.py             # the same, and its twin\n"
        f"and in an experiment: plugins: [{name}.py] with {name} in the objective"
    )
