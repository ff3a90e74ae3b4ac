"""Launching, resuming and confirming a search."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import ray

from kdcore.contract.plugin_code import importing
from kdcore.errors import PluginError
from search.cluster.connection import check_prices, connect, places_for_trials
from search.cluster.console_log import output_to
from search.cluster.growth import await_machines
from search.cluster.machines import gpus
from search.errors import ExperimentError, Problem, SearchError
from search.experiment.reading import check_name, with_budgets
from search.experiment.running import use_plugins
from search.experiment.schema import Confirm, Experiment
from search.leaderboard.teacher_lead import broken_demand, what_to_do
from search.record.files import interrupted, read_record
from search.record.live_record import LiveRecord
from search.record.log import RecordLog
from search.record.owner import Owner, owned
from search.record.record import SearchRecord
from search.record.storage import Storage, default_tracking_uri, local_home
from search.record.wording import as_typed
from search.session.cautions import cautions, idle_gpus, tracking_caution
from search.session.live_display import LiveDisplay
from search.session.preflight import Plan, constrained, evaluation, plan
from search.session.retraining.contenders import confirmation
from search.session.retraining.retraining import Asked
from search.session.session import Session
from search.session.sharing import settled


def free_name(storage: Storage, task: str) -> str:
    """The task's name with the first number that no search has."""
    taken = set((storage / "searches").names())
    number = 1
    while f"{task}-{number}" in taken:
        number += 1
    return f"{task}-{number}"


def launch(
    experiment: Experiment,
    *,
    source: str,
    storage: Storage,
    name: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
) -> SearchRecord:
    """Runs a search to its end, or until Ctrl-C.

    Args:
        experiment: what to search.
        source: the experiment's file, for messages.
        storage: where teachers and searches are kept; on a cluster every node must reach it.
        name: of the search; none: the task's name and a number.
        address: of a Ray cluster; none: Ray is started on this machine.
        tracking_uri: of MLflow; none: a SQLite file below the storage.

    Raises:
        ExperimentError: the experiment cannot be run; nothing was made.
        ClusterError: Ray cannot be reached, or has no room for a trial.
        SearchFailedError: the teacher could not be trained.
    """
    if running := importing():
        raise PluginError(
            f"{running} launches a search while it is imported as a plugin; put that below "
            f"if __name__ == '__main__':"
        )
    if name is not None:
        check_name(name)
    prepared = plan(experiment, storage, source)
    with taken(storage, experiment.name, name) as owner:
        record = fresh_record(prepared.experiment, storage, owner.search, tracking_uri)
        decided = {"excluded": prepared.excluded, "student_costs": prepared.measured}
        record = record.model_copy(update=decided)
        return _run(prepared, storage, record, owner, address)


@contextmanager
def taken(storage: Storage, task: str, name: str | None) -> Iterator[Owner]:
    """Takes a name for a new search, and holds it to the end of the block.

    Args:
        storage: where searches are kept.
        task: of whose name the first free number is taken, where there is no name.
        name: of the search.

    Raises:
        ExperimentError: the name is taken.
    """
    with ExitStack() as stack:
        while True:
            try:
                wanted = name or free_name(storage, task)
                owner = stack.enter_context(owned(storage, wanted, new=True))
                break
            except SearchError:
                if name is None:  # somebody was faster
                    continue
                raise _taken(name) from None
        yield owner


def check_is_free(storage: Storage, name: str) -> None:
    """Refuses a name that a new search cannot have.

    Raises:
        ExperimentError: it is invalid or taken.
    """
    check_name(name)
    if name in (storage / "searches").names():
        raise _taken(name)


def _taken(name: str) -> ExperimentError:
    message = f"{name!r} is taken; choose another, or leave --name out"
    return ExperimentError("--name", [Problem(key="", message=message)])


def fresh_record(
    experiment: Experiment, storage: Storage, name: str, tracking_uri: str | None
) -> SearchRecord:
    """The record of a search that has not begun; without a URI, MLflow's is the embedded store."""
    now = datetime.now(UTC)
    return SearchRecord(
        name=name,
        experiment=experiment,
        state="running",
        tracking_uri=tracking_uri or default_tracking_uri(storage),
        started=now,
        updated=now,
    )


