"""500 trials, of several searches at once, into PostgreSQL through one MLflow server with
passwords."""

from pathlib import Path

import pytest

from tests.benchmarks.tracking import measure
from tests.integration.test_tracking_server import NEEDS_POSTGRESQL
from tests.integration.tracking_server import running_server

pytestmark = [
    pytest.mark.integration,
    NEEDS_POSTGRESQL,
]


def test_searches_that_log_at_once_lose_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        row = measure(server.url, server.home, writers=4, trials=125, epochs=5)
    assert row["missing_epochs"] == 0
