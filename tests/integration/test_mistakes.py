"""A user's mistakes: one clear message each, status 2, no traceback, nothing half-made."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli.app import main
from tests.integration.commands import kdsearch
from tests.integration.finished_search import EXPERIMENT
from tests.unit.kdcore.published import PUBLISHED

pytestmark = pytest.mark.integration

VALID: dict[str, Any] = EXPERIMENT | {"narrow": {}}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(
    capsys: pytest.CaptureFixture[str], content: dict[str, Any], *arguments: str
) -> list[str]:
    """The lines that `kdsearch launch` prints when it refuses an experiment."""
    Path("task.yaml").write_text(yaml.safe_dump(content))
    return command_refused(capsys, "launch", "task.yaml", *arguments)


def command_refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    argv = sys.argv
    sys.argv = ["kdsearch", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    made = [path for path in Path("runs").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path for path in made if path.suffix != ".arrow"] == []
    return output.err.strip().splitlines()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sarch": {}}, ["task.yaml: sarch: unknown key", "did you mean 'search'"]),
        ({"search": {"trials": "x"}}, ["task.yaml: search.trials: is 'x', but"]),
        ({"data": {"name": "digits", "heldout_fraction": 2}}, ["data.heldout_fraction: is 2, but"]),
        ({"objective": [["none", "kdd"]]}, ["unknown method 'kdd'; did you mean 'kd'?"]),
        (
            {"student": "resnet88"},
            ["student: unknown backbone 'resnet88'; did you mean 'resnet8'?"],
        ),
        ({"narrow": {"at.layers": ["stage7:stage1"]}}, ["narrow.at.layers", "no tap 'stage7'"]),
        ({"narrow": {"kd.temperature": [0, 3]}}, ["narrow.kd.temperature", "0 is not legal"]),
        (
            {"teacher": {"backbone": "resnet14", "weights": "absent.pt"}},
            ["teacher.weights", "absent.pt", "no such file"],
        ),
        (
            {"data": {"name": "digits", "train_images": 5000}},
            ["data: train_images is 5000, but only"],
        ),
        ({"data": {"name": "fashion_mnist"}}, ["data: root is missing", "dataset-fashion-mnist"]),
        (
            {"data": {"name": "fashion_mnist", "root": "/absent"}},
            [
                "root is '/absent', but that is not a folder",
                "dataset-fashion-mnist",
                "download: true",
            ],
        ),
    ],
)
def test_a_mistake_in_the_file_is_refused(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: list[str]
) -> None:
    (line,) = refused(capsys, VALID | changes)
    assert all(word in line for word in words), line


def test_a_damaged_idx_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{part}-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x09abc")
    data = {"name": "fashion_mnist", "root": str(tmp_path)}
    (line,) = refused(capsys, VALID | {"data": data})
    assert "damaged IDX file" in line
    assert "holds 3 values, but its header promises 9" in line


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10", "mnist"])
def test_a_data_set_that_is_absent_or_cut_is_refused_by_check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    root = tmp_path / "images"

    def line() -> str:
        content = VALID | {"data": {"name": name, "root": str(root)}}
        Path("task.yaml").write_text(yaml.safe_dump(content))
        (line,) = command_refused(capsys, "check", "task.yaml")
        return line

    assert f"data: root is '{root}', but that is not a folder" in line()
    root.mkdir()
    assert f"data: root is '{root}', but that has no " in line()
    root.rmdir()
    PUBLISHED[name].write(root)
    path = max(root.iterdir(), key=lambda each: each.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refusal = line()
    assert "data: damaged " in refusal
    assert str(path) in refusal


def test_several_mistakes_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, VALID | {"student": "x", "sarch": 1, "search": {"trials": 0}})
    assert len(lines) == 3


@pytest.mark.parametrize("place", ["/sys/kdsearch", "task.yaml/below"])
def test_a_storage_that_cannot_be_written_is_refused(
    capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (line,) = refused(capsys, VALID, "--storage", place)
    assert place in line
    assert "cannot be written to" in line


def test_a_taken_name_and_a_name_that_is_a_path_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("runs/searches/mine").mkdir(parents=True)
    (line,) = refused(capsys, VALID, "--name", "mine")
    assert line == "--name: 'mine' is taken; choose another, or leave --name out"
    (line,) = refused(capsys, VALID, "--name", "../mine")
    assert "invalid search name '../mine'" in line


@pytest.mark.parametrize("command", ["leaderboard", "best", "ui"])
def test_an_unknown_search_is_refused(capsys: pytest.CaptureFixture[str], command: str) -> None:
    (line,) = command_refused(capsys, command, "absent")
    assert "no search 'absent'" in line


def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    Path("task.yaml").write_text(yaml.safe_dump(VALID))
    done = kdsearch(tmp_path, "launch", "task.yaml", "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "no Ray at 127.0.0.1:1: [Errno 111] Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("runs/searches").exists()


def test_check_refuses_and_accepts_as_launch_does(capsys: pytest.CaptureFixture[str]) -> None:
    Path("task.yaml").write_text(yaml.safe_dump(VALID | {"student": "x"}))
    assert "unknown backbone" in command_refused(capsys, "check", "task.yaml")[0]
    Path("task.yaml").write_text(yaml.safe_dump(VALID))
    sys.argv = ["kdsearch", "check", "task.yaml"]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert "kd.temperature" in output
    assert "8 of 4 epochs" in output
    assert "views    pad_crop(padding=1)\n" in output
    assert "task.yaml can be launched" in output


def test_a_dry_run_says_what_a_search_would_take_and_makes_none(tmp_path: Path) -> None:
    Path("task.yaml").write_text(yaml.safe_dump(VALID | {"prices": {"cpu_hour": 0.05}}))
    dry = ("launch", "task.yaml", "--dry-run", "--name", "dry")
    done = kdsearch(tmp_path, *dry, "--set", "resources.gpus=0", "--set", "search.budget=1e-9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^at once  \d+ trials?, each for about \d+ s, by", done.stdout, re.M)
    (at_most,) = re.findall(r"^at most  about .+ h, .+ CPU-hours, 1e-09 USD.*$", done.stdout, re.M)
    assert at_most.endswith("before all have run, the budget of 1e-09 USD may be spent")
    assert re.search(r"^before   about \d+ s for what teaches$", done.stdout, re.M)
    assert "task.yaml can be launched" in done.stdout
    assert {"searches", "teachers", "mlflow.db"}.isdisjoint(
        each.name for each in Path("runs").iterdir()
    )
    Path("runs/searches/dry").mkdir(parents=True)
    done = kdsearch(tmp_path, *dry)
    assert done.returncode == 2
    assert done.stderr == "--name: 'dry' is taken; choose another, or leave --name out\n"


def test_check_shows_the_steps_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    data = VALID["data"] | {"augmentation": "strong"}
    Path("task.yaml").write_text(yaml.safe_dump(VALID | {"data": data}))
    sys.argv = ["kdsearch", "check", "task.yaml"]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert (
        "views pad_crop(padding=1), rand_augment(num_ops=2, magnitude=9, num_magnitude_bins=31), "
        "random_erasing(p=0.1, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0), mixup(alpha=0.2), "
        "cutmix(alpha=1.0)"
    ) in words


def test_the_command_itself_ends_with_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "search", "launch", "absent.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "absent.yaml: cannot be read: No such file or directory\n"
