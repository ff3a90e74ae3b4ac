"""Searches as jobs of Slurm: submitted with sbatch, watched with squeue.

`slurm.sh`, beside this file, is what such a job runs.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from search.cluster.machine_load import MachineLoad
from search.errors import ClusterError, ExperimentError, Problem, SearchError
from search.experiment.reading import check_name, read_experiment
from search.experiment.schema import Experiment
from search.record.files import read_record
from search.record.log import has_record
from search.record.storage import Storage, local_home, search_storage

SCRIPT = Path(__file__).with_name("slurm.sh")

# Slurm signals a job two minutes before its end, or up to a minute earlier, and some time must be
# left for the search.
_SHORTEST = 5

# A controller that is busy takes a while.
_ANSWER_SECONDS = 60

# What Slurm's commands say where they are installed and belong to no cluster.
_NO_CONFIGURATION = "Could not establish a configuration source"

# What a job's comment begins with; the storage follows.
_MARK = "kdsearch "


@dataclass(frozen=True)
class Allocation:
    """What a job asks of Slurm.

    Args:
        nodes: number of machines.
        partition: none: the site's default.
        time: limit, as Slurm reads it; none: the partition's.
        gpus: of each node, a number or TYPE:NUMBER; none: no GPUs.
        cpus: of each node; none: the site's default, often one.
        requeue: whether a job that its time limit ends queues again, until the search has ended.
        others: further options of sbatch.

    Raises:
        ClusterError: one of them is none of Slurm's.
    """

    nodes: int = 1
    partition: str | None = None
    time: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    requeue: bool = False
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, number in (("--nodes", self.nodes), ("--cpus", self.cpus)):
            if number is not None and number < 1:
                raise ClusterError(f"{option} is {number}, but must be >= 1")
        if self.gpus is not None and not re.fullmatch(r"([\w.-]+:)?[1-9]\d*", self.gpus):
            raise ClusterError(
                f"--gpus is {self.gpus!r}, but must be the number for each node, like 4 or a100:4; "
                f"leave it out for none"
            )
        if self.time is not None and (minutes := _minutes(self.time)) < _SHORTEST:
            raise ClusterError(
                f"--time is {self.time!r}, which Slurm reads as {minutes:g} minutes, but must be "
                f"at least {_SHORTEST}: two minutes before its end the search is stopped"
            )
        if wrong := [each for each in self.others if not each.startswith("-")]:
            raise ClusterError(
                f"--sbatch is {wrong[0]!r}, but must be an option of sbatch, like "
                f"--sbatch=--account=NAME"
            )

    @property
    def options(self) -> list[str]:
        """As sbatch reads them."""
        asked = {
            "--partition": self.partition,
            "--nodes": self.nodes,
            "--time": self.time,
            "--gres": None if self.gpus is None else f"gpu:{self.gpus}",
            "--cpus-per-task": self.cpus,
        }
        words = [f"{option}={value}" for option, value in asked.items() if value is not None]
        return [*words, *(["--requeue"] if self.requeue else []), *self.others]


@dataclass(frozen=True)
class SlurmJob:
    """A search's job that waits or runs.

    Args:
        id: Slurm's number of it.
        search: the search's name.
        storage: where the search is kept.
        state: Slurm's word in lower case, like pending or running.
        submitted: when.
        nodes: their names as Slurm writes them, like `gpu[01-04]`; empty while it waits.
        left: until its time limit, as Slurm writes it.
        reason: why it waits; empty when it runs.
    """

    id: str
    search: str
    storage: str
    state: str
    submitted: datetime
    nodes: str
    left: str
    reason: str


@dataclass(frozen=True)
class Submission:
    """A search that was handed to Slurm.

    Args:
        search: its name.
        job: Slurm's number.
        output: the file that the search's output goes to.
        continues: whether it had begun before.
    """

    search: str
    job: str
    output: Path
    continues: bool


def submit(
    experiment: Experiment,
    allocation: Allocation,
    *,
    storage: Storage,
    name: str | None = None,
    tracking_uri: str | None = None,
) -> Submission:
    """Hands a search to Slurm: a new one, or one that has begun with the same experiment.

    Args:
        experiment: what to search; kept as a whole beside the storage's searches.
        allocation: what it gets.
        storage: which the nodes reach under the same path.
        name: of the search; none: the task's name and a number.
        tracking_uri: of MLflow, seen from the nodes; none: what the environment says.

    Raises:
        ClusterError: there is no Slurm on this machine, or it refuses the job.
        ExperimentError: the name is none, or taken by another search.
        SearchError: the search waits, runs, or has finished.
    """
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "--slurm needs Slurm's commands, but sbatch is not on this machine's PATH; log in "
            "where jobs are submitted"
        )
    files = Storage(str(local_home(storage)))
    content = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False).encode()
    if name is None:
        name, continues = _claimed(experiment.name, storage, files, content), False
    else:
        check_name(name)
        continues = _has_begun(name, storage, experiment)
        files.write(_file(name), content)
    output = local_home(storage) / "logs" / f"{name}.slurm-%j.out"
    output.parent.mkdir(parents=True, exist_ok=True)
    words = ["launch", str(local_home(storage) / _file(name)), "--name", name, "--continue"]
    words += ["--storage", storage.uri]
    words += [] if tracking_uri is None else ["--tracking-uri", tracking_uri]
    try:
        job = _ask(
            *("sbatch", "--parsable", f"--job-name={name}", f"--output={output}"),
            *(f"--comment={_MARK}{storage.uri}", *allocation.options, str(SCRIPT)),
            *(["--requeue"] if allocation.requeue else []),
            *words,
        )
    except ClusterError:
        if not continues:
            files.remove(_file(name))
        raise
    number = job.strip().partition(";")[0]  # a federation's cluster may follow
    return Submission(name, number, Path(str(output).replace("%j", number)), continues)


def slurm_jobs() -> list[SlurmJob]:
    """This user's searches that wait or run under Slurm, oldest first; none without Slurm.

    Raises:
        ClusterError: Slurm does not answer.
    """
    if shutil.which("squeue") is None:
        return []
    try:
        said = _ask(
            *("squeue", "--noheader", f"--user={os.getuid()}", "--sort=i"),
            "--format=%i|%j|%T|%V|%N|%L|%r|%k",
        )
    except ClusterError as error:
        if _NO_CONFIGURATION in str(error):
            return []
        raise
    found = []
    for line in said.splitlines():
        number, search, state, submitted, nodes, left, reason, comment = line.split("|", 7)
        if comment.startswith(_MARK):
            found.append(
                SlurmJob(
                    id=number,
                    search=search,
                    storage=comment.removeprefix(_MARK),
                    state=state.lower(),
                    submitted=_moment(submitted),
                    nodes=nodes,
                    left=left,
                    reason="" if reason == "None" else reason,
                )
            )
    return found


def nodes_of(jobs: list[SlurmJob]) -> list[MachineLoad]:
    """The nodes that jobs run on.

    Raises:
        ClusterError: Slurm does not answer.
    """
    names = ",".join(job.nodes for job in jobs if job.nodes)
    if not names:
        return []
    said = _ask("sinfo", "--noheader", "--Node", f"--nodes={names}", "--format=%N|%C|%O|%c|%G")
    found = {}
    for line in said.splitlines():  # a node stands there once for each of its partitions
        name, cores, load, count, gpus = line.split("|")
        allocated, _, _, of = cores.split("/")
        found[name] = MachineLoad(
            name,
            "Slurm",
            trials=f"{allocated} of {of} CPUs",
            load=None if load == "N/A" else float(load),
            cores=int(count),
            gpus=() if gpus == "(null)" else (gpus,),
        )
    return list(found.values())


def stop(job: SlurmJob) -> None:
    """Ends a search's job as Ctrl-C does, and waits for it; one that waits is taken out of the
    queue.

    Raises:
        ClusterError: Slurm does not answer.
    """
    _ask("scancel", *([] if job.state == "pending" else ["--batch", "--signal=INT"]), job.id)
    while any(each.id == job.id for each in slurm_jobs()):
        time.sleep(1)


def _minutes(limit: str) -> float:
    """A time as Slurm reads it.

    Raises:
        ClusterError: it does not.
    """
    if limit.upper() in {"UNLIMITED", "INFINITE"}:
        return float("inf")
    if found := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", limit):
        days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    elif found := re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)|(\d+)", limit):
        days = 0
        hours, minutes, seconds, alone = (int(each or 0) for each in found.groups())
        minutes += alone
    else:
        raise ClusterError(
            f"--time is {limit!r}, but must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, like "
            f"90, 4:00:00 or 1-12"
        )
    return days * 24 * 60 + hours * 60 + minutes + seconds / 60


def _moment(local: str) -> datetime:
    try:
        return datetime.fromisoformat(local).astimezone(UTC)
    except ValueError:  # "N/A"
        return datetime.now(UTC)


def _ask(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
        ClusterError: it fails, or does not answer.
    """
    # The job runs with this environment: its kdsearch is to be the one that submits it.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_SECONDS,
            env=os.environ | {"PATH": path},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{command[0]} does not answer: {error}") from None
    if done.returncode != 0:
        lines = (re.sub(r"^\w+: (error|fatal): ", "", line) for line in done.stderr.splitlines())
        raise ClusterError(f"{command[0]} failed: {'; '.join(filter(None, lines))}")
    return done.stdout


