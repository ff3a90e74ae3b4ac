"""Imports the code of plugins from their texts, and finds what it adds.

The modules of a plugin lie below one whose name has its digest, so that two versions of a file do
not meet. A package therefore imports its own files relatively, `from .losses import soft`.
"""

import importlib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

from kdcore.contract.plugin import WORDS, Kind, Plugin, digest_of
from kdcore.contract.plugin_faults import (
    FILE,
    HangError,
    ending_hangs,
    line_in_plugin,
    mark_installed,
)
from kdcore.errors import PluginError

_ROOT = "_kdsearch_plugin_"
MAPPINGS = {Kind.METHODS: "METHODS", Kind.BACKBONES: "NETWORKS", Kind.DATA: "DATA_SETS"}
"""What a plugin's module calls its mappings."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What names of methods, networks and data sets look like."""

Provided = Mapping[Kind, Mapping[str, Any]]

_sources: dict[str, Mapping[str, str]] = {}  # by digest
_provided: dict[str, Provided] = {}  # likewise, of plugins that have been run
_importing: list[str] = []


class _Loader(InspectLoader):
    """Loads modules from the texts of plugins."""

    def get_source(self, fullname: str) -> str:
        path, sources = _place(fullname)
        return sources.get(path, "")

    def is_package(self, fullname: str) -> bool:
        return _place(fullname)[0].endswith("__init__.py")

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_source(fullname), FILE + _place(fullname)[0], "exec")


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_ROOT):
            return None
        place, sources = _place(fullname)
        known = place in sources or place == "__init__.py"
        return spec_from_loader(fullname, _Loader()) if known else None


def _place(fullname: str) -> tuple[str, Mapping[str, str]]:
    """The path of a module of a plugin, and the texts of that plugin."""
    root, *parts = fullname.split(".")
    sources = _sources.get(root.removeprefix(_ROOT), {})
    package = "/".join((*parts, "__init__.py"))
    module = f"{'/'.join(parts)}.py"
    return (module if module in sources else package), sources


sys.meta_path.append(_Finder())


def importing() -> str:
    """The name of the plugin whose code is being imported right now; empty while none is."""
    return _importing[-1] if _importing else ""


def is_run(plugin: Plugin) -> bool:
    """Whether the code has been run in this process."""
    return plugin.digest in _provided


def provided_by(plugin: Plugin) -> Provided:
    """By kind and name, what a plugin adds; runs its code if that has not been run yet.

    Raises:
        PluginError: it cannot be imported, prints, exits or hangs, or adds nothing; an installed
            package is missing, or is another version here.
    """
    if plugin.digest not in _provided:
        module = plugin.module
        if plugin.sources:
            _sources[plugin.digest] = plugin.sources
            module = f"{_ROOT}{plugin.digest}.{module}"
        else:
            found = digest_of(module, installed_sources(module))
            if found != plugin.digest:
                raise PluginError(
                    f"{plugin.name} is another version here ({found}) than where the search was "
                    f"launched ({plugin.digest}); install the same on every machine"
                )
            mark_installed(module)
        with ending_hangs():
            _provided[plugin.digest] = _found_in(_imported(module, plugin.name), plugin)
    return _provided[plugin.digest]


def installed_sources(module: str) -> Mapping[str, str]:
    """By path, the texts of the top-level package, or module, that an installed module is in.

    Raises:
        PluginError: there is none.
    """
    top = module.partition(".")[0]
    try:
        spec = find_spec(top)
    except ValueError:  # as of __main__
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise PluginError(
            f"no module {module!r}: neither beside the experiment nor installed; a file's name "
            f"ends in .py"
        )
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return {origin.name: origin.read_text()}
    return package_sources(origin.parent)


def package_sources(folder: Path) -> Mapping[str, str]:
    """By path from the folder above, the texts of all Python files of a package.

    Raises:
        PluginError: one cannot be read.
    """
    sources = {}
    for file in sorted(folder.rglob("*.py")):
        try:
            sources[file.relative_to(folder.parent).as_posix()] = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PluginError(f"{file} cannot be read: {error}") from None
    return sources


