"""All searches that can be seen from here, wherever they run, and what the machines do."""

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit

from search.cluster.machine_load import MachineLoad, this_machine
from search.cluster.slurm import nodes_of, slurm_jobs
from search.errors import KdsearchError
from search.record.files import read_record, search_names
from search.record.record import SearchRecord
from search.record.storage import Storage


@dataclass(frozen=True)
class SeenSearch:
    """A search.

    Args:
        name: of it.
        where: what runs it, or ran it last, in words.
        state: of its job, where it has one; else of the search.
        since: when it began, or was submitted.
        ended: when its job ended; none where that is not known.
        storage: where it is kept.
        record: none where it has not begun, or cannot be read from here.
    """

    name: str
    where: str
    state: str
    since: datetime
    storage: str
    record: SearchRecord | None
    ended: datetime | None = None


# By storage and name.
_Found = dict[tuple[str, str], SeenSearch]


@dataclass
class Overview:
    """What can be seen.

    Args:
        searches: those of the storage, of the job server, and of Slurm; each once, oldest first.
        machines: this one, those behind the job server, and the nodes of Slurm's jobs.
        errors: of the places that did not answer.
    """

    searches: list[SeenSearch] = field(default_factory=list)
    machines: list[MachineLoad] = field(default_factory=list)
    errors: list[KdsearchError] = field(default_factory=list)


def overview(storage: str, job_server: str, *, must_answer: bool) -> Overview:
    """Looks everywhere.

    Args:
        storage: where searches of this machine are kept.
        job_server: of a cluster.
        must_answer: whether it is an error if nobody is there.
    """
    seen, found = Overview(machines=[this_machine()]), _Found()
    for look in (_in_storage, _in_slurm):
        try:
            look(storage, seen, found)
        except KdsearchError as error:
            seen.errors.append(error)
    if must_answer or _is_there(job_server):
        try:
            _at_job_server(job_server, seen, found)
        except KdsearchError as error:
            seen.errors.append(error)
    seen.searches = sorted(found.values(), key=lambda search: search.since)
    return seen


def _in_storage(location: str, seen: Overview, found: _Found) -> None:
    storage = Storage(location)
    for name in search_names(storage):
        try:
            record = read_record(storage, name)
        except KdsearchError as error:
            seen.errors.append(error)
            continue
        where = "here" if record.host in {"", socket.gethostname()} else record.host
        one = SeenSearch(name, where, record.state, record.started, storage.uri, record)
        found[storage.uri, name] = one


def _in_slurm(location: str, seen: Overview, found: _Found) -> None:
    jobs = slurm_jobs()
    for job in jobs:
        limited = f", {job.left} left" if job.left[:1].isdigit() else ""
        detail = f" ({job.reason})" if job.reason else limited
        found[job.storage, job.search] = SeenSearch(
            job.search,
            f"Slurm job {job.id}",
            job.state + detail,
            job.submitted,
            job.storage,
            _record_of(job.storage, job.search, found),
        )
    seen.machines += nodes_of(jobs)


def _at_job_server(address: str, seen: Overview, found: _Found) -> None:
    from search.cluster.jobs import JobServer

    server = JobServer(address)
    for job in server.jobs():
        known = found.get((job.storage, job.search))
        if job.is_over and known is not None and known.state.startswith("running"):
            continue  # it was resumed elsewhere
        found[job.storage, job.search] = SeenSearch(
            job.search,
            f"job {job.id} at {address}",
            job.state,
            job.submitted,
            job.storage,
            _record_of(job.storage, job.search, found),
            job.ended,
        )
    seen.machines += server.machines()


def _record_of(storage: str, name: str, found: _Found) -> SearchRecord | None:
    if (storage, name) in found:
        return found[storage, name].record
    try:
        return read_record(Storage(storage), name)
    except KdsearchError:
        return None


def _is_there(address: str) -> bool:
    """Whether somebody listens at an address."""
    parts = urlsplit(address)
    with suppress(OSError):
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=2).close()
        return True
    return False
