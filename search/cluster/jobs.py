"""Searches submitted to a Ray cluster, and watched from another machine, by its job server."""

import asyncio
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient, JobType

from search.cluster.machine_load import MachineLoad, machines_of_ray
from search.cluster.ray_private import dashboard_nodes, quieten_job_client
from search.errors import (
    ClusterError,
    ExperimentError,
    KdsearchError,
    Problem,
    SearchError,
    no_search,
)
from search.experiment.reading import check_name
from search.experiment.schema import Experiment
from search.record.storage import Storage

# What a job carries about its search.
_SEARCH, _STORAGE = "kdsearch.search", "kdsearch.storage"

# A stopped driver waits for its trials and for MLflow before it is killed.
_STOP_SECONDS = 120
_ENVIRONMENT = {
    # Ray sends SIGTERM and waits for 3 seconds; a search ends cleanly on Ctrl-C.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
}


@dataclass(frozen=True)
class Job:
    """A search's driver on a cluster.

    Args:
        id: the job's id: the search's name, with a number if an earlier job had it.
        search: the search's name.
        storage: where the search is kept, as the cluster's machines open it.
        state: pending, running, succeeded, failed or stopped.
        submitted: when.
        ended: when; none before.
    """

    id: str
    search: str
    storage: str
    state: str
    submitted: datetime
    ended: datetime | None

    @property
    def is_over(self) -> bool:
        return self.state not in {"pending", "running"}


