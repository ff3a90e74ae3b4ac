"""Commands that run trials here or on a connected cluster: launch, resume, confirm, check."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

import search
from search.cli.options import (
    UI_PORT,
    ExperimentFile,
    NewName,
    Overrides,
    RayAddress,
    SearchName,
    StorageOption,
    TrackingOption,
    console,
)
from search.cli.picking import export_and_show
from search.cli.remote import show_submission
from search.errors import SearchError

if TYPE_CHECKING:
    from kdcore.data.image_data import ImageData
    from search.session.search import Search


def launch(
    file: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    name: NewName = None,
    address: RayAddress = None,
    storage: StorageOption = "runs",
    tracking_uri: TrackingOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only check, and say what the search would take at most."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--continue", help="Continue the search --name if it has begun.")
    ] = False,
) -> None:
    """Run a search: teacher, trials, leaderboard, export of the best student."""
    if dry_run:
        _check(file, overrides, address, tracking_uri, storage, name=name, dry_run=True)
        return
    experiment = search.read_experiment(file, overrides)
    if again and _has_begun(name, storage):
        assert name is not None
        print(f"search {name} has begun; it continues with its own experiment", flush=True)
        _show_end(search.open_search(name, storage=storage).resume(address=address), storage)
        return
    found = search.launch(
        experiment,
        name=name,
        storage=storage,
        address=address,
        tracking_uri=tracking_uri,
        source=str(file),
    )
    _show_end(found, storage)


def resume(
    name: SearchName,
    more_trials: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of trials to add.")
    ] = 0,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY.PATH=VALUE", help="Change a budget, resources or prices."
        ),
    ] = [],  # noqa: B006  (typer copies it)
    address: Annotated[
        str | None,
        typer.Option(metavar="RAY", help="Address of a Ray cluster or its job server."),
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Continue a search that was cut off, or extend one that has ended."""
    if address is not None and address.startswith(("http://", "https://")):
        from search.cluster.jobs import JobServer

        job = JobServer(address).resume(
            name,
            storage=None if storage == "runs" else storage,
            more_trials=more_trials,
            overrides=overrides,
        )
        show_submission(job, address)
        return
    found = search.open_search(name, storage=storage)
    _show_end(found.resume(more_trials=more_trials, overrides=overrides, address=address), storage)


def confirm(
    name: SearchName,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Number of top trials to retrain (default: 3)."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, max=1000, help="Number of seeds for each (default: 5)."),
    ] = None,
    address: RayAddress = None,
    storage: StorageOption = "runs",
) -> None:
    """Retrain the best students with fresh seeds, and test each once."""
    from search.leaderboard.tables import confirmed_table

    found = search.open_search(name, storage=storage)
    console().print(confirmed_table(found.confirm(top=top, seeds=seeds, address=address).record))


def _has_begun(name: str | None, storage: str) -> bool:
    """Whether a search is there to continue, once it is clear that nobody runs it.

    Raises:
        SearchError: there is no name.
    """
    from search.record.owner import HEARTBEAT, SILENCE, has_living_owner
    from search.record.storage import Storage, search_storage

    if name is None:
        raise SearchError("--continue needs --name, the search that is continued if it has begun")
    place = search_storage(Storage(storage), name)
    # A driver that was killed on another machine is known to be dead only when it has been silent.
    deadline = time.monotonic() + (SILENCE + HEARTBEAT).total_seconds()
    if has_living_owner(place):
        print(f"search {name} has not been heard to end; waiting for that", flush=True)
    while has_living_owner(place) and time.monotonic() < deadline:
        time.sleep(1)
    return name in search.search_names(storage)


def _show_end(found: "Search", storage: str) -> None:
    """Prints the leaderboard, and exports the best student.

    Raises:
        typer.Exit: the search was cut off (130), ended because its teacher does not lead, or has
            no finished trial (1).
    """
    from search.leaderboard.tables import confirmed_table, leaderboard_table
    from search.leaderboard.teacher_lead import broken_demand, what_to_do

    record = found.record
    console().print(leaderboard_table(record))
    if record.confirmed:
        console().print(confirmed_table(record))
    option = "" if storage == "runs" else f" --storage {storage}"
    if (lead := broken_demand(record)) is not None:
        print(
            f"The search ended early, as search.teacher_must_lead is true, and {lead}.\n"
            f"{what_to_do(record.experiment, lead.teacher)} That is another search. "
            f"kdsearch resume {record.name}{option} --set search.teacher_must_lead=false goes on "
            f"with this one all the same; kdsearch best {record.name}{option} exports its best "
            f"finished trial."
        )
        _show_link(found, option)
        raise typer.Exit(1)
    if record.state != "finished":
        print(
            f"The search ended early. kdsearch resume {record.name}{option} continues it; "
            f"kdsearch best {record.name}{option} exports the best finished trial."
        )
        _show_link(found, option)
        raise typer.Exit(130)
    if not any(trial.state == "finished" for trial in record.trials):
        print(
            f"No trial finished, so there is nothing to export. The reasons are in the table. "
            f"kdsearch resume {record.name}{option} --more-trials N adds trials and continues "
            f"those that were cut off; --set raises a spent budget."
        )
        raise typer.Exit(1)
    exported = export_and_show(found, open_test=False)
    from kdcore.networks.classifier import loading

    student = record.experiment.student_configs[exported.picked.student]
    loads = loading(exported.folder, student.backbone)
    print(
        f"\nNext:\n"
        f"  kdsearch ui {record.name}{option}            # all runs, in MLflow's pages\n"
        f"  kdsearch leaderboard {record.name}{option}   # this table\n"
        f"and once for what you pick, because each look at the test split is counted:\n"
        f"  kdsearch confirm {record.name}{option}       # retrains the best, and tests each\n"
        f"  kdsearch best {record.name}{option}          # tests it; by size, as ONNX, registered\n"
        f"and in Python, where student(images) gives logits:\n"
        f"  import kdcore\n"
        f"  student = {loads}"
    )
    _show_link(found, option)


