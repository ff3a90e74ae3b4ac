"""The command `kdsearch`."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from search.errors import ExperimentError, SearchFailedError
from search.experiment.reading import read_experiment

if TYPE_CHECKING:
    from kdcore import EpochReport
    from search.cluster.jobs import Job, JobServer
    from search.export.choice import Limits
    from search.export.export import ExportedStudent
    from search.record.record import SearchRecord
    from search.record.storage import Storage


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds the best small vision network that a big one can teach.",
)


class Format(StrEnum):
    """The forms of a leaderboard."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    MARKDOWN = "markdown"


class TrialState(StrEnum):
    """What can have become of a trial."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class ExportFormat(StrEnum):
    """The forms of an exported student."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    TORCH_EXPORT = "torch_export"


ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key; may be repeated."),
]
StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="DIR_OR_URI",
        envvar="KDSEARCH_STORAGE",
        help="Where searches are kept.",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        help="Of MLflow; else SQLite in the storage.",
    ),
]
_UI_PORT = 5000

# A running search writes its record every few seconds.
_WATCH_SECONDS = 2.0

# Where `ray dashboard cluster.yaml` brings a cluster's job server.
_JOB_SERVER = "http://127.0.0.1:8265"
JobServerOption = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="The job server of a Ray cluster.",
    ),
]
SearchName = Annotated[str, typer.Argument(metavar="NAME", help="A search's name.")]


def _console() -> Console:
    """Where tables go; in a pipe or a file there is no width to keep to."""
    return Console() if sys.stdout.isatty() else Console(width=160)


@app.command()
def launch(
    file: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    name: Annotated[str | None, typer.Option(help="Of the search; else task and number.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="A Ray cluster; else Ray starts here.")
    ] = None,
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
) -> None:
    """Run a search: teacher, trials, leaderboard, export of the best student."""
    experiment = read_experiment(file, overrides)
    from search.record.storage import Storage
    from search.session.launch import launch as run_search

    place = Storage(storage)
    record = run_search(
        experiment,
        source=str(file),
        storage=place,
        name=name,
        address=address,
        tracking_uri=tracking_uri,
    )
    _show_end(record, storage)


@app.command()
def resume(
    name: SearchName,
    more_trials: Annotated[
        int, typer.Option(metavar="N", min=0, help="Add so many trials to the search.")
    ] = 0,
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a budget of the search."),
    ] = [],  # noqa: B006  (typer copies it)
    address: Annotated[
        str | None,
        typer.Option(metavar="RAY", help="A Ray cluster, or its job server; else Ray starts here."),
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Go on with a search that was cut off, or extend one that has ended."""
    if address is not None and address.startswith(("http://", "https://")):
        from search.cluster.jobs import JobServer

        job = JobServer(address).resume(
            name, storage=None if storage == "runs" else storage, more_trials=more_trials
        )
        _show_way(job, address)
        return
    from search.record.storage import Storage
    from search.session.launch import resume as resume_search

    record = resume_search(
        name,
        storage=Storage(storage),
        address=address,
        more_trials=more_trials,
        overrides=overrides,
    )
    _show_end(record, storage)


@app.command()
def confirm(
    name: SearchName,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="So many of the best trials; else the experiment's."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, max=1000, help="Runs of each; else the experiment's."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="A Ray cluster; else Ray starts here.")
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Train the best students again with fresh seeds, and test each once."""
    from search.leaderboard.tables import confirmed_table
    from search.record.storage import Storage
    from search.session.launch import confirm as confirm_search

    record = confirm_search(name, storage=Storage(storage), address=address, top=top, seeds=seeds)
    _console().print(confirmed_table(record))


def _show_end(record: "SearchRecord", storage: str) -> None:
    """Prints what a search gave, and exports its best student."""
    from search.leaderboard.tables import confirmed_table, leaderboard_table

    _console().print(leaderboard_table(record))
    if record.confirmed:
        _console().print(confirmed_table(record))
    option = "" if storage == "runs" else f" --storage {storage}"
    if record.state != "finished":
        print(
            f"The search ended early; kdsearch resume {record.name}{option} goes on with it, "
            f"kdsearch best {record.name}{option} exports what finished."
        )
        _show_link(record, option)
        raise typer.Exit(130)
    if not any(trial.state == "finished" for trial in record.trials):
        print(
            f"No trial came to its end, so there is no student yet. The reasons are in the table; "
            f"kdsearch resume {record.name}{option} --more-trials N tries others, and goes on with "
            f"those that were cut off (a spent budget is raised by --set)."
        )
        raise typer.Exit(1)
    folder = _export(record, storage, None).folder
    print(
        f"\nNext:\n"
        f"  kdsearch ui {record.name}{option}            # all runs, in MLflow's pages\n"
        f"  kdsearch leaderboard {record.name}{option}   # this table again\n"
        f"  kdsearch best {record.name}{option}          # within limits, as ONNX, registered\n"
        f"and in Python, where student(images) gives logits:\n"
        f"  import kdcore\n"
        f'  student = kdcore.load_student("{folder}")'
    )
    _show_link(record, option)


def _show_link(record: "SearchRecord", option: str) -> None:
    """Prints where MLflow's pages show a search as a leaderboard."""
    from search.tracking.runs_table import leaderboard_link

    if record.tracking_uri.startswith("http"):
        print(f"\nleaderboard: {leaderboard_link(record.tracking_uri, record)}")
    else:
        link = leaderboard_link(f"http://127.0.0.1:{_UI_PORT}", record)
        print(f"\nleaderboard, while kdsearch ui {record.name}{option} runs: {link}")


@app.command()
def leaderboard(
    name: SearchName,
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="Only trials with this method, like kd.")
    ] = "",
    state: Annotated[TrialState | None, typer.Option(help="Only trials in this state.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew until the search has ended.")
    ] = False,
    storage: StorageOption = "runs",
) -> None:
    """Print a search's leaderboard."""
    from search.leaderboard.formats import as_bytes
    from search.leaderboard.tables import confirmed_table, leaderboard_table
    from search.record.files import read_record
    from search.record.storage import Storage

    place = Storage(storage)
    record = read_record(place, name)
    kept = method, state.value if state else ""
    if watch:
        if form is not Format.TABLE:
            raise ValueError(f"--format is {form.value}, but --watch shows a table; leave one out")
        _watch(place, record, *kept)
    elif form is Format.TABLE:
        _console().print(leaderboard_table(record, *kept))
        if record.confirmed and not any(kept):
            _console().print(confirmed_table(record))
    else:
        sys.stdout.buffer.write(as_bytes(record, form.value, *kept))


