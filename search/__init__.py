"""Searches for the best way to distill a student: Ray Tune, Optuna and MLflow around kdcore.

What the command `kdsearch` does, these functions do:

    >>> import search
    >>> experiment = search.read_experiment("experiments/quickstart.yaml")
    >>> found = search.launch(experiment)
    >>> found.leaderboard()

Read `experiment/schema.py` first (what a user writes), then `experiment/space`, `session/launch.py`
and `session/trial.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from search.environment import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from kdcore.contract.method import Method
    from search.errors import (
        ClusterError,
        DataError,
        ExperimentError,
        KdsearchError,
        SearchError,
        SearchFailedError,
        StorageError,
        TrackingError,
    )
    from search.experiment.schema import Experiment
    from search.session.search import Search

__all__ = [
    "ClusterError",
    "DataError",
    "Experiment",
    "ExperimentError",
    "KdsearchError",
    "Search",
    "SearchError",
    "SearchFailedError",
    "StorageError",
    "TrackingError",
    "launch",
    "open_search",
    "read_experiment",
    "register",
    "search_names",
]


def read_experiment(path: str | PathLike[str], overrides: Iterable[str] = ()) -> "Experiment":
    """Reads and checks an experiment file.

    Args:
        path: a YAML file.
        overrides: like `search.trials=20`; the value is read as YAML.

    Raises:
        ExperimentError: with all mistakes of the file.
    """
    from pathlib import Path

    from search.experiment.reading import read_experiment as read

    return read(Path(path), overrides)


def launch(
    experiment: "Experiment",
    *,
    name: str | None = None,
    storage: str = "runs",
    address: str | None = None,
    tracking_uri: str | None = None,
    source: str | None = None,
) -> "Search":
    """Runs a search to its end, or until Ctrl-C (in a notebook: until it is interrupted).

    Args:
        experiment: what to search.
        name: of the search; none: the experiment's name and a number.
        storage: where teachers and searches are kept: a folder, or a URI like
            `s3://bucket/folder`. Every machine of a cluster must reach it.
        address: of a Ray cluster, like `ray://head:10001`; none: Ray is started on this machine.
        tracking_uri: of MLflow; none: a SQLite file in the storage.
        source: what messages call the experiment; none: its name.

    Raises:
        ExperimentError: the experiment cannot be run, with all reasons; nothing was made.
        ClusterError: Ray cannot be reached, or has no room for a trial.
        SearchFailedError: the teacher could not be trained.
    """
    prepare()
    from search.record.storage import Storage
    from search.session.launch import launch as run
    from search.session.search import Search

    place = Storage(storage)
    record = run(
        experiment,
        source=source or experiment.name,
        storage=place,
        name=name,
        address=address,
        tracking_uri=tracking_uri,
    )
    return Search(record, place)


def open_search(name: str, *, storage: str = "runs") -> "Search":
    """Opens a search that was launched before.

    Args:
        name: of the search.
        storage: where it is kept.

    Raises:
        SearchError: there is no such search, or its record is damaged.
    """
    from search.record.files import read_record
    from search.record.storage import Storage
    from search.session.search import Search

    place = Storage(storage)
    return Search(read_record(place, name), place)


def register(
    *,
    methods: "Mapping[str, type[Method]] | None" = None,
    networks: "Mapping[str, Callable[[int, int], nn.Module]] | None" = None,
    data: "Mapping[str, Callable[[Path | None], Any]] | None" = None,
) -> None:
    """Makes your own classes and functions known to experiments that are read from now on.

    Their code goes wherever a search does: it is the file that they are defined in, or in a
    notebook the cell, which must import what it needs and may only define things. To register a
    name again replaces it.

    Args:
        methods: by name, classes of `kdcore.contract.method.Method`.
        networks: by name, functions of (num_classes, in_channels) that give an `nn.Module`; see
            `kdcore.backbones.own_network`.
        data: by name, functions of the root that give two torch data sets; see
            `kdcore.data.own_data`.

    Raises:
        PluginError: the code cannot be found, cannot be imported by itself, or breaks its contract.
    """
    from kdcore.contract.plugin import Kind
    from search.experiment.plugins import register as add

    given = {Kind.METHODS: methods, Kind.BACKBONES: networks, Kind.DATA: data}
    for kind, named in given.items():
        add(kind, named or {})


def search_names(storage: str = "runs") -> list[str]:
    """The names of the searches in a storage, in alphabetical order."""
    from search.record.files import search_names as names
    from search.record.storage import Storage

    return names(Storage(storage))


def __getattr__(name: str) -> object:
    """Loads classes when they are asked for, so that the command starts at once."""
    homes = {"Experiment": "experiment.schema", "Search": "session.search"}
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes.get(name, 'errors')}"), name)
