"""What several commands share: their arguments and options, and where tables are printed."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")]


Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Set a key; may be repeated."),
]


StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="DIR_OR_URI",
        envvar="KDSEARCH_STORAGE",
        help="Folder or bucket of the searches.",
    ),
]


TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server (default: SQLite in the storage).",
    ),
]


UI_PORT = 5000


# Where `ray dashboard cluster.yaml` brings a cluster's job server.
JOB_SERVER = "http://127.0.0.1:8265"


JobServerOption = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Job server of a Ray cluster.",
    ),
]


SomeJobServer = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help=f"Job server of a Ray cluster (default: {JOB_SERVER}).",
    ),
]


NewName = Annotated[
    str | None, typer.Option("--name", help="Name of the search (default: EXPERIMENT-1, -2, ...).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="RAY", help="Address of a Ray cluster (default: start Ray here)."
    ),
]
SearchName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a search.")]


def console() -> Console:
    """Where tables go; in a pipe or a file there is no width to keep to."""
    return Console() if sys.stdout.isatty() else Console(width=160)