def _watch(place: "Storage", record: "SearchRecord", method: str, state: str) -> None:
    """Shows a leaderboard until its search has ended, or until Ctrl-C."""
    from rich.live import Live

    from search.leaderboard.tables import leaderboard_table
    from search.record.files import read_record

    table = leaderboard_table(record, method, state)
    # A terminal shows it whole at the end; what does not fit before is cut off below.
    with Live(table, console=_console(), auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while record.state == "running":
                time.sleep(_WATCH_SECONDS)
                record = read_record(place, record.name)
                live.update(leaderboard_table(record, method, state), refresh=True)
        except KeyboardInterrupt:
            pass
        live.vertical_overflow = "visible"


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A search's name.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one's.")],
    storage: StorageOption = "runs",
) -> None:
    """Show the best of two searches on the same data, by student and methods."""
    from search.record.files import read_record
    from search.record.storage import Storage

    place = Storage(storage)
    from search.leaderboard.comparison import comparison_table

    _console().print(comparison_table(read_record(place, first), read_record(place, second)))


@app.command()
def replay(
    name: SearchName,
    grace: Annotated[
        list[int], typer.Option("--grace", metavar="EPOCHS", min=1, help="May be repeated.")
    ] = [],  # noqa: B006  (typer copies it)
    reduction: Annotated[
        list[float], typer.Option("--reduction", metavar="FACTOR", help="May be repeated.")
    ] = [],  # noqa: B006
    slots: Annotated[int, typer.Option(min=1, help="Trials that run at a time.")] = 2,
    storage: StorageOption = "runs",
) -> None:
    """Show what a search would have cost, and lost, under other early stopping."""
    from search.experiment.schema import Asha
    from search.record.files import read_record
    from search.record.storage import Storage
    from search.stopping.replay import replay as outcomes_of

    record = read_record(Storage(storage), name)
    epochs = record.experiment.training.epochs
    # A rung after the first epoch, and after about a tenth, a fifth and a third of the budget.
    grace = grace or sorted({max(1, round(epochs * share)) for share in (0, 0.1, 0.2, 0.33)})
    wrong = [value for value in reduction if value <= 1]
    if wrong:
        raise ValueError(f"--reduction is {wrong[0]:g}, but must be > 1")
    settings = [
        Asha(grace_epochs=epoch, reduction=factor)
        for epoch in grace
        for factor in reduction or (2.0, 3.0, 4.0)
    ]
    from search.stopping.replay import replay_table

    _console().print(replay_table(record.name, outcomes_of(record, settings, slots)))