def resume(
    name: str,
    *,
    storage: Storage,
    address: str | None = None,
    more_trials: int = 0,
    overrides: Sequence[str] = (),
) -> SearchRecord:
    """Continues a search that was cut off, or extends one that has ended.

    Trials that have ended stay as they are; those that were cut off continue from their
    checkpoints. What early stopping and the sampler know is built from the record.

    Args:
        name: of the search.
        storage: where it is kept.
        address: of a Ray cluster; none: Ray is started on this machine.
        more_trials: number of trials to add.
        overrides: of the budgets, like `search.hours=4`, of `search.teacher_must_lead`, of prices
            that it has, or of `resources`, which without one stay as they were decided.

    Raises:
        SearchError: there is no such search, it still runs, its budget is spent, or its teacher
            must lead and does not.
        ExperimentError: the experiment cannot be run any more.
        ClusterError, SearchFailedError: as `launch`.
    """
    record = read_record(storage, name)
    if record.reproduces:
        raise SearchError(
            f"{name} is a reproduction; the same kdsearch reproduce command continues it"
        )
    with owned(storage, name) as owner:
        record = read_record(storage, name)
        experiment = with_budgets(record.experiment, overrides)
        search = experiment.search
        search = search.model_copy(update={"trials": search.trials + more_trials})
        experiment = experiment.model_copy(update={"search": search})
        changes = {"experiment": experiment, "state": "running", "ended": ""}
        if experiment.resources.written != record.experiment.resources.written:
            changes |= {"sharing": None, "executions": None}  # measured where trials run now
        record = interrupted(record).model_copy(update=changes)
        unfinished = sum(not trial.unfinished for trial in record.trials) < search.trials
        if unfinished and (lead := broken_demand(record)):
            raise SearchError(
                f"{name} has ended, as search.teacher_must_lead is true, and {lead}. "
                f"{what_to_do(experiment, lead.teacher)} That is another search; to go on with "
                f"this one all the same: --set search.teacher_must_lead=false"
            )
        if unfinished and record.spent_budget:
            others = "gpu_hours or cpu_hours"
            if experiment.prices is not None:
                others = "gpu_hours, cpu_hours or budget"
            raise SearchError(
                f"{record.spent_budget}, {record.cost} in all; "
                f"give it more with --set search.hours=..., {others}"
            )
        prepared = plan(experiment, storage, name, begun=True)
        record = record.model_copy(update={"experiment": prepared.experiment})
        return _run(prepared, storage, record, owner, address)


def confirm(
    name: str,
    *,
    storage: Storage,
    address: str | None = None,
    top: int | None = None,
    seeds: int | None = None,
) -> SearchRecord:
    """Retrains the best students of a search with fresh seeds, and tests each once.

    What an earlier call has done stays.

    Args:
        name: of the search.
        storage: where it is kept.
        address: of a Ray cluster; none: Ray is started on this machine.
        top: number of top trials; none: as the experiment says, else 3.
        seeds: number of seeds for each; none: as the experiment says, else 5.

    Raises:
        SearchError: there is no such search, it still runs, or none of its trials with a method has
            finished.
        ExperimentError: the experiment cannot be run any more.
        ClusterError, SearchFailedError: as `launch`.
        KeyboardInterrupt: Ctrl-C cut it off; what had ended is in the record.
    """
    read_record(storage, name)
    with owned(storage, name) as owner:
        record = interrupted(read_record(storage, name))
        asked = record.experiment.confirm or Confirm()
        asked = Confirm(top=top or asked.top, seeds=seeds or asked.seeds)
        use_plugins(record.experiment)
        chosen = confirmation(record, asked)
        if not chosen.students:
            raise SearchError(
                f"no trial of {name} with a method has finished, so there is none to confirm"
            )
        record = record.model_copy(update={"state": "running"})
        prepared = plan(record.experiment, storage, name, begun=True)
        return _run(prepared, storage, record, owner, address, chosen)


def _run(
    prepared: Plan,
    storage: Storage,
    record: SearchRecord,
    owner: Owner,
    address: str | None,
    retrain_only: Asked | None = None,
) -> SearchRecord:
    log = local_home(storage) / "logs" / f"{record.name}.log"
    with output_to(log) as console, LiveDisplay(console) as progress:
        progress.say(f"search {record.name}; what Ray and MLflow say goes to {as_typed(log)}")
        for line in (*evaluation(prepared), *constrained(prepared)):
            progress.say(line)
        for caution in cautions(record.experiment):
            progress.say(f"caution: {caution}")
        with on_ray(address, log, record.experiment, record.tracking_uri, progress):

            def waiting() -> None:
                progress.say("resources: auto waits for the first machine, which decides them")
                RecordLog(storage, record.name, owner).write(LiveRecord(record))

            if retrain_only is None:
                check_prices(record.experiment)
            prepared, settled_record = settled(prepared, record, storage, progress.say, waiting)
            parallel = places_for_trials(prepared.experiment, storage)
            session = Session(prepared, storage, settled_record, owner, progress, log, parallel)
            return session.run(retrain_only)


@contextmanager
def on_ray(
    address: str | None,
    log: Path,
    experiment: Experiment,
    tracking_uri: str | None,
    progress: LiveDisplay,
) -> Iterator[None]:
    """Connects to Ray until the end of the block, and says what to expect.

    Args:
        address: of a cluster; none: Ray is started on this machine.
        log: where Ray's output goes.
        experiment: that is run.
        tracking_uri: of MLflow; none: a SQLite file.
        progress: where it is said.

    Raises:
        ClusterError: Ray cannot be reached, or no machine comes.
    """
    for caution in tracking_caution(tracking_uri):
        progress.say(f"caution: {caution}")
    connect(address, log)
    try:
        if address is not None:
            await_machines(experiment.resources, progress.say)
        place = "this machine" if address is None else "the cluster"
        for line in idle_gpus(experiment, gpus(), place):
            progress.say(line)
        yield
    finally:
        ray.shutdown()