def _imported(module: str, name: str) -> ModuleType:
    """Imports a module, which may neither print nor exit."""
    printed = io.StringIO()
    known = set(sys.modules)
    _importing.append(name)
    try:
        with redirect_stdout(printed), _exits_that_raise():
            found = importlib.import_module(module)
    except HangError as error:
        reason = f"{name} hangs on import: {error}"
    except SystemExit as error:
        reason = f"{name} exits on import{line_in_plugin(error)}; let it only define things"
    except Exception as error:
        place, said = line_in_plugin(error), str(error)
        if isinstance(error, SyntaxError):
            place, said = f", line {error.lineno}", error.msg
        reason = f"{name} cannot be imported{place}: {type(error).__name__}: {said}"
        own = module.removeprefix(f"{module.partition('.')[0]}.").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.startswith(own):
            reason += "; a package imports its own files relatively, like: from .losses import soft"
    else:
        if not printed.getvalue():
            return found
        text = printed.getvalue().strip().splitlines()[:1] or [""]
        reason = f"{name} prints on import ({text[0][:60]!r}); let it only define things"
    finally:
        _importing.pop()
    for each in set(sys.modules) - known:
        if each.startswith(_ROOT):
            del sys.modules[each]
    raise PluginError(reason)


@contextmanager
def _exits_that_raise() -> Iterator[None]:
    """Makes `os._exit` say what it does, as `exit` does by itself."""

    def exits(status: int = 0) -> NoReturn:
        raise SystemExit(status)

    usual = os._exit
    os._exit = exits
    try:
        yield
    finally:
        os._exit = usual


def _found_in(module: ModuleType, plugin: Plugin) -> Provided:
    from kdcore.contract.method import Method

    found: dict[Kind, Mapping[str, Any]] = {}
    for kind, mapping in MAPPINGS.items():
        named = getattr(module, mapping, {})
        if not isinstance(named, Mapping):
            raise PluginError(
                f"{mapping} of {plugin.name} is {named!r:.60}, but must be a mapping of names, "
                f"like {mapping} = {{'name': ...}}"
            )
        found[kind] = named
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    if own and not found[Kind.METHODS]:
        if len(own) > 1:
            names = ", ".join(each.__name__ for each in own)
            raise PluginError(
                f"{plugin.name} has the methods {names}; name them in a mapping, like "
                f"METHODS = {{'{own[0].__name__.lower()}': {own[0].__name__}}}"
            )
        found[Kind.METHODS] = {plugin.module.rpartition(".")[2]: own[0]}
    if not any(found.values()):
        raise PluginError(
            f"{plugin.name} adds nothing: it needs METHODS, NETWORKS or DATA_SETS, or one class "
            f"of kdcore.contract.method.Method"
        )
    for kind, named in found.items():
        for name, value in named.items():
            _check(kind, name, value, plugin.name)
    return found


def _check(kind: Kind, name: object, value: object, plugin: str) -> None:
    from kdcore.contract.method import Method

    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(
            f"{plugin} has a {WORDS[kind]} called {name!r}, but a name has small letters, digits "
            f"and _, and begins with a letter"
        )
    if kind is Kind.METHODS and not (isinstance(value, type) and issubclass(value, Method)):
        raise PluginError(
            f"the method {name} of {plugin} is {value!r:.60}, but must be a class of "
            f"kdcore.contract.method.Method"
        )
    if kind is Kind.BACKBONES and not callable(value):
        raise PluginError(
            f"the network {name} of {plugin} is {value!r:.60}, but must be a function of "
            f"(num_classes, in_channels)"
        )
    if kind is Kind.METHODS and not isinstance(getattr(value, "needs", None), frozenset):
        raise PluginError(
            f"the method {name} of {plugin} does not declare what it reads, like "
            f"needs = frozenset({{Tap.LOGITS}})"
        )