@app.command()
def best(
    name: SearchName,
    max_params: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most so many parameters.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(metavar="X", min=0.0, help="At most so long for one image.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(metavar="A", help="At least this accuracy, a share of 1.")
    ] = None,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="Safetensors alone, or with a graph.")
    ] = ExportFormat.SAFETENSORS,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to export to.")] = None,
    register: Annotated[
        bool, typer.Option(help="In MLflow's model registry, where that can be reached.")
    ] = True,
    storage: StorageOption = "runs",
) -> None:
    """Export a search's best student, and print where it is and how good."""
    from search.export.choice import Limits
    from search.record.files import read_record
    from search.record.storage import Storage

    record = read_record(Storage(storage), name)
    limits = Limits(max_params, max_latency_ms, min_accuracy)
    exported = _export(record, storage, out, limits, form)
    if not register:
        return
    from search.errors import TrackingError
    from search.tracking.model_registry import register as register_student

    try:
        done = register_student(record, exported)
    except TrackingError as error:
        print(f"kdsearch: {error}", file=sys.stderr)
        return
    print(f"registered as {done.name}, version {done.version}: {done.reason}")
    if done.is_champion:
        print(
            f"  MLFLOW_TRACKING_URI={record.tracking_uri} mlflow models serve "
            f"-m models:/{done.name}@champion --env-manager local   # answers requests"
        )


def _export(
    record: "SearchRecord",
    storage: str,
    out: Path | None,
    limits: "Limits | None" = None,
    form: ExportFormat = ExportFormat.SAFETENSORS,
) -> "ExportedStudent":
    """Exports the best student, and prints where it is and how good."""
    from search.export.export import export_best
    from search.record.storage import Storage
    from search.record.wording import percent, spread

    place = Storage(storage)
    folder = out or (place.local or Path("runs")) / "searches" / record.name / "best"
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    exported = export_best(record, place, folder, limits=limits, form=form.value)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("network", "held-out %", "test %"):
        table.add_column(
            column, justify="left" if column == "network" else "right", overflow="fold"
        )
    for score in (exported.student, *exported.others):
        table.add_row(score.name, percent(score.heldout_accuracy), percent(score.test_accuracy))
    picked = exported.picked
    named = picked.label if picked.trial is None else f"trial {picked.label}"
    if picked.confirmed is not None:
        again = picked.confirmed
        named += (
            f" with seed {picked.seed} of {len(again.test_accuracies)} (test "
            f"{spread(again.test_accuracy, again.test_deviation)} %)"
        )
    print(f"best student: {named}, exported to {folder}")
    _console().print(table)
    if exported.graph:
        print(exported.graph)
    return exported


@app.command()
def rerun(
    name: SearchName,
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="Its number, or a confirmed row's label.")
    ],
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Of a run of the confirmation.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to export what was trained.")
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Train a row of the leaderboard again, and compare each epoch."""
    from search.record.files import read_record
    from search.record.storage import Storage, workspace_of
    from search.record.wording import percent
    from search.session.rerun import recorded_training
    from search.session.rerun import rerun as train_again

    place = Storage(storage)
    record = read_record(place, name)
    row = recorded_training(record, place, trial, seed)
    print(f"trial {trial} again, with seed {row.config.seed}: {row.words}", flush=True)

    def show(report: "EpochReport") -> None:
        accuracy = percent(report.heldout_accuracy)
        print(f"epoch {report.epoch}/{report.epochs}: held-out {accuracy} %", flush=True)

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


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A search's name.")] = None,
    storage: StorageOption = "runs",
    port: Annotated[int, typer.Option(help="Of the server; another if it is taken.")] = _UI_PORT,
) -> None:
    """Serve MLflow's pages on this machine, and print the link to a search."""
    from search.record.files import read_record, search_names
    from search.record.storage import Storage, default_tracking_uri

    place = Storage(storage)
    known = search_names(place)
    if name is None and not known:
        raise ValueError(f"there is no search in {place.uri} yet; kdsearch launch makes one")
    record = read_record(place, name) if name is not None else None
    uri = record.tracking_uri if record is not None else default_tracking_uri(place)
    if uri.startswith("http"):
        _save_runs_table(uri, record)
        print(_links(uri, record))
        return
    port = _free_port(port)
    base = f"http://127.0.0.1:{port}"
    log = (place.local or Path("runs")) / "logs" / "mlflow-ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Nothing here uses MLflow's jobs, and their runner takes eight more processes.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Else the server would survive SIGTERM, and in a script's background SIGINT is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with log.open("ab") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            import search.tracking.mlflow_writer  # noqa: F401  (seconds, while the server starts)

            _wait_until_up(base, server, log)
            _save_runs_table(base, record)
            print(
                f"{_links(base, record)}\nCtrl-C stops the server; it writes to {log}",
                flush=True,
            )
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.terminate()
            server.wait()


