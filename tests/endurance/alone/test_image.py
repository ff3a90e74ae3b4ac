"""The container image, made of its file by buildah, and run. There is no registry here: Debian with
its own Python stands in for the base, and every step of the file is run as it stands."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.endurance.hosts import needs_programs

pytestmark = pytest.mark.integration

DOCKERFILE = Path("experiments/clusters/Dockerfile").absolute()
BASE = DOCKERFILE.read_text().split("FROM ", 1)[1].split()[0]
DEBIAN = BASE.rpartition("-")[2]
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"


class Builder:
    """Buildah with a storage of its own.

    Args:
        folder: keeps the storage.
    """

    def __init__(self, folder: Path) -> None:
        trusting = folder / "policy.json"
        trusting.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._policy = f"--signature-policy={trusting}"
        self._places = [f"--root={folder / 'storage'}", f"--runroot={folder / 'running'}"]

    def __call__(self, command: str, *words: str | Path, has_policy: bool = False) -> str:
        """What a command prints, which must succeed."""
        policy = [self._policy] if has_policy else []
        ran = subprocess.run(
            ["buildah", *self._places, command, *policy, *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"buildah {command}:\n{ran.stdout[-4000:]}{ran.stderr[-4000:]}"
        return ran.stdout.strip()

    def inside(self, container: str, *command: str) -> str:
        """What a command prints as the image's user."""
        return self("run", "--isolation=chroot", container, "--", *command)


def as_base(folder: Path) -> None:
    """Debian, where `python` and `pip` are found as in the base of the file, and this machine's
    authorities are trusted."""
    packages = "--include=ca-certificates,python3-pip"
    subprocess.run(["debootstrap", "--variant=minbase", packages, DEBIAN, folder], check=True)
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for mark in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        mark.unlink()
    shutil.copy(Path("/") / AUTHORITIES, folder / AUTHORITIES)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """With the base at hand."""
    if os.getuid() != 0:
        pytest.skip("only root can make a Debian; run as root")
    needs_programs({"buildah": "buildah", "debootstrap": "debootstrap"})
    folder = tmp_path_factory.mktemp("image")
    debian = folder / "debian"
    as_base(debian)
    builder = Builder(folder)
    container = builder("from", "scratch", has_policy=True)
    builder("copy", container, debian, "/")
    builder("commit", container, f"localhost/{BASE}", has_policy=True)
    builder("rm", container)
    shutil.rmtree(debian)
    yield builder
    builder("rm", "--all")
    builder("rmi", "--all", "--force")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    builder(
        *("build", "--pull-never", "--isolation=chroot", "--tag=kdsearch", "--file", DOCKERFILE),
        Path.cwd(),
        has_policy=True,
    )
    return "kdsearch"


@pytest.fixture(scope="module")
def settings(builder: Builder, image: str) -> dict[str, Any]:
    """What the image says of itself."""
    settings: dict[str, Any] = json.loads(builder("inspect", "--type=image", image))
    return settings["OCIv1"]["config"]


@pytest.fixture
def container(builder: Builder, image: str) -> str:
    return builder("from", "--pull-never", image, has_policy=True)


def test_by_itself_it_runs_the_quickstart(
    builder: Builder, container: str, settings: dict[str, Any]
) -> None:
    said = builder.inside(container, *settings["Cmd"])
    assert "kdsearch best quickstart-1" in said
    owner = builder.inside(container, "stat", "--format=%u:%g", "runs/searches/quickstart-1")
    assert settings["User"] == owner == "1000:1000"


def test_what_kuberays_pods_run_is_there(builder: Builder, container: str) -> None:
    for program in ("kdsearch", "mlflow", "python", "ray", "wget"):
        assert builder.inside(container, "sh", "-c", f"command -v {program}"), program
