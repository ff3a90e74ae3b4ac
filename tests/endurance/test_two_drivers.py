"""Two hosts that start a search, or go on with it, at the same instant, again and again."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from search.record.files import read_record, search_names
from search.record.storage import Storage
from tests.endurance.bucket import running_bucket
from tests.endurance.test_frozen_driver import EXPERIMENT
from tests.integration.commands import PATIENCE
from tests.integration.ray_cluster import ROOT

pytestmark = pytest.mark.integration

TRIES = 8

# The commands are real as far as the search's first write, but for what they try beforehand; who
# has got so far holds the search until the other host has tried.
HOST = """
import os, socket, sys, time
from pathlib import Path
from types import SimpleNamespace

import search.cli.app
from search.session import launch
from tests.records import write_record

meeting, storage, host, rounds, links = sys.argv[1:]
other = {"1": "2", "2": "1"}[host]
socket.sethostname(f"host-{host}") if os.getpid() == 1 else None

if links == "no":
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")
    os.link = refused

def meet(point):
    Path(meeting, f"{point}-{host}").touch()
    while not Path(meeting, f"{point}-{other}").exists():
        time.sleep(0.001)

def run(prepared, place, record, owner, *rest, **options):
    write_record(place, record.model_copy(update={"ended": host}), owner)
    meet(f"{step}-tried")
    raise SystemExit(0)

def plan(experiment, *_, **__):
    return SimpleNamespace(experiment=experiment, excluded={}, measured={})

launch.plan, launch._run = plan, run
for number in range(int(rounds)):
    for command in ("launch", "resume"):
        step = f"{number}-{command}"
        name = f"one-{number}"
        words = {"launch": ["task.yaml", "--name", name], "resume": [name]}[command]
        meet(f"{step}-start")
        child = os.fork()
        if child == 0:
            sys.argv = ["kdsearch", command, *words, "--storage", storage]
            try:
                search.cli.app.main()
            except SystemExit as end:
                if end.code != 0:
                    meet(f"{step}-tried")
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code)
        print(step, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(params=["disk", "two hosts", "two hosts without hard links", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, list[str], str]]:
    """A storage, how a host is started, and whether files can be linked."""
    host: list[str] = []
    if "hosts" in request.param:
        if os.getuid() != 0:
            pytest.skip("only root can have hosts of its own")
        host = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
    if request.param == "bucket":
        with running_bucket() as bucket:
            yield bucket.uri, host, "yes"
    else:
        yield str(tmp_path / "storage"), host, "no" if "without" in request.param else "yes"


def test_of_two_drivers_at_the_same_instant_one_runs_the_search(
    place: tuple[str, list[str], str], tmp_path: Path
) -> None:
    storage, host, links = place
    (tmp_path / "meeting").mkdir()
    (tmp_path / "host.py").write_text(HOST)
    hosts = []
    for number in ("1", "2"):
        folder = tmp_path / f"host-{number}"
        folder.mkdir()
        (folder / "task.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        words = [str(tmp_path / "meeting"), storage, number, str(TRIES), links]
        hosts.append(
            subprocess.Popen(
                [*host, sys.executable, str(tmp_path / "host.py"), *words],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [each.communicate(timeout=PATIENCE) for each in hosts]
    assert [each.returncode for each in hosts] == [0, 0], said
    outcomes = zip(*(output.splitlines() for output, _ in said), strict=True)
    for ours, theirs in outcomes:
        assert {ours[-2:], theirs[-2:]} == {" 0", " 2"}, (ours, theirs, said)
    refusals = "".join(errors for _, errors in said)
    assert refusals.count("is taken") == refusals.count("still runs on ") == TRIES
    kept = Storage(storage)
    assert search_names(kept) == sorted(f"one-{number}" for number in range(TRIES))
    for name in search_names(kept):
        assert read_record(kept, name).state == "interrupted"
        sessions = (kept / f"searches/{name}/owners").names()
        assert sum(each.endswith(".json") for each in sessions) == 2