def _links(base: str, record: "SearchRecord | None") -> str:
    """Where MLflow's pages show a search: as a leaderboard, then with its summary and pictures."""
    from search.tracking.runs_table import leaderboard_link, report_link

    links = [leaderboard_link(base, record)]
    if record is not None and record.mlflow_run_id is not None:
        links.append(f"summary and pictures: {report_link(base, record)}")
    return "\n".join(links)


def _save_runs_table(uri: str, record: "SearchRecord | None") -> None:
    """Saves the table that the link opens, also for a search that was run without its server."""
    from search.errors import TrackingError
    from search.tracking.mlflow_writer import save_runs_table

    if record is not None and record.mlflow_experiment_id is not None:
        try:
            save_runs_table(uri, record)
        except TrackingError as error:
            print(f"the leaderboard's columns are as they were: {error}", file=sys.stderr)


def _free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1, or any free one where that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(base: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise ValueError(f"MLflow's server did not start; see {log}")


@app.command()
def cache(
    name: SearchName,
    clear: Annotated[bool, typer.Option("--clear", help="Remove its files.")] = False,
    storage: StorageOption = "runs",
) -> None:
    """Show what a search's cached teacher outputs take and save."""
    from search.record.files import read_record
    from search.record.storage import Storage
    from search.report.teacher_cache_use import cache_report, clear_cache

    place = Storage(storage)
    record = read_record(place, name)
    if clear:
        print(f"removed {clear_cache(record, place) / 1e6:,.1f} MB")
        return
    print(cache_report(record, place))


@app.command()
def methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the README has it.")] = False,
) -> None:
    """List the distillation methods."""
    from search.cli.catalogue import methods_markdown, methods_table

    if markdown:
        print(methods_markdown())
    else:
        _console().print(methods_table())


@app.command()
def backbones() -> None:
    """List the networks that can teach or learn."""
    from search.cli.catalogue import backbones_table

    _console().print(backbones_table())


@app.command()
def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A network, as in an experiment.")],
    image: Annotated[
        str | None,
        typer.Option(metavar="CxHxW", help="Of the images, like 3x224x224; else its native size."),
    ] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="How many the data have.")] = None,
) -> None:
    """Show a network's layers, costs and taps."""
    from search.cli.catalogue import describe as description

    size = None
    if image is not None:
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", image)
        if found is None:
            raise ValueError(f"--image is {image!r}, but must have the form 3x224x224")
        channels, height, width = map(int, found.groups())
        size = channels, height, width
    _console().print(description(name, size, classes), highlight=False, soft_wrap=True)


