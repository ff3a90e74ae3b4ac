"""A search of an earlier version is resumed."""

from pathlib import Path

import search
from tests.integration.commands import succeeded
from tests.integration.stored_search import unpacked


def test_a_search_of_an_earlier_version_continues_where_it_was_cut_off(tmp_path: Path) -> None:
    record = unpacked(tmp_path)
    assert record.executions is None, "each machine decided for itself"
    printed = succeeded(tmp_path, "resume", "stored-1")
    assert "teacher resnet8: found" in printed
    resumed = search.open_search("stored-1", storage=str(tmp_path / "runs")).record
    assert [trial.state for trial in resumed.trials] == ["finished"] * 4
    assert resumed.trials[:2] == record.trials[:2]
    assert resumed.executions is not None
    continued = resumed.trials[2]
    assert continued.accuracies[:15] == record.trials[2].accuracies
    assert continued.point == record.trials[2].point
    assert continued.epochs_done == 60
