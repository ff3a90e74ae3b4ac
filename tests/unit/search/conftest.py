"""What several tests of the search share."""

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
