"""The command answers at once: what a subcommand may load before it knows that it needs it."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from search.cli.app import main
from search.errors import SearchError, SearchFailedError
from search.record.storage import Storage
from tests.records import write_record
from tests.synthetic import made_up_search

SLOW = ("torch", "ray", "mlflow", "optuna", "pandas", "matplotlib", "sklearn", "scipy", "pyarrow")

COMMAND = f"""
import sys
from search.cli.app import main
try:
    main()
except SystemExit as end:
    print("status", end.code or 0, file=sys.stderr)
print("loaded", *(name for name in {SLOW} if name in sys.modules), file=sys.stderr)
"""


def typed(folder: Path, *words: str) -> tuple[str, list[str]]:
    """What a command prints last of all, and the slow libraries that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    *said, loaded = done.stderr.strip().splitlines()
    return "\n".join(said), loaded.split()[1:]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--help",), "status 0"),
        (("--version",), "status 0"),
        (("launch", "absent.yaml"), "absent.yaml: cannot be read: No such file or directory"),
        (("check", "task.yaml"), "task.yaml: search.trails: unknown key 'trails'"),
        (("check", "task.yaml", "--set", "objective=[[kdd]]"), "did you mean 'kd'"),
        (("leaderboard", "nosuch"), "no search 'nosuch'"),
        (("resume", "made-up"), "did you mean 'made-up-1'"),
        (("ui", "made-up"), "did you mean 'made-up-1'"),
        (("replay", "made-up-1", "--reduction", "0.5"), "--reduction is 0.5, but must be > 1"),
    ],
)
def test_help_and_mistakes_load_nothing_slow(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "task.yaml").write_text(
        "data: {name: digits}\nteacher: {backbone: resnet20, training: {epochs: 2}}\n"
        "student: resnet8\nobjective: [[none, kd]]\ntraining: {epochs: 2}\n"
        "search: {trials: 4, trails: 5}\n"
    )
    write_record(Storage(str(tmp_path / "runs")), made_up_search(4))
    told, loaded = typed(tmp_path, *words)
    assert said in told
    assert loaded == []


@pytest.mark.parametrize("words", [("leaderboard", "made-up-1"), ("compare", "made-up-1", "other")])
def test_what_is_recorded_is_shown_without_the_libraries_that_searched(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path / "runs"))
    record = write_record(storage, made_up_search(6))
    write_record(storage, record.model_copy(update={"name": "other"}))
    _, loaded = typed(tmp_path, *words)
    assert set(loaded) <= {"scipy"}


def test_pages_and_students_need_no_ray() -> None:
    modules = "search.cli.ui, search.tracking.mlflow_writer, search.export.export"
    modules += ", search.tracking.model_registry, search.session.search"
    code = f"import sys, {modules}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (SearchError("no search 'x'"), 2, "kdsearch: no search 'x'"),
        (SearchFailedError("the teacher failed"), 1, "kdsearch: the teacher failed"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: '/x'"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError("surprise"), 70, "ValueError: surprise\nkdsearch: this is a defect"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 70, "this is a defect"),
    ],
)
def test_a_mistake_is_one_message_and_a_defect_says_whose_it_is(
    raised: BaseException,
    status: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("search.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    printed = capsys.readouterr().err
    assert told in printed
    assert ("Traceback" in printed) == (status == 70)


def test_the_state_of_submitted_searches_needs_of_ray_only_its_client() -> None:
    code = "import sys, search.cluster.jobs, search.leaderboard.tables\n"
    code += "print(*({'ray.tune', 'pyarrow', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
