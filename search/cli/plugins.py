"""Commands for a user's own code: check-plugin, new."""

import tempfile
from keyword import iskeyword
from pathlib import Path
from typing import Annotated

import typer

from kdcore.contract.plugin import WORDS, Kind
from search.cli import plugin_templates as templates
from search.errors import SearchError

new = typer.Typer(help="Write a first file for code of your own.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Of what it adds, and of its file.")]


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
    from kdcore.distillation.method_contract import twin_speed
    from kdcore.distillation.plugin_contract import breaches_of

    found = read_plugin(plugin, Path())
    with tempfile.TemporaryDirectory() as workspace:
        wrong = breaches_of(found, Path(workspace), root)
    for each in wrong:
        print(f"{plugin}: {each}")
    if wrong:
        raise typer.Exit(2)
    print(f"{found}: it keeps its contract")
    for speed in filter(None, map(twin_speed, found.methods)):
        print(speed)
    print(f"In an experiment: plugins: [{plugin}]")


@new.command("method")
def new_method(name: _Name) -> None:
    """Write NAME.py, a method that can be searched, and test_NAME.py, its test."""
    _write(Kind.METHODS, name, templates.METHOD, templates.METHOD_TEST, f"objective: [[{name}]]")


@new.command("network")
def new_network(name: _Name) -> None:
    """Write NAME.py, a network that can teach and learn, and test_NAME.py, its test."""
    _write(Kind.BACKBONES, name, templates.NETWORK, templates.NETWORK_TEST, f"student: {name}")


@new.command("data")
def new_data(name: _Name) -> None:
    """Write NAME.py, a data set of your own, and test_NAME.py, its test."""
    _write(Kind.DATA, name, templates.DATA, templates.DATA_TEST, f"data: {{name: {name}}}")


def _write(kind: Kind, name: str, code: str, test: str, used: str) -> None:
    """Writes a first file and its test.

    Raises:
        SearchError: the name is none, or taken.
    """
    import kdcore.backbones.names
    import kdcore.data.registry
    import kdcore.methods  # noqa: F401  (these three keep their names)
    from kdcore.contract.plugged import is_reserved
    from kdcore.contract.plugin_code import NAME

    if not NAME.fullmatch(name) or iskeyword(name):
        raise SearchError(
            f"{name!r} is no name of a {WORDS[kind]}: use small letters, digits and _"
        )
    if is_reserved(kind, name):
        raise SearchError(
            f"the catalogue has a {WORDS[kind]} {name!r}; choose another, like my_{name}"
        )
    words = {"NAME": name, "CLASS": "".join(part.title() for part in name.split("_"))}
    files = {Path(f"{name}.py"): code, Path(f"test_{name}.py"): test}
    for file in files:
        if file.exists():
            raise SearchError(f"{file} is there already; choose another name")
    for file, text in files.items():
        for placeholder, word in words.items():
            text = text.replace(placeholder, word)  # noqa: PLW2901
        file.write_text(text)
    print(
        f"wrote {name}.py, which works as it is, and test_{name}.py\n\nNext:\n"
        f"  kdsearch check-plugin {name}.py   # the contract of a {WORDS[kind]}\n"
        f"  pytest test_{name}.py             # the same, and your own tests\n"
        f"and in an experiment: plugins: [{name}.py] with {used}"
    )