def _show_link(found: "Search", option: str) -> None:
    """Prints the link to the leaderboard in MLflow's pages."""
    from search.tracking.runs_table import leaderboard_link

    record = found.record
    if record.tracking_uri.startswith("http"):
        print(f"\nleaderboard: {leaderboard_link(record.tracking_uri, record)}")
    else:
        link = leaderboard_link(f"http://127.0.0.1:{UI_PORT}", record)
        print(f"\nleaderboard, while kdsearch ui {record.name}{option} runs: {link}")


def check(
    file: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="Address of a Ray cluster to check as well.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow server to check as well.")
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Check an experiment, and print what a search would do."""
    _check(file, overrides, address, tracking_uri, storage)


def _without_labels(data: "ImageData") -> str:
    """What there is to learn from without labels, for a line; empty if nothing is."""
    if data.unlabelled is None:
        return ""
    judge = str(data.config.judge).replace("_", " ")
    return f" and judge by {judge}, {len(data.unlabelled):,} to learn from without labels"


def _check(
    file: Path,
    overrides: list[str],
    address: str | None,
    tracking_uri: str | None,
    storage: str,
    *,
    name: str | None = None,
    dry_run: bool = False,
) -> None:
    """Prints what a search would do; of a dry run, what it would take at most as well. The others
    are the arguments of a launch."""
    experiment = search.read_experiment(file, overrides)
    from search.record.storage import Storage
    from search.record.wording import front_in_words
    from search.session.cautions import cautions, teacher_caution, tracking_caution
    from search.session.estimate import costs, share_and_estimate
    from search.session.launch import check_is_free
    from search.session.preflight import (
        constrained,
        evaluation,
        executions,
        plan,
        recipes,
        starts,
    )
    from search.session.sampling.named import sampler_in_words
    from search.stopping.named import stopping_in_words

    place = Storage(storage)
    if name is not None:
        check_is_free(place, name)
    prepared = plan(experiment, place, str(file))
    shares, prepared = share_and_estimate(prepared, place, address, estimated=dry_run)
    data, space = prepared.data, prepared.space
    table = Table(title="searched", title_justify="left")
    table.add_column("field")
    table.add_column("values", overflow="fold")
    for field, values in space.describe():
        table.add_row(field, escape(values))  # a list of steps is no markup
    points = experiment.search.points
    asked = f", the {len(points)} of search.points" if points else ""
    trials, known_good = prepared.experiment.search.trials, len(space.prior)
    prior = f", then {known_good} that did well elsewhere" if known_good else ""
    controls = "control" if len(space.students) == 1 else "students' controls"
    known = (*constrained(prepared), *evaluation(prepared), *starts(prepared))
    trained = "\n".join((*known, *recipes(experiment)))
    searched = "" if experiment.searched_views is None else " (teacher and first trials; searched)"
    teachers = "\n".join(
        f"teacher  {label}, {'ready' if each.ready else 'to be prepared'}"
        for label, each in prepared.teachers.items()
    )
    on_top = " after preparatory ones" if experiment.training.preparation_on_top else ""
    for plugin in experiment.plugins:
        print(f"plugin   {plugin}")
    print(
        f"data     {experiment.data.name}: {len(data.train):,} train{_without_labels(data)}, "
        f"{len(data.heldout):,} held out, {len(data.test):,} test; {data.num_classes} classes\n"
        f"views    {', '.join(map(str, data.train.all_steps())) or 'as the images are'}{searched}\n"
        f"{teachers}\n"
        f"student  {', '.join(space.students)}\n"
        f"{trained}\n"
        f"trials   {trials} of {experiment.training.epochs} epochs{on_top}; "
        f"the first {len(space.first_points())} are the {controls}{asked} and the settings "
        f"published for {prepared.experiment.published}{prior}; "
        f"{stopping_in_words(prepared.experiment)}\n"
        f"sampler  {sampler_in_words(experiment, space)}"
    )
    if experiment.search.goal == "pareto":
        print(f"goal     {front_in_words(experiment.search.metric, experiment.search.cost)}")
    if experiment.confirm is not None:
        print(
            f"confirm  the best {experiment.confirm.top} trials, their {controls} and kd as "
            f"published, with {experiment.confirm.seeds} fresh seeds each"
        )
    console().print(table)
    whole, most = space.size()
    print(f"space    {whole} in all, of which a trial has at most {most}")
    for line in (*shares, *costs(prepared), *executions(prepared, place)):
        print(line)
    found = (*cautions(prepared.experiment), *teacher_caution(prepared, place))
    for caution in (*found, *tracking_caution(tracking_uri)):
        print(f"caution: {caution}")
    print(f"{file} can be launched")
