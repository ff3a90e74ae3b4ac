"""What becomes of Ray's events in the record."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from kdcore.training.report import EpochReport
from search.experiment.space.point import IS_CONTROL, NUMBER
from search.record.decisions import Proposal, Verdict
from search.record.live_record import LiveRecord
from search.session.recorder import Recorder
from search.session.trial import as_result
from tests.cases import Case
from tests.synthetic import finished_search


def report_of(
    epoch: int, epochs: int, seconds_by_part: dict[str, float], accuracy: float = 0.5
) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        epochs=epochs,
        train_loss=1.0,
        train_terms={},
        train_accuracy=0.5,
        heldout_accuracy=accuracy,
        heldout_loss=1.0,
        best_heldout_accuracy=0.5,
        best_epoch=1,
        learning_rate=0.1,
        epoch_seconds=1.0,
        seconds_by_part=seconds_by_part,
    )


def test_a_trial_with_epochs_on_top_has_finished_after_all_of_them() -> None:
    training = {"epochs": 4, "preparation_on_top": True}
    content = {"objective": [["none", "fsp", "kd"]], "training": training}
    search = LiveRecord(finished_search((), content))
    recorder = Recorder(
        search, Mock(pause=0.0), Mock(), Mock(ids={}), Mock(), Mock(), SimpleNamespace(made=False)
    )
    fsp = {"objective.1": "fsp", "fsp.preparation_share": 0.5}
    for number, (point, epochs, ended, state) in enumerate(
        (
            (fsp, 6, 6, "finished"),
            (fsp, 6, 4, "stopped"),
            ({"objective.1": "kd"}, 4, 4, "finished"),
            ({"objective.1": "none", IS_CONTROL: True}, 4, 4, "finished"),
        )
    ):
        with Case(number):
            trial: Any = SimpleNamespace(config={**point, NUMBER: number})
            recorder.on_trial_start(0, [], trial)
            opened = search.trials[number]
            assert (opened.epochs, opened.epochs_on_top) == (epochs, epochs - 4)
            for epoch in range(1, ended + 1):
                report = report_of(epoch, epochs, {"student": 0.75, "decoding": 0.25})
                recorder.on_trial_result(0, [], trial, as_result(asdict(report), saved=0))
            recorder.on_trial_complete(0, [], trial)
            assert search.trials[number].epochs_done == ended
            parts = {"student": 0.75 * ended, "decoding": 0.25 * ended}
            assert search.trials[number].seconds_by_part == parts
            assert search.trials[number].state == state


def test_a_report_of_an_earlier_version_lacks_what_came_later() -> None:
    now = report_of(1, 2, {})
    before = asdict(now)
    del before["seconds_by_part"]
    assert as_result(before, saved=1)["report"] == now


def test_where_a_trial_came_from_and_what_was_decided_is_recorded_once() -> None:
    search = LiveRecord(finished_search((), {"training": {"epochs": 9}}))
    proposals = {3: Proposal(by="tpe", results=12, needed=5)}
    verdicts: dict[int, Verdict] = {}
    fakes: Any = (Mock(pause=0.0), Mock(), Mock(ids={}), Mock(), Mock(), SimpleNamespace())
    recorder = Recorder(search, *fakes, proposals=proposals, verdicts=verdicts)
    trial: Any = SimpleNamespace(config={"objective.1": "kd", NUMBER: 3})

    def at(epoch: int, verdict: Verdict | None) -> None:
        if verdict is not None:
            verdicts[3] = verdict
        result = as_result(asdict(report_of(epoch, 9, {})), saved=0)
        recorder.on_trial_result(0, [], trial, result)
        assert verdicts == {}

    recorder.on_trial_start(0, [], trial)
    assert search.trials[3].proposal == proposals[3]
    first, now = (Verdict(epoch=1, stops=False, rung=1, place=1, of=n, places=2) for n in (1, 4))
    last = Verdict(epoch=2, stops=True, rung=1, place=5, of=6, places=4)
    at(1, first)
    at(2, None)
    # It was cut off, and tells its epochs again, when more is known.
    at(1, now)
    assert search.trials[3].verdicts == (first,)
    at(2, last)
    assert search.trials[3].verdicts == (first, last)
    known = search.record
    assert type(known).model_validate_json(known.model_dump_json()) == known
