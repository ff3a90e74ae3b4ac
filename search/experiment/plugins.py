"""A user's own code in an experiment: named in a file, or registered in Python."""

import inspect
import linecache
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from kdcore.contract import plugged
from kdcore.contract.plugin import Kind, Plugin
from kdcore.contract.plugin_code import MAPPINGS, importing
from kdcore.errors import PluginError
from search.errors import ExperimentError, Problem

KEY = "plugins"

_registered: dict[tuple[Kind, str], Plugin] = {}


def read_plugins(given: object, source: str, folder: Path) -> list[Any]:
    """The plugins that an experiment names; those that were read already stay.

    Args:
        given: the key's value.
        source: the experiment's file, for messages.
        folder: that files are relative to.

    Raises:
        ExperimentError: with what is wrong with them.
    """
    if not isinstance(given, list | tuple):
        message = f"is {given!r:.60}, but must be a list of files and modules, like [my_losses.py]"
        raise ExperimentError(source, [Problem(key=KEY, message=message)])
    plugins: list[Any] = []
    problems: list[Problem] = []
    for number, each in enumerate(given):
        try:
            plugins.append(plugged.read_plugin(each, folder) if isinstance(each, str) else each)
        except PluginError as error:
            problems.append(Problem(key=f"{KEY}.{number}", message=str(error)))
    try:
        with plugged.declared([each for each in plugins if isinstance(each, Plugin)]):
            pass
    except PluginError as error:
        problems.append(Problem(key=KEY, message=str(error)))
    if problems:
        raise ExperimentError(source, problems)
    return plugins


def declared_in(content: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Makes the names known of the plugins that keys hold, for a block that validates these."""
    try:
        plugins = TypeAdapter(tuple[Plugin, ...]).validate_python(content.get(KEY) or ())
    except ValidationError:  # told where the field is validated
        plugins = ()
    return plugged.declared(plugins)


def with_registered(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of an experiment, with the registered plugins whose names it uses."""
    if not _registered:
        return content
    data = content.get("data")
    used = [content.get(key) for key in ("objective", "student", "teacher")]
    used.append(data.get("name") if isinstance(data, Mapping) else getattr(data, "name", None))
    words = {part for text in _texts(used) for part in (text, *text.split("+"))}
    given = content.get(KEY) or ()
    if not isinstance(given, list | tuple):  # told where the key is validated
        return content
    known = {
        (kind, name)
        for each in given
        if isinstance(each, Plugin | Mapping)
        for kind in Kind
        for name in (each.names(kind) if isinstance(each, Plugin) else each.get(kind, ()))
    }
    added = [
        plugin
        for (kind, name), plugin in _registered.items()
        if name in words and (kind, name) not in known
    ]
    return {**content, KEY: [*given, *added]} if added else content


def register(kind: Kind, given: Mapping[str, Any]) -> None:
    """Makes objects known to the experiments that this process reads from now on.

    Their code, which goes wherever a search does, is the file that they are defined in, or in a
    notebook the cell; it must import what it needs, and may only define things. Registering a name
    again replaces it.

    Args:
        kind: of the objects.
        given: by name, the objects.

    Raises:
        PluginError: the code cannot be found, or is no plugin by itself.
    """
    if importing():  # in a process that has its code already
        return
    for name, thing in given.items():
        if not hasattr(thing, "__name__"):
            raise PluginError(f"{name!r} is {thing!r:.60}, but must be a class or a function")
        file = _file_of(name, thing)
        linecache.checkcache(file)
        text = "".join(linecache.getlines(file))
        if not text:
            raise PluginError(
                f"the code of {name!r} cannot be found; define it in a file, or in a cell of a "
                f"notebook"
            )
        code = f"{text.rstrip()}\n\n{MAPPINGS[kind]} = {{{name!r}: {thing.__name__}}}\n"
        path = Path(file)
        module = path.stem if path.suffix == ".py" and path.stem.isidentifier() else "cell"
        label = f"{module}.py ({name})"
        _registered[kind, name] = plugged.plugin_from(label, module, {f"{module}.py": code})


def _file_of(name: str, thing: Any) -> str:
    """The file, or what a notebook calls a cell, that an object is defined in."""
    for part in (*vars(thing).values(), thing) if isinstance(thing, type) else (thing,):
        code = getattr(inspect.unwrap(part) if callable(part) else part, "__code__", None)
        if code is not None and part.__module__ == thing.__module__:
            return str(code.co_filename)
    raise PluginError(f"{name!r} is {thing!r:.60}, but must be a class or function of yours")


def _texts(value: Any) -> Iterator[str]:
    """All texts in a tree of plain values and configurations."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
