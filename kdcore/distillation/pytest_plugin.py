"""A plugin of pytest: what `kdsearch check-plugin` asks of a user's own code, as tests.

It is asked for by name, and pytest runs of others do not load it. In `pyproject.toml`:

    [tool.pytest.ini_options]
    addopts = "-p kdcore.distillation.pytest_plugin"
    kdsearch_plugins = ["my_losses.py", "my_package.networks"]

Files are relative to pytest's root. Each method, network and data set is one test, which runs
unless pytest is asked for certain files alone; a failure says what is wrong with the plugin.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdcore.contract import plugged
from kdcore.contract.plugin import WORDS, Kind, Plugin
from kdcore.errors import KdsearchError, PluginError

_PLUGINS, _ROOT = "kdsearch_plugins", "kdsearch_root"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(_PLUGINS, "your own code to test: files and modules", type="args", default=[])
    parser.addini(_ROOT, "folder of its data sets' files")


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    asked = [config.invocation_params.dir / each.partition("::")[0] for each in config.args]
    if asked and all(each.is_file() for each in asked):
        return
    root = config.getini(_ROOT)
    for text in config.getini(_PLUGINS):
        for name, check in _tests(text, config.rootpath, Path(root) if root else None):
            nodeid = f"{text}::{name}"
            items.append(Contract.from_parent(session, name=name, nodeid=nodeid, check=check))


def _tests(
    text: str, folder: Path, root: Path | None
) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """By name, what gives the breaches of each thing that a plugin adds."""
    import kdcore.backbones.catalogue
    import kdcore.data.registry
    import kdcore.methods  # noqa: F401  (these three keep their names)

    try:
        plugin = plugged.read_plugin(text, folder)
    except PluginError as error:
        yield "it can be read", partial(list, [str(error)])
        return
    for kind in Kind:
        for name in plugin.names(kind):
            yield f"{WORDS[kind]} {name}", partial(_breaches, plugin, kind, name, root)


def _breaches(plugin: Plugin, kind: Kind, name: str, root: Path | None) -> list[str]:
    from kdcore.distillation.plugin_contract import breaches_in

    others = plugged.in_use()
    plugged.use([plugin])
    try:
        with tempfile.TemporaryDirectory() as workspace:
            return breaches_in(kind, name, Path(workspace), root)
    finally:
        plugged.use(others)


class Contract(pytest.Item):
    """A test that one thing of a plugin keeps its contract.

    Args:
        check: gives what it breaks, in words.
    """

    def __init__(self, *, check: Callable[[], list[str]], **keys: Any) -> None:
        super().__init__(**keys)
        self._check = check

    def runtest(self) -> None:
        if breaches := self._check():
            raise PluginError("\n".join(breaches))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, KdsearchError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.nodeid
