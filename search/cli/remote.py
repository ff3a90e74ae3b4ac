"""Commands for searches on a cluster that this machine only sends and watches."""

from typing import TYPE_CHECKING, Annotated

import typer

import search
from search.cli.options import (
    JOB_SERVER,
    ExperimentFile,
    JobServerOption,
    NewName,
    Overrides,
    SearchName,
    SomeJobServer,
)
from search.cli.slurm import (
    SlurmCpus,
    SlurmGpus,
    SlurmNodes,
    SlurmOthers,
    SlurmPartition,
    SlurmRequeue,
    SlurmTime,
    allocation_of,
    submit_to_slurm,
)
from search.errors import SearchError

if TYPE_CHECKING:
    from search.cluster.jobs import Job, JobServer


# `ray dashboard`, just typed, forwards the job server's port some seconds later.
_TUNNEL_SECONDS = 30.0


def submit(
    file: ExperimentFile,
    overrides: Overrides = [],  # noqa: B006  (typer copies it)
    name: NewName = None,
    address: JobServerOption = JOB_SERVER,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_URI",
            envvar="KDSEARCH_STORAGE",
            help="Folder or bucket that all machines of the cluster reach.",
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow server, as the head reaches it."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print the search's output.")] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="As a job of Slurm, on its login node.")
    ] = False,
    nodes: SlurmNodes = None,
    partition: SlurmPartition = None,
    time: SlurmTime = None,
    gpus: SlurmGpus = None,
    cpus: SlurmCpus = None,
    requeue: SlurmRequeue = False,
    sbatch: SlurmOthers = [],  # noqa: B006
) -> None:
    """Run a search on a cluster; you can close this machine."""
    experiment = search.read_experiment(file, overrides)
    allocation = allocation_of(slurm, nodes, partition, time, gpus, cpus, requeue, sbatch)
    if allocation is not None:
        submit_to_slurm(experiment, allocation, storage or "runs", name, tracking_uri, follow)
        return
    if storage is None:
        raise SearchError(
            "--storage is missing; name a URI like s3://bucket/folder, or a folder that all "
            "machines of the cluster reach under the same path"
        )
    from search.cluster.jobs import JobServer

    server = JobServer(address, patience=_TUNNEL_SECONDS)
    job = server.submit(experiment, storage=storage, name=name, tracking_uri=tracking_uri)
    show_submission(job, address)
    if follow:
        _follow(server, job)


def show_submission(job: "Job", address: str) -> None:
    """Prints that a search was submitted, and the commands that watch it."""
    option = "" if address == JOB_SERVER else f" --address {address}"
    print(
        f"search {job.search} is submitted; you can close this machine\n"
        f"  kdsearch logs {job.search} --follow{option}   # its output\n"
        f"  kdsearch status {job.search}{option}          # its progress\n"
        f"  kdsearch stop {job.search}{option}            # end it cleanly",
        flush=True,
    )


def logs(
    name: SearchName,
    address: JobServerOption = JOB_SERVER,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more until it ends.")] = False,
) -> None:
    """Print the output of a submitted search."""
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


def stop(name: SearchName, address: SomeJobServer = None) -> None:
    """End a submitted search cleanly."""
    from search.cluster.slurm import slurm_jobs
    from search.cluster.slurm import stop as stop_job

    if address is None and (jobs := [job for job in slurm_jobs() if job.search == name]):
        print(f"stopping {name}, Slurm's job {jobs[0].id}; waiting for its trials", flush=True)
        stop_job(jobs[0])
        print(f"search {name} is stopped")
        return
    from search.cluster.jobs import JobServer

    server = JobServer(address or JOB_SERVER)
    job = server.find(name)
    if job.is_over:
        raise SearchError(f"search {name!r} is not running (state: {job.state})")
    print(f"stopping {name}; waiting for its trials", flush=True)
    job = server.stop(job)
    print(f"search {name} is {job.state}")