@app.command()
def check(
    file: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="A Ray cluster, to be checked as well.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow's store or server; else a local one.")
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Refuse what can be refused without training; else print what a search would do."""
    experiment = read_experiment(file, overrides)
    from search.record.storage import Storage
    from search.session.preflight import cautions, costs, plan, tracking_caution

    prepared = plan(experiment, Storage(storage), str(file))
    if address is not None:
        from search.cluster.connection import check_cluster

        check_cluster(experiment, Storage(storage), address)
    data, space = prepared.data, prepared.space
    table = Table(title="searched", title_justify="left")
    table.add_column("field")
    table.add_column("values", overflow="fold")
    for field, values in space.describe():
        table.add_row(field, values)
    asha = experiment.search.asha
    stops = (
        f"ASHA may stop a trial from epoch {asha.grace_epochs} on"
        if asha
        else "no trial is stopped early"
    )
    controls = "control" if len(experiment.students) == 1 else "students' controls"
    print(
        f"data     {experiment.data.name}: {len(data.train):,} train, "
        f"{len(data.heldout):,} held out, {len(data.test):,} test; {data.num_classes} classes\n"
        f"teacher  {experiment.teacher.backbone}, "
        f"{'ready' if prepared.teacher_ready else 'to be prepared'}\n"
        f"student  {', '.join(experiment.students)}\n"
        f"trials   {experiment.search.trials} of {experiment.training.epochs} epochs; "
        f"the first {len(space.first_points())} are the {controls} and the published settings; "
        f"{stops}"
    )
    if experiment.confirm is not None:
        print(
            f"confirm  the best {experiment.confirm.top} trials, their {controls} and kd as "
            f"published, with {experiment.confirm.seeds} fresh seeds each"
        )
    _console().print(table)
    for line in costs(prepared):
        print(line)
    for caution in (*cautions(experiment), *tracking_caution(tracking_uri)):
        print(f"caution: {caution}")
    print(f"{file} can be launched")


@app.command()
def submit(
    file: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    name: Annotated[str | None, typer.Option(help="Of the search; else task and number.")] = None,
    address: JobServerOption = _JOB_SERVER,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_URI",
            envvar="KDSEARCH_STORAGE",
            help="Where the cluster keeps searches; all its machines reach it.",
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Of MLflow, from the head; else what its shell says."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print what it prints.")] = False,
) -> None:
    """Run a search on a cluster that goes on without this machine."""
    experiment = read_experiment(file, overrides)
    if storage is None:
        raise ValueError(
            "--storage is missing; name a URI like s3://bucket/folder, or a folder that all "
            "machines of the cluster reach under the same path"
        )
    from search.cluster.jobs import JobServer

    server = JobServer(address)
    job = server.submit(experiment, storage=storage, name=name, tracking_uri=tracking_uri)
    _show_way(job, address)
    if follow:
        _follow(server, job)


def _show_way(job: "Job", address: str) -> None:
    """Prints that a search was sent, and how to see more of it."""
    option = "" if address == _JOB_SERVER else f" --address {address}"
    print(
        f"search {job.search} is on its way; it needs this machine no longer\n"
        f"  kdsearch logs {job.search} --follow{option}   # what it prints\n"
        f"  kdsearch status {job.search}{option}          # how far it is\n"
        f"  kdsearch stop {job.search}{option}            # ends it as Ctrl-C would",
        flush=True,
    )


@app.command()
def logs(
    name: SearchName,
    address: JobServerOption = _JOB_SERVER,
    follow: Annotated[bool, typer.Option("--follow", help="To its end.")] = False,
) -> None:
    """Print what a submitted search has printed."""
    from search.cluster.jobs import JobServer

    server = JobServer(address)
    job = server.find(name)
    if follow:
        _follow(server, job)
    else:
        print(server.logs(job), end="")


def _follow(server: "JobServer", job: "Job") -> None:
    """Prints what a job prints; the exit status is that of the search."""
    job = server.follow(job, lambda text: print(text, end="", flush=True))
    if job.state != "succeeded":
        raise typer.Exit(130 if job.state == "stopped" else 1)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Else all of them.")] = None,
    address: JobServerOption = _JOB_SERVER,
) -> None:
    """Show how far submitted searches are."""
    from search.cluster.jobs import JobServer
    from search.leaderboard.progress import how_far
    from search.leaderboard.tables import leaderboard_table

    server = JobServer(address)
    if name is None:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in ("search", "job", "submitted", "progress"):
            table.add_column(column, overflow="fold")
        for job in server.jobs():
            record = job.record()
            table.add_row(
                job.search,
                job.state,
                f"{job.submitted.astimezone():%Y-%m-%d %H:%M}",
                how_far(record) if record else "",
            )
        _console().print(table)
        return
    job = server.find(name)
    ended = f", ended {job.ended.astimezone():%Y-%m-%d %H:%M}" if job.ended else ""
    print(
        f"search   {job.search}: {job.state}\n"
        f"job      {job.id}, submitted {job.submitted.astimezone():%Y-%m-%d %H:%M}{ended}\n"
        f"storage  {job.storage}"
    )
    record = job.record()
    if record is None:
        print(f"trials   none seen from here; kdsearch logs {name} shows what it printed")
        return
    print(f"trials   {how_far(record)}")
    _console().print(leaderboard_table(record))


@app.command()
def stop(name: SearchName, address: JobServerOption = _JOB_SERVER) -> None:
    """End a submitted search cleanly."""
    from search.cluster.jobs import JobServer

    server = JobServer(address)
    job = server.find(name)
    if job.is_over:
        raise ValueError(f"search {name!r} is not running: it has {job.state}")
    print(f"stopping {name}; its trials end first", flush=True)
    job = server.stop(job)
    print(f"search {name} is {job.state}")


def main() -> None:
    """Runs the command; a user's mistake ends with one message and status 2."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except ExperimentError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"kdsearch: {error}", file=sys.stderr)
        sys.exit(2)
    except SearchFailedError as error:
        print(f"kdsearch: {error}", file=sys.stderr)
        sys.exit(1)