def _file(name: str) -> str:
    """A submitted search's experiment, relative to the folder of its logs."""
    return f"slurm/{name}.yaml"


def _claimed(task: str, storage: Storage, files: Storage, content: bytes) -> str:
    """The task's name with the first number that no search has; its experiment takes it."""
    number = 1
    while True:
        name = f"{task}-{number}"
        if not search_storage(storage, name).names() and files.create(_file(name), content):
            return name
        number += 1


def _has_begun(name: str, storage: Storage, experiment: Experiment) -> bool:
    """Whether a search is there that a job would continue.

    Raises:
        ExperimentError: another search has the name.
        SearchError: it waits, runs, or has finished.
    """
    for job in slurm_jobs():
        if (job.search, job.storage) == (name, storage.uri):
            raise SearchError(
                f"search {name!r} is {job.state} as Slurm's job {job.id}; "
                f"kdsearch stop {name} ends it"
            )
    if not has_record(search_storage(storage, name)):
        return False
    known = local_home(storage) / _file(name)
    if not known.exists() or read_experiment(known, ()) != experiment:
        message = (
            f"{name!r} is taken by a search of another experiment; choose another, or leave "
            f"--name out"
        )
        raise ExperimentError("--name", [Problem(key="", message=message)])
    record = read_record(storage, name)
    if record.state == "running":
        raise SearchError(f"search {name!r} runs on {record.host}")
    if record.state == "finished":
        raise SearchError(
            f"search {name!r} has finished; kdsearch resume {name} --more-trials N extends it"
        )
    return True
