"""`kdsearch init` for Parquet files and a data set: its files can be launched."""

from pathlib import Path

import pytest

from tests.cases import Case
from tests.integration.commands import kdsearch, succeeded
from tests.unit.kdcore.photographs import rows_of, write_folders, write_parquet

pytestmark = pytest.mark.integration


def test_what_init_writes_can_be_launched(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "photographs", {"train": 8, "test": 2})
    write_parquet(tmp_path / "table/train-{}.parquet", rows_of(folder / "train"))
    for where in ("table/train-0.parquet", "digits"):
        with Case(where):
            file = f"{where.partition('/')[0]}.yaml"
            words = ("init", where, "--hours", "0.5", "--output", file)
            assert f"kdsearch check {file}" in succeeded(tmp_path, *words)
            checked = succeeded(tmp_path, "check", file)
            assert checked.endswith(f"{file} can be launched\n")
            assert "caution" not in checked
            refused = kdsearch(tmp_path, *words)
            assert refused.returncode == 2
            assert f"{file} is there already" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
