"""Searches whose bucket is away, or whose disk is full, for longer than anyone tries at once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from search.record import read_record
from search.storage import Storage
from tests.integration import checks
from tests.integration.bucket import running_bucket
from tests.integration.test_full_disk import NEEDS_ROOT, outlast_a_full_disk, small_disk
from tests.integration.test_object_store import outlast_an_absence

pytestmark = pytest.mark.integration

SECONDS_AWAY = 60.0
SECONDS_FULL = 40.0


def test_a_bucket_is_away_for_a_minute(tmp_path: Path) -> None:
    with running_bucket() as bucket:
        record = outlast_an_absence(bucket, tmp_path, SECONDS_AWAY)
    checks.every_trial_is_there_once_and_ended(record)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as disk:
        yield disk


@NEEDS_ROOT
def test_a_disk_is_full_for_long(disk: Path, tmp_path: Path) -> None:
    outlast_a_full_disk(tmp_path, disk, SECONDS_FULL)
    record = read_record(Storage(str(disk)), "full")
    checks.every_trial_is_there_once_and_ended(record)
    checks.reports_are_those_of_undisturbed_trials(record, disk)
    checks.mlflow_has_every_epoch_once_and_in_order(record)
