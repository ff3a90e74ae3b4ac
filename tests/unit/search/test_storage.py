"""The storage: a local folder and another file system behave alike."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs

from search.record.storage import Storage


@pytest.fixture(params=["local", "remote"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "store"))
    # Arrow's in-memory file system stands for a bucket; one instance, as a bucket is one place.
    memory, _ = fs.FileSystem.from_uri("mock://")
    opened = SimpleNamespace(from_uri=lambda uri: (memory, uri.split("//")[1]))
    monkeypatch.setattr(
        "search.record.bucket_files.fs", SimpleNamespace(**vars(fs) | {"FileSystem": opened})
    )
    return Storage("mock://bucket/store")


def test_files_are_written_read_listed_and_removed(storage: Storage) -> None:
    assert storage.names() == []
    storage.write("a/b.txt", b"1")
    storage.write("a/b.txt", b"2")
    assert storage.read("a/b.txt") == b"2"
    assert storage.exists("a/b.txt")
    assert (storage / "a").names() == ["b.txt"]
    storage.remove("a/b.txt")
    assert not storage.exists("a/b.txt")


def test_folders_travel(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"123")
    storage.upload(source, "teachers/x")
    storage.download("teachers/x", tmp_path / "copy")
    assert (tmp_path / "copy" / "weights").read_bytes() == b"123"


def test_a_missing_file_is_an_os_error(storage: Storage) -> None:
    with pytest.raises(OSError, match="absent"):
        storage.read("absent")


def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a", b"old")

    def fail(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("search.record.storage.os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"


def test_a_query_stays_behind_the_path() -> None:
    storage = Storage("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=r")
    assert (storage / "searches").uri == (
        "s3://bucket/x/searches?endpoint_override=127.0.0.1:9&scheme=http&region=r"
    )
