"""The command that reproduces published figures."""

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import Overrides, RayAddress, StorageOption, TrackingOption, console


def reproduce(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE_OR_FOLDER...")],
    pairs: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these pairs (default: all).")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="KD,DKD", help="Only these rows, beside the control (default: all)."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1000, help="Runs of each row (default: as the pair says)."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of the students (default: as the pair says)."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the reproduction (default: the file's or folder's)."),
    ] = None,
    address: RayAddress = None,
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
) -> None:
    """Train the rows of published tables, and show both figures: this opens the test split.

    The same command again goes on where it was cut off.
    """
    from search.record.storage import Storage
    from search.record.wording import as_typed
    from search.report.reproduction.formats import PICTURE, TABLE, VALUES
    from search.report.reproduction.table import NOISE, PROTOCOL, block_table, cost
    from search.session.reproduction import reproduce as train

    done = train(
        paths,
        storage=Storage(storage),
        pairs=_names(pairs),
        methods=_names(methods),
        seeds=seeds,
        epochs=epochs,
        overrides=overrides,
        name=name,
        address=address,
        tracking_uri=tracking_uri,
    )
    for block in done.blocks:
        console().print(block_table(block))
    print(f"{PROTOCOL}\n{NOISE}")
    if len(done.blocks) > 1:
        print(f"in all {cost(done.blocks)}")
    files = [name for name in (TABLE, VALUES, PICTURE) if (done.folder / name).exists()]
    print(f"written to {as_typed(done.folder)}: {', '.join(files)}")
    if done.failed:
        print(f"runs that failed: {done.failed}; the same command tries them again")
        raise typer.Exit(1)


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",")]
