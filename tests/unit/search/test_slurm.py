"""What `kdsearch submit --slurm` asks of Slurm and refuses, and what `kdsearch status` shows; the
commands of Slurm are stand-ins that note how they were called."""

import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import yaml

import search
from search.cli.app import main
from search.cluster.machine_load import machines_of_ray, this_machine
from search.cluster.slurm import SCRIPT, Allocation, nodes_of, slurm_jobs
from search.errors import ClusterError
from search.record.storage import Storage
from search.session.search import Search
from tests.own_code import method
from tests.records import write_record
from tests.synthetic import SMALL, finished_search

ROOT = Path(__file__).parents[3]


class Slurm:
    """Commands on the PATH in the place of Slurm's.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def says(self, command: str, words: str, *, status: int = 0) -> None:
        """What a command prints from now on, on stderr where it fails."""
        script = self._folder / command
        (self._folder / f"{command}.said").write_text(words)
        script.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" > "$0.called"\n'
            f'cat "$0.said" >&{2 if status else 1}\nexit {status}\n'
        )
        script.chmod(0o755)

    def called(self, command: str) -> list[str]:
        """The words of its last call; none where there was none."""
        called = self._folder / f"{command}.called"
        return called.read_text().splitlines() if called.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """An empty queue, in a user's folder with an experiment."""
    slurm = Slurm(tmp_path / "bin")
    slurm.says("sbatch", "17\n")
    slurm.says("squeue", "")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(dict(SMALL)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("KDSEARCH_STORAGE", raising=False)
    return slurm


Captured = pytest.CaptureFixture[str]


def kdsearch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs a command; its exit status."""
    monkeypatch.setattr(sys, "argv", ["kdsearch", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def refused(monkeypatch: pytest.MonkeyPatch, capsys: Captured, *arguments: str) -> str:
    """What a command says that ends with status 2."""
    assert kdsearch(monkeypatch, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def queued(*, state: str = "RUNNING", storage: str, nodes: str = "n1", reason: str = "None") -> str:
    """A line of squeue."""
    return f"12|first|{state}|2026-01-02T03:04:05|{nodes}|1:00:00|{reason}|kdsearch {storage}\n"


def test_sbatch_is_asked_for_what_the_user_asks(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    slurm.says("sbatch", "17;cluster\n")
    (tmp_path / "own.py").write_text(method())
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({**SMALL, "plugins": ["own.py"]}))
    meant = search.read_experiment("task.yaml", ["seed=3"])
    asked = {"--partition": "gpu", "--nodes": "2", "--time": "4:00:00", "--gpus": "a100:4"}
    asked |= {
        "--cpus": "32",
        "--name": "first",
        "--storage": "shared",
        "--tracking-uri": "http://m",
    }
    words = [word for option in asked.items() for word in option]
    others = ("--sbatch=--account=lab", "--sbatch=--qos=long", "--requeue", "--set", "seed=3")
    status = kdsearch(monkeypatch, "submit", "task.yaml", "--slurm", *words, *others)
    output = capsys.readouterr()
    assert status == 0, output.err
    experiment, shared = tmp_path / "shared/slurm/first.yaml", tmp_path / "shared"
    assert slurm.called("sbatch") == [
        *("--parsable", "--job-name=first", f"--output={shared}/logs/first.slurm-%j.out"),
        *(f"--comment=kdsearch {shared}", "--partition=gpu", "--nodes=2", "--time=4:00:00"),
        *("--gres=gpu:a100:4", "--cpus-per-task=32", "--requeue", "--account=lab", "--qos=long"),
        *(str(SCRIPT), "--requeue", "launch", str(experiment), "--name", "first", "--continue"),
        *("--storage", str(shared), "--tracking-uri", "http://m"),
    ]
    (tmp_path / "own.py").unlink()  # its code has gone with it
    assert search.read_experiment(experiment) == meant
    assert meant.plugins[0].sources == {"own.py": method()}
    assert (shared / "logs").is_dir()
    for line in ("search first is submitted as Slurm's job 17", "kdsearch stop first"):
        assert line in output.out
    assert f"tail -F {shared}/logs/first.slurm-17.out" in output.out


def test_what_is_not_asked_for_is_left_to_slurm_and_names_are_numbered(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(Storage("runs"), finished_search([]))
    for name in ("task-2", "task-3"):
        assert kdsearch(monkeypatch, "submit", "task.yaml", "--slurm") == 0
        called = slurm.called("sbatch")
        assert called[called.index("--name") + 1] == name
        assert {"--nodes=1", str(SCRIPT)} <= set(called)
        untold = ("--partition", "--time", "--gres", "--cpus-per-task", "--requeue", "--tracking")
        assert not [word for word in called if word.startswith(untold)]


def test_the_script_lies_where_the_documents_say_and_can_be_run() -> None:
    assert (ROOT / "experiments/clusters/slurm.sh").resolve() == SCRIPT
    assert os.access(SCRIPT, os.X_OK)
    assert '"*.sh"' in (ROOT / "pyproject.toml").read_text()


MISTAKES = (
    (["--nodes", "0"], "--nodes is 0, but must be >= 1"),
    (["--cpus", "0"], "--cpus is 0, but must be >= 1"),
    (["--time", "4h"], "--time is '4h', but must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS"),
    (
        ["--time", "1:30"],
        "--time is '1:30', which Slurm reads as 1.5 minutes, but must be at least",
    ),
    (["--gpus", "0"], "--gpus is '0', but must be the number for each node, like 4 or a100:4"),
    (["--gpus", "four"], "--gpus is 'four', but must be the number for each node"),
    (["--sbatch", "account=lab"], "--sbatch is 'account=lab', but must be an option of sbatch"),
    (["--name", "a/b"], "--name: invalid search name 'a/b'"),
    (["--follow"], "--follow is not for --slurm"),
    (["--storage", "gopher://x"], "--storage is 'gopher://x', but must be a folder or a URI"),
)


def test_each_mistake_is_told_before_anything_is_sent(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for words, message in MISTAKES:
        said = refused(monkeypatch, capsys, "submit", "task.yaml", "--slurm", *words)
        assert message in said, (words, said)
    assert slurm.called("sbatch") == []
    assert not (tmp_path / "runs").exists()


def test_what_is_for_slurm_needs_slurm(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    options = ["--nodes=2", "--partition=x", "--time=90", "--gpus=1", "--cpus=2", "--requeue"]
    for option in (*options, "--sbatch=--qos=x"):
        said = refused(monkeypatch, capsys, "submit", "task.yaml", option)
        name = option.partition("=")[0]
        assert said == f"kdsearch: {name} is for jobs of Slurm; add --slurm, or leave it out\n"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    said = refused(monkeypatch, capsys, "submit", "task.yaml", "--slurm")
    assert "sbatch is not on this machine's PATH; log in where jobs are submitted" in said
    assert slurm_jobs() == []


def test_a_job_that_slurm_refuses_leaves_its_name_free(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    slurm.says("sbatch", "sbatch: error: Invalid partition name specified\n", status=1)
    submit = ("submit", "task.yaml", "--slurm", "--partition", "gqu")
    said = refused(monkeypatch, capsys, *submit)
    assert said == "kdsearch: sbatch failed: Invalid partition name specified\n"
    assert list((tmp_path / "runs" / "slurm").iterdir()) == []


def test_a_time_is_read_as_slurm_reads_it() -> None:
    enough = ("5", "5:00", "0:05:00", "0-0:05", "0-00:05:00", "1-0", "1-12:00:00", "UNLIMITED")
    for time in enough:
        assert Allocation(time=time).options == ["--nodes=1", f"--time={time}"]
    for time in ("4", "4:59", "0:04:59", "0-0:04", "0-00:04:59", "0-0", "", "1-", "1:2:3:4", "-5"):
        with pytest.raises(ClusterError, match="--time is"):
            Allocation(time=time)


def test_a_search_continues_only_with_its_own_experiment_and_where_nobody_runs_it(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    storage = Storage("runs")
    submit = ("submit", "task.yaml", "--slurm", "--name", "first")
    write_record(storage, finished_search([], name="first", state="interrupted"))
    other = (
        "'first' is taken by a search of another experiment; choose another, or leave --name out"
    )
    assert refused(monkeypatch, capsys, *submit) == f"--name: {other}\n"

    (Path("runs") / "searches").rename(Path("away"))
    assert kdsearch(monkeypatch, *submit) == 0
    assert kdsearch(monkeypatch, *submit) == 0, "its job may have been cancelled in the queue"
    write_record(storage, finished_search([], name="first", state="interrupted"))
    capsys.readouterr()
    assert kdsearch(monkeypatch, *submit) == 0
    assert "search first continues as Slurm's job 17" in capsys.readouterr().out
    assert refused(monkeypatch, capsys, *submit, "--set", "seed=3") == f"--name: {other}\n"

    slurm.says("squeue", queued(state="PENDING", storage=storage.uri))
    said = refused(monkeypatch, capsys, *submit)
    assert "search 'first' is pending as Slurm's job 12; kdsearch stop first ends it" in said
    slurm.says("squeue", queued(storage="/elsewhere"))
    assert kdsearch(monkeypatch, *submit) == 0
    write_record(storage, finished_search([], name="first"))
    capsys.readouterr()
    said = refused(monkeypatch, capsys, *submit)
    assert "'first' has finished; kdsearch resume first --more-trials N extends it" in said


def test_to_continue_a_launch_needs_a_name(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    said = refused(monkeypatch, capsys, "launch", "task.yaml", "--continue")
    assert "--continue needs --name, the search that is continued if it has begun" in said


def test_a_launch_continues_what_has_begun_once_its_driver_is_silent(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A driver that was killed on another machine may live for all that is known here."""
    begun = ("launch", "task.yaml", "--name", "first", "--continue", "--address", "head:1")
    asked: list[tuple[str, str | None]] = []
    living = iter([True, True, False])

    def resumed(found: Search, **options: str | None) -> Search:
        asked.append((found.record.name, options["address"]))
        return found

    monkeypatch.setattr("search.record.owner.has_living_owner", lambda storage: next(living))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(Search, "resume", resumed)
    write_record(Storage("runs"), finished_search([], name="first", state="interrupted"))
    assert kdsearch(monkeypatch, *begun) == 130  # as it still is
    assert asked == [("first", "head:1")]
    said = capsys.readouterr().out
    assert "search first has not been heard to end; waiting for that" in said
    assert "search first has begun; it continues with its own experiment" in said


def test_slurms_own_words_are_read(slurm: Slurm) -> None:
    other = "13|shell|RUNNING|2026-01-02T03:04:05|n7|UNLIMITED|None|(null)\n"
    waits = queued(state="PENDING", storage="/a|b c", nodes="", reason="Priority")
    slurm.says("squeue", waits + other + queued(storage="/shared", nodes="n[1-2]"))
    waiting, running = slurm_jobs()
    assert (waiting.storage, waiting.state, waiting.reason) == ("/a|b c", "pending", "Priority")
    assert (running.id, running.search, running.state) == ("12", "first", "running")
    assert running.submitted == datetime(2026, 1, 2, 3, 4, 5).astimezone(UTC)
    node = "n1|4/60/0/64|3.51|64|gpu:4\n"
    slurm.says("sinfo", f"{node}{node}n2|0/0/64/64|N/A|64|(null)\n")
    first, second = nodes_of([waiting, running])
    assert "--nodes=n[1-2]" in slurm.called("sinfo")
    assert (first.name, first.trials, first.load) == ("n1", "4 of 64 CPUs", 3.51)
    assert first.gpus == ("gpu:4",)
    assert (second.name, second.load, second.gpus) == ("n2", None, ())
    assert nodes_of([waiting]) == []


def test_a_slurm_without_a_cluster_is_none(slurm: Slurm) -> None:
    said = "squeue: fatal: Could not establish a configuration source\n"
    slurm.says("squeue", said, status=1)
    assert slurm_jobs() == []
    slurm.says("squeue", "slurm_load_jobs error: Unable to contact slurm controller\n", status=1)
    with pytest.raises(ClusterError, match="squeue failed: slurm_load_jobs error: Unable to"):
        slurm_jobs()


def test_status_tells_of_searches_wherever_they_run(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("search.cli.status.JOB_SERVER", "http://127.0.0.1:1")
    write_record(Storage("runs"), finished_search([], seconds=7200.0, device_seconds=3600.0))
    shared = tmp_path / "shared"
    write_record(Storage(str(shared)), finished_search([], name="first", state="interrupted"))
    slurm.says("squeue", queued(storage=str(shared)))
    slurm.says("sinfo", "n1|1/1/0/2|0.50|2|(null)\n")
    assert kdsearch(monkeypatch, "status") == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    for words in ("here", "finished", "0 finished of 4", "2 h, 1 CPU-hours"):
        assert words in lines["task-1"]
    for words in ("Slurm job 12", "running, 1:00:00 left", "0 finished of 4"):
        assert words in lines["first"]
    assert "1 of 2 CPUs" in lines["n1"]
    assert this_machine().name in lines

    assert kdsearch(monkeypatch, "status", "first") == 0
    said = capsys.readouterr().out
    assert "search   first: running, 1:00:00 left\nwhere    Slurm job 12, since 2026-01-02" in said
    said = refused(monkeypatch, capsys, "status", "frist")
    assert (
        "no search 'frist' in runs, at a job server or under Slurm; did you mean 'first'?" in said
    )


def test_status_shows_the_rest_where_one_place_does_not_answer(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    write_record(Storage("runs"), finished_search([]))
    slurm.says("squeue", "Unable to contact slurm controller\n", status=1)
    assert kdsearch(monkeypatch, "status", "--address", "http://127.0.0.1:1") == 2
    output = capsys.readouterr()
    assert "task-1" in output.out
    assert "squeue failed: Unable to contact slurm controller" in output.err
    assert "no answer from a job server at http://127.0.0.1:1" in output.err


def test_stop_ends_a_job_of_slurm(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    cancelled = {"PENDING": ["12"], "RUNNING": ["--batch", "--signal=INT", "12"]}
    slurm.says("scancel", "")
    for state, words in cancelled.items():
        slurm.says("squeue", queued(state=state, storage="/shared"))
        queue = iter([slurm_jobs(), []])  # it is gone once it was cancelled
        monkeypatch.setattr("search.cluster.slurm.slurm_jobs", partial(next, queue))
        assert kdsearch(monkeypatch, "stop", "first") == 0
        assert slurm.called("scancel") == words
        assert "search first is stopped" in capsys.readouterr().out


def test_the_dashboards_words_about_machines_are_read() -> None:
    gpu = {"utilizationGpu": 87, "memoryUsed": 2048, "memoryTotal": 81920}
    busy = {
        "hostname": "gpu-1",
        "cpus": [16, 8],
        "mem": [64 * 2**30, 48 * 2**30, 25.0, 16 * 2**30],
        "loadAvg": [[3.5, 2.0, 1.0], [0.2, 0.1, 0.1]],
        "gpus": [gpu, gpu | {"utilizationGpu": None}],
        "raylet": {"state": "ALIVE", "nodeId": "a"},
    }
    gone = busy | {"raylet": {"state": "DEAD", "nodeId": "b"}}
    new = {"raylet": {"state": "ALIVE", "nodeId": "c", "nodeName": "10.0.0.3"}}
    lines = "2.0/16.0 CPU (2.0 used of 2.0 reserved in placement groups)\n0.5/2.0 GPU\n1B/2B memory"
    first, second = machines_of_ray([busy, gone, new], {"a": lines}, "http://head:8265")
    assert (first.name, first.where) == ("gpu-1", "http://head:8265")
    assert first.trials == "2 of 16 CPUs, 0.5 of 2 GPUs"
    assert (first.load, first.cores, first.memory_used) == (3.5, 16, 16 * 2**30)
    assert first.gpus == ("87 %, 2.0 of 80 GiB", "2.0 of 80 GiB")
    assert (second.name, second.trials, second.load, second.gpus) == ("10.0.0.3", "", None, ())


def test_this_machines_gpus_are_asked_of_nvidias_command(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.says("nvidia-smi", "93, 10240, 81920\n0, 0, 81920\n")
    assert this_machine().gpus == ("93 %, 10.0 of 80 GiB", "0 %, 0.0 of 80 GiB")
    for words, status in (("[N/A], 1, 2\n", 0), ("no driver\n", 9)):
        slurm.says("nvidia-smi", words, status=status)
        assert this_machine().gpus == ()
