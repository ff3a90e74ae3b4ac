"""The storage: a local folder and another file system behave alike."""

from pathlib import Path

import pytest

from search.record.storage import Storage


def test_files_are_written_read_listed_and_removed(storage: Storage) -> None:
    assert storage.names() == []
    storage.write("a/b.txt", b"1")
    storage.write("a/b.txt", b"2")
    assert storage.read("a/b.txt") == b"2"
    assert storage.exists("a/b.txt")
    assert (storage / "a").names() == ["b.txt"]
    storage.remove("a/b.txt")
    assert not storage.exists("a/b.txt")


def test_files_grow_and_are_read_from_where_one_was(storage: Storage) -> None:
    storage.write("log/other", b"")  # so its folder is there
    storage.extend("log/a", b"", b"one ")
    storage.extend("log/a", b"one ", b"two, torn")
    storage.extend("log/a", b"one ", b"two ")  # after an error
    assert storage.read("log/a") == b"one two "
    assert [storage.read_from("log/a", at) for at in (0, 4, 8, 9)] == [
        b"one two ",
        b"two ",
        b"",
        b"",
    ]


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