class JobServer:
    """The job server on a cluster's head.

    Args:
        address: like `http://127.0.0.1:8265`.
        patience: seconds in which it may come up, as what `ray dashboard` opens.

    Raises:
        ClusterError: the address is invalid, nobody answers, or the token is missing or wrong.
    """

    def __init__(self, address: str, *, patience: float = 0.0) -> None:
        self._address = address
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ClusterError(
                f"--address is {address!r}, but must be that of a job server, like "
                f"http://127.0.0.1:8265"
            )
        quieten_job_client()
        with self._asking():
            port = parts.port or (443 if parts.scheme == "https" else 80)
            _knock(parts.hostname, port, patience)
            # Ray prefers this variable, and RAY_ADDRESS, to its argument.
            os.environ["RAY_API_SERVER_ADDRESS"] = address
            self._client = JobSubmissionClient(address)

    def jobs(self) -> list[Job]:
        """The latest job of each search, oldest first."""
        latest = {job.search: job for job in self._all()}
        return sorted(latest.values(), key=lambda job: job.submitted)

    def machines(self) -> list[MachineLoad]:
        """The cluster's machines, and what they do."""
        with self._asking():
            return machines_of_ray(*dashboard_nodes(self._client), self._address)

    def find(self, search: str) -> Job:
        """The latest job of a search.

        Raises:
            SearchError: there is none.
        """
        known = {job.search: job for job in self.jobs()}
        if search not in known:
            raise no_search(search, known, f"at {self._address}")
        return known[search]

    def submit(
        self,
        experiment: Experiment,
        *,
        storage: str,
        name: str | None = None,
        tracking_uri: str | None = None,
    ) -> Job:
        """Starts a search's driver on the cluster's head.

        Args:
            experiment: what to search; sent as a whole.
            storage: a URI or an absolute path that every machine of the cluster reaches.
            name: of the search; none: the task's name and a number.
            tracking_uri: of MLflow, seen from the head; none: what the head's environment says.

        Raises:
            ExperimentError: the name is none, or taken.
            SearchError: the storage is a folder of this machine alone.
        """
        _check_storage(storage)
        name = self._free_name(experiment.name, storage) if name is None else name
        check_name(name)
        if name in self._taken(storage):
            raise _taken(name)
        options = [] if tracking_uri is None else ["--tracking-uri", tracking_uri]
        command = f'{shlex.join(["launch", "--name", name, *options])} "$OLDPWD/experiment.yaml"'
        with tempfile.TemporaryDirectory() as folder:
            content = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
            (Path(folder) / "experiment.yaml").write_text(content)
            return self._start(name, storage, command, {"working_dir": folder})

    def resume(
        self,
        search: str,
        *,
        storage: str | None = None,
        more_trials: int = 0,
        overrides: Sequence[str] = (),
    ) -> Job:
        """Continues a search on the cluster, or extends one that has ended.

        Args:
            search: its name.
            storage: where it is kept; none: what its last job on this cluster says.
            more_trials: number of trials to add.
            overrides: of budgets, resources and prices, like `search.hours=4`.

        Raises:
            SearchError: it is running, or no job on this cluster tells where it is kept.
        """
        earlier = {job.search: job for job in self.jobs()}.get(search)
        if earlier is not None and not earlier.is_over:
            raise SearchError(f"search {search!r} is {earlier.state}; kdsearch stop ends it")
        if storage is None:
            storage = self.find(search).storage
        _check_storage(storage)
        changes = [word for each in overrides for word in ("--set", each)]
        command = shlex.join(["resume", search, "--more-trials", str(more_trials), *changes])
        return self._start(search, storage, command, {})

    def logs(self, job: Job) -> str:
        """The output of a job so far."""
        with self._asking():
            return str(self._client.get_job_logs(job.id))

    def follow(self, job: Job, write: Callable[[str], None]) -> Job:
        """Passes on a job's output until it ends; returns the ended job.

        Raises:
            ClusterError: the connection broke; the job continues.
        """

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job.id):
                write(text)

        try:
            asyncio.run(tail())
        except (RuntimeError, OSError) as error:
            raise ClusterError(
                f"the connection to {self._address} broke ({_first_line(error)}); the search goes "
                f"on without it: kdsearch logs {job.search} --follow"
            ) from None
        return self._when_over(job)

    def stop(self, job: Job) -> Job:
        """Ends a search as Ctrl-C does, and waits for it; returns the ended job."""
        with self._asking():
            self._client.stop_job(job.id)
        return self._when_over(job)

    def _start(self, name: str, storage: str, command: str, files: dict[str, str]) -> Job:
        # A job's folder is removed with the job; what a driver writes beside the storage, like
        # its log, belongs into the home folder.
        place = shlex.join(["--address", "auto", "--storage", storage])
        with self._asking():
            used = {details.submission_id for details in self._client.list_jobs()}
            numbered = (f"{name}.{number}" for number in range(2, len(used) + 3))
            free = next(id_ for id_ in (name, *numbered) if id_ not in used)
            try:
                self._client.submit_job(
                    entrypoint=f"cd && exec kdsearch {command} {place}",
                    submission_id=free,
                    runtime_env={**files, "env_vars": _ENVIRONMENT},
                    metadata={_SEARCH: name, _STORAGE: storage},
                )
            except RuntimeError as error:
                if "already exists" in str(error):  # someone else was faster
                    raise _taken(name) from None
                raise
        return self._job(free)

    def _all(self) -> list[Job]:
        """All jobs that are searches, oldest first."""
        with self._asking():
            found = self._client.list_jobs()
        jobs = [_job_of(details) for details in found if _is_search(details)]
        return sorted(jobs, key=lambda job: job.submitted)

    def _job(self, id_: str) -> Job:
        with self._asking():
            return _job_of(self._client.get_job_info(id_))

    def _when_over(self, job: Job) -> Job:
        """The job when it is over, or after the time in which Ray kills one that does not stop."""
        deadline = time.monotonic() + _STOP_SECONDS + 30
        while not job.is_over and time.monotonic() < deadline:
            time.sleep(0.5)
            job = self._job(job.id)
        return job

    def _taken(self, storage: str) -> set[str]:
        """Names of searches that are on their way, and of those in the storage."""
        return {job.search for job in self._all() if not job.is_over} | _kept(storage)

    def _free_name(self, task: str, storage: str) -> str:
        """The task's name with the first number that no search has."""
        taken = {job.search for job in self._all()} | _kept(storage)
        return next(name for n in range(1, len(taken) + 2) if (name := f"{task}-{n}") not in taken)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns what can go wrong between here and the server into one clear message."""
        try:
            yield
        except AuthenticationError as error:
            wrong = "invalid" in str(error).lower()
            raise ClusterError(
                f"{self._address} {'refuses this token' if wrong else 'asks for a token'}; put the "
                f"cluster's into ~/.ray/auth_token, or its path into RAY_AUTH_TOKEN_PATH"
            ) from None
        except (OSError, RuntimeError) as error:
            raise ClusterError(
                f"no answer from a job server at {self._address}: {_first_line(error)}"
            ) from None


def _knock(host: str, port: int, patience: float) -> None:
    """Connects to a server; Ray's own client waits for minutes where nobody answers.

    Raises:
        OSError: it does not answer.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)


def _check_storage(storage: str) -> None:
    if "://" not in storage and not Path(storage).is_absolute():
        raise SearchError(
            f"--storage is {storage!r}, but must be a URI like s3://bucket/folder or an absolute "
            f"path: the cluster's machines open it, not this one"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _taken(name: str) -> ExperimentError:
    message = f"{name!r} is taken; choose another, or leave --name out"
    return ExperimentError("--name", [Problem(key="", message=message)])


def _kept(storage: str) -> set[str]:
    """The names in a storage; none where it is not reached from here, and the driver will see."""
    try:
        return set((Storage(storage) / "searches").names())
    except KdsearchError:
        return set()


def _is_search(details: JobDetails) -> bool:
    return details.type is JobType.SUBMISSION and _SEARCH in (details.metadata or {})


def _job_of(details: JobDetails) -> Job:
    def moment(milliseconds: int | None) -> datetime | None:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None

    metadata = details.metadata or {}
    return Job(
        id=str(details.submission_id),
        search=metadata[_SEARCH],
        storage=metadata[_STORAGE],
        state=str(details.status.value).lower(),
        submitted=moment(details.start_time) or datetime.now(UTC),
        ended=moment(details.end_time),
    )
