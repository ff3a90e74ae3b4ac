"""Which plugins there are: those in use, those of a text that is being read, installed ones.

Every catalogue looks here for names that are not its own. Reading a record of a search declares the
names of its plugins while it is read, and runs nothing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from kdcore.contract.plugin import WORDS, Kind, Plugin, digest_of
from kdcore.contract.plugin_code import (
    installed_sources,
    is_run,
    package_sources,
    provided_by,
)
from kdcore.contract.plugin_faults import ending_hangs, mark_installed
from kdcore.errors import PluginError

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_declared: ContextVar[tuple[Plugin, ...] | None] = ContextVar("declared", default=None)
_in_use: list[Plugin] = []
_taken: dict[Kind, tuple[str, ...]] = {}


def reserve(kind: Kind, names: Iterable[str]) -> None:
    """Keeps the names of a catalogue from plugins."""
    _taken[kind] = tuple(names)


def is_reserved(kind: Kind, name: str) -> bool:
    """Whether a catalogue has this name, where that has been loaded."""
    return name in _taken.get(kind, ())


@cache
def _installed(kind: Kind) -> Mapping[str, Any]:
    """By name, the entry points of a kind; two packages with one name are no choice of ours."""
    found: dict[str, Any] = {}
    for point in entry_points(group=f"kdsearch.{kind}"):
        for reason, wrong in (
            ("the catalogue has one of that name", is_reserved(kind, point.name)),
            ("so does another package", point.name in found),
        ):
            if wrong:
                raise PluginError(
                    f"the installed {point.value} adds the {WORDS[kind]} {point.name!r}, but "
                    f"{reason}; uninstall it"
                )
        found[point.name] = point
    return found


def _known() -> tuple[Plugin, ...]:
    """Those that are declared, where some are or none; else those in use."""
    declared = _declared.get()
    return tuple(_in_use) if declared is None else declared


def plugin_of(kind: Kind, name: str) -> Plugin | None:
    """The plugin that adds a name; none for the catalogue's, and for an entry point."""
    for plugin in _known():
        if name in plugin.names(kind):
            return plugin
    return None


def is_plugged(kind: Kind, name: str) -> bool:
    """Whether a plugin adds this name; its code may not have been run."""
    return plugin_of(kind, name) is not None or name in _installed(kind)


def is_at_hand(kind: Kind, name: str) -> bool:
    """Whether what has this name may be loaded: code that comes with a record is not."""
    plugin = plugin_of(kind, name)
    return name in _installed(kind) if plugin is None else is_run(plugin)


def names_of(kind: Kind) -> list[str]:
    """The names of all plugins that may be loaded."""
    own = [name for plugin in _known() for name in plugin.names(kind)]
    return [name for name in dict.fromkeys((*own, *_installed(kind))) if is_at_hand(kind, name)]


def loaded(kind: Kind, name: str) -> Any:
    """What a plugin adds under this name.

    Raises:
        KeyError: none does, or its code may not be run.
        PluginError: an installed package cannot be imported.
    """
    if not is_at_hand(kind, name):
        raise KeyError(name)
    plugin = plugin_of(kind, name)
    if plugin is not None:
        return provided_by(plugin)[kind][name]
    point = _installed(kind)[name]
    mark_installed(point.module)
    try:
        with ending_hangs():
            found = point.load()
    except Exception as error:
        raise PluginError(
            f"the installed {point.value}, of the {WORDS[kind]} {name!r}, cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from None
    return found


@cache
def _digest_of_installed(kind: Kind, name: str) -> str:
    module = _installed(kind)[name].module
    return digest_of(module, installed_sources(module))


def digest_of_name(kind: Kind, name: str) -> str:
    """The digest of the code that adds a name; empty for the catalogue's."""
    if is_reserved(kind, name):
        return ""
    if (plugin := plugin_of(kind, name)) is not None:
        return plugin.digest
    return _digest_of_installed(kind, name) if name in _installed(kind) else ""


@contextmanager
def declared(plugins: Iterable[Plugin]) -> Iterator[None]:
    """Makes the names of these plugins known until the end of the block, and those of no others,
    in use or not; runs nothing.

    Raises:
        PluginError: two of them add the same name.
    """
    plugins = tuple(plugins)
    _check_once(plugins)
    token = _declared.set(plugins)
    try:
        yield
    finally:
        _declared.reset(token)


def use(plugins: Iterable[Plugin]) -> None:
    """Runs the code of plugins, which replace those in use before.

    Raises:
        PluginError: one of them cannot be imported, or two add the same name.
    """
    plugins = tuple(plugins)
    _check_once(plugins)
    for plugin in plugins:
        provided = provided_by(plugin)
        for kind in Kind:
            if missing := set(plugin.names(kind)) - provided[kind].keys():
                raise PluginError(f"{plugin.name} does not add {', '.join(sorted(missing))}")
    _in_use[:] = plugins


def in_use() -> tuple[Plugin, ...]:
    """The plugins whose code is in use."""
    return tuple(_in_use)


def _check_once(plugins: tuple[Plugin, ...]) -> None:
    for kind in Kind:
        seen: dict[str, str] = {}
        for plugin in plugins:
            for name in plugin.names(kind):
                if name in seen:
                    raise PluginError(
                        f"{plugin.name} adds the {WORDS[kind]} {name!r}, as does {seen[name]}; "
                        f"give one another name"
                    )
                seen[name] = plugin.name


def read_plugin(text: str, folder: Path) -> Plugin:
    """Reads a plugin, and runs its code to see what it adds.

    Args:
        text: a file whose name ends in `.py`, or a module of a package in the folder, else of an
            installed one.
        folder: that paths are relative to.

    Raises:
        PluginError: it is missing, cannot be imported, adds nothing, or adds a name that is taken.
    """
    if text.endswith(".py"):
        file = folder / Path(text).expanduser()
        if not _MODULE.fullmatch(file.stem):
            raise PluginError(
                f"{text!r} is no name of a module; use letters, digits and _, like "
                f"{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}.py"
            )
        return plugin_from(text, file.stem, {file.name: _text_of(file, text)})
    if not _MODULE.fullmatch(text):
        raise PluginError(
            f"{text!r} is neither a file that ends in .py nor a module like my_package.losses"
        )
    top, *rest = text.split(".")
    if (folder / top / "__init__.py").is_file():
        sources = package_sources(folder / top)
        path = "/".join((top, *rest))
        if not {f"{path}.py", f"{path}/__init__.py"} & sources.keys():
            raise PluginError(f"no module {text!r}: {folder / top} has no {path}.py")
        return plugin_from(text, text, sources)
    return plugin_from(text, text, installed_sources(text), installed=True)


def plugin_from(
    name: str, module: str, sources: Mapping[str, str], *, installed: bool = False
) -> Plugin:
    """A plugin of these texts; runs its code to see what it adds, see `read_plugin`."""
    bare = Plugin(
        name=name,
        module=module,
        digest=digest_of(module, sources),
        sources={} if installed else dict(sources),
    )
    names = {str(kind): tuple(found) for kind, found in provided_by(bare).items()}
    plugin = Plugin(**dict(bare) | names)
    for kind in Kind:
        for each in plugin.names(kind):
            if is_reserved(kind, each):
                raise PluginError(
                    f"{name} adds the {WORDS[kind]} {each!r}, but the catalogue has one of that "
                    f"name; choose another, like my_{each}"
                )
    return plugin


def _text_of(file: Path, text: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PluginError(
            f"there is no file {text!r}: {file} is missing; paths are relative to the experiment"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PluginError(f"{file} cannot be read: {reason}") from None
