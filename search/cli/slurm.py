"""The part of `submit` that hands a search to Slurm."""

from typing import TYPE_CHECKING, Annotated

import typer

from search.errors import SearchError

if TYPE_CHECKING:
    from search.cluster.slurm import Allocation
    from search.experiment.schema import Experiment

_PANEL = "With --slurm"

SlurmNodes = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of nodes (default: 1).", rich_help_panel=_PANEL),
]
SlurmPartition = Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=_PANEL)]
SlurmTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Limit, as sbatch reads it; the search ends cleanly before it.",
        rich_help_panel=_PANEL,
    ),
]
SlurmGpus = Annotated[
    str | None,
    typer.Option(
        metavar="[TYPE:]N", help="GPUs of each node (default: none).", rich_help_panel=_PANEL
    ),
]
SlurmCpus = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Cores of each node (default: the site's).", rich_help_panel=_PANEL
    ),
]
SlurmRequeue = Annotated[
    bool,
    typer.Option(
        "--requeue",
        help="Queue again at the time limit, until the search has ended.",
        rich_help_panel=_PANEL,
    ),
]
SlurmOthers = Annotated[
    list[str],
    typer.Option(
        metavar="OPTION",
        help="Another option of sbatch, like --sbatch=--account=NAME; may be repeated.",
        rich_help_panel=_PANEL,
    ),
]


def allocation_of(
    slurm: bool,
    nodes: int | None,
    partition: str | None,
    time: str | None,
    gpus: str | None,
    cpus: int | None,
    requeue: bool,
    others: list[str],
) -> "Allocation | None":
    """What is asked of Slurm; none where the search does not go there.

    Raises:
        SearchError: something is asked of it all the same.
        ClusterError: something that it does not know.
    """
    if not slurm:
        given = {
            "--nodes": nodes,
            "--partition": partition,
            "--time": time,
            "--gpus": gpus,
            "--cpus": cpus,
            "--requeue": requeue or None,
            "--sbatch": others or None,
        }
        for option, value in given.items():
            if value is not None:
                raise SearchError(f"{option} is for jobs of Slurm; add --slurm, or leave it out")
        return None
    from search.cluster.slurm import Allocation

    return Allocation(
        nodes=1 if nodes is None else nodes,
        partition=partition,
        time=time,
        gpus=gpus,
        cpus=cpus,
        requeue=requeue,
        others=tuple(others),
    )


def submit_to_slurm(
    experiment: "Experiment",
    allocation: "Allocation",
    storage: str,
    name: str | None,
    tracking_uri: str | None,
    follow: bool,
) -> None:
    """Hands a search to Slurm, and prints the commands that watch it.

    Raises:
        SearchError: it is to be followed.
    """
    from search.cluster.slurm import submit
    from search.record.storage import Storage

    if follow:
        raise SearchError(
            "--follow is not for --slurm, where a job may wait for days; tail -F shows the output, "
            "in the file that is then named"
        )
    place = Storage(storage)
    sent = submit(experiment, allocation, storage=place, name=name, tracking_uri=tracking_uri)
    option = "" if storage == "runs" else f" --storage {storage}"
    print(
        f"search {sent.search} {'continues' if sent.continues else 'is submitted'} as Slurm's job "
        f"{sent.job}; you can close this machine\n"
        f"  tail -F {sent.output}   # its output\n"
        f"  kdsearch status {sent.search}{option}   # its progress\n"
        f"  kdsearch stop {sent.search}   # end it cleanly\n"
        f"Where the job ends early, the same command with --name {sent.search} continues it.",
        flush=True,
    )
