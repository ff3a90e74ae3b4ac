"""Commands that give a student: best exports it, rerun trains it again."""

import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

import search
from search.cli.options import SearchName, StorageOption, console
from search.errors import TrackingError

if TYPE_CHECKING:
    from kdcore import EpochReport
    from search.export.export import ExportedStudent
    from search.session.search import Search


class ExportFormat(StrEnum):
    """The forms of an exported student."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    TORCH_EXPORT = "torch_export"


def best(
    name: SearchName,
    max_params: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Largest number of parameters.")
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(metavar="X", min=0.0, help="Longest time for one image."),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Lowest accuracy, from 0 to 1, also where another search.metric ranks.",
        ),
    ] = None,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="Weights alone, or with a graph beside them.")
    ] = ExportFormat.SAFETENSORS,
    int8: Annotated[
        bool, typer.Option("--int8", help="With onnx, also a graph in 8 bits.")
    ] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="Most held-out accuracy that --int8 may cost.  [default: 1]"
        ),
    ] = None,
    without_head: Annotated[
        bool,
        typer.Option("--without-head", help="Files that give features, and are not registered."),
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to export to.")] = None,
    register: Annotated[bool, typer.Option(help="Register in MLflow's model registry.")] = True,
    storage: StorageOption = "runs",
) -> None:
    """Export a search's best student, and test it: this opens the test split."""
    found = search.open_search(name, storage=storage)
    exported = export_and_show(
        found,
        max_params=max_params,
        max_latency_ms=max_latency_ms,
        min_accuracy=min_accuracy,
        format=form.value,
        int8=int8,
        max_loss=max_loss,
        out=out,
        head=not without_head,
    )
    if not register or without_head:
        return
    try:
        done = found.register(exported)
    except TrackingError as error:
        print(f"kdsearch: {error}", file=sys.stderr)
        return
    print(f"registered as {done.name}, version {done.version}: {done.reason}")
    if done.is_champion:
        print(
            f"  MLFLOW_TRACKING_URI={found.record.tracking_uri} mlflow models serve "
            f"-m models:/{done.name}@champion --env-manager local   # answers requests"
        )


def export_and_show(found: "Search", **options: Any) -> "ExportedStudent":
    """Exports the best student, and prints where it is, how good, and how often was looked.

    Args:
        found: the search.
        options: as `Search.best` takes them.
    """
    from search.export.model_card import score_cells
    from search.leaderboard.front import front_in_lines
    from search.leaderboard.teacher_lead import no_method_won
    from search.record.looks import looks_in_words
    from search.record.wording import kind_of, spread

    exported = found.best(**options)
    opened = exported.test_accuracy is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names, *rows = score_cells((exported.student, *exported.others), found.record)
    for column in names:
        table.add_column(
            column, justify="left" if column == "network" else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    picked = exported.picked
    named = picked.label if picked.trial is None else f"trial {picked.label}"
    if picked.confirmed is not None:
        again = picked.confirmed
        named += f" with seed {picked.seed} of {len(again.test_accuracies)}"
        if opened:
            reached = spread(again.test_score, again.test_score_deviation)
            named += f" (test {reached} %{kind_of(found.record.metric)})"
    if picked.is_control:
        verdict = no_method_won(found.record, picked.student)
        named += f", the control ({verdict})" if verdict else ", the control"
    print(f"best student: {named}, exported to {exported.folder}")
    if not any(options.get(name) for name in ("max_params", "max_latency_ms", "min_accuracy")):
        for line in front_in_lines(found.record):
            print(line)
    console().print(table)
    if exported.graph:
        print(exported.graph)
    print(looks_in_words(exported.looks))
    return exported


def rerun(
    name: SearchName,
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="Number of a trial, or label of a confirmed row.")
    ],
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Seed of a confirmation run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to export the retrained student to.")
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Retrain a row of the leaderboard, and compare each epoch."""
    from search.record.storage import workspace_of
    from search.record.wording import percent_of
    from search.session.retraining.rerun import recorded_training
    from search.session.retraining.rerun import rerun as train_again

    found = search.open_search(name, storage=storage)
    record, place = found.record, found.storage
    row = recorded_training(record, place, trial, seed)
    print(f"trial {trial} again, with seed {row.config.seed}: {row.words}", flush=True)

    def show(report: "EpochReport") -> None:
        score = report.score_by(record.metric)
        reached = report.heldout_accuracy if score is None else score
        words = percent_of(record.metric, reached)
        print(f"epoch {report.epoch}/{report.epochs}: held-out {words}", flush=True)

    threads = record.experiment.resources.cpus
    with tempfile.TemporaryDirectory() as checkpoint:
        difference = train_again(
            row, place, threads=threads, checkpoint=Path(checkpoint), heard=show
        )
        if out is not None and not difference:
            from search.export.export import export_rerun

            export_rerun(
                Path(checkpoint),
                out,
                search=name,
                label=trial,
                config=row.config,
                workspace=workspace_of(place),
            )
    if difference:
        print(f"different: {difference}")
        raise typer.Exit(1)
    print(f"equal: all {len(row.reports)} epochs give the recorded numbers")
