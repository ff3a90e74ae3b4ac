"""A search's record as a snapshot and a log: what is read is what was told, at a cost that grows
with the events alone."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from search.errors import StorageError
from search.record.files import read_record, search_names
from search.record.live_record import LiveRecord
from search.record.log import RecordLog, RecordReader
from search.record.owner import owned
from search.record.record import SearchRecord, TrialRecord, place
from search.record.storage import Storage, search_storage
from tests.records import write_record
from tests.synthetic import made_up_search


def events(record: SearchRecord, seed: int) -> Iterator[TrialRecord]:
    """A search as it happens: a few trials at a time, epoch by epoch, some begun again."""
    order = random.Random(seed)
    waiting, running = list(record.trials), list[TrialRecord]()
    while waiting or running:
        if waiting and len(running) < 4:
            whole = waiting.pop(0)
            nothing = {"accuracies": (), "epochs_done": 0, "heldout_accuracy": None}
            running.append(whole)
            yield whole.model_copy(update={**nothing, "state": "running", "best_epoch": None})
            continue
        whole = order.choice(running)
        for epoch, accuracy in enumerate(whole.accuracies, start=1):
            done = whole.accuracies[:epoch]
            changes = {"accuracies": done, "epochs_done": epoch, "heldout_accuracy": max(done)}
            yield whole.model_copy(
                update={"state": "running", "train_seconds": accuracy, **changes}
            )
        if order.random() < 0.2:  # from its first epoch on, as another
            continue
        running.remove(whole)
        yield whole.model_copy(update={"reason": "NaN"} if order.random() < 0.1 else {})


@pytest.fixture
def whole() -> SearchRecord:
    return made_up_search(40, students=("resnet8", "vgg8"))


def started(whole: SearchRecord) -> LiveRecord:
    return LiveRecord(whole.model_copy(update={"trials": ()}))


def test_what_is_kept_at_each_event_is_what_the_whole_record_says(whole: SearchRecord) -> None:
    live = started(whole)
    for trial in events(whole, seed=0):
        live.put(trial)
        record = live.record
        numbers = [each.number for each in record.trials]
        assert numbers == sorted(live.trials)
        assert +live.states == Counter(each.state for each in record.trials)
        assert live.ended == sum(not each.unfinished for each in record.trials)
        assert live.best == min(record.trials, key=place)
        assert [live.gain(each) for each in record.trials] == list(map(record.gain, record.trials))
        running = {each.number for each in record.trials if each.state == "running"}
        assert live.running.keys() == running
    assert LiveRecord(live.record).record == live.record
    live.put(whole.trials[3].model_copy(update={"state": "running"}))
    live.interrupt()
    assert (live.head.state, live.trials[3].state) == ("interrupted", "interrupted")


@pytest.mark.parametrize("sizes", [(2**20, 2**18), (2**12, 2**10)], ids=["as it is", "small"])
def test_what_is_read_is_what_was_written(
    whole: SearchRecord, storage: Storage, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]
) -> None:
    monkeypatch.setattr("search.record.log._SHORTEST_LOG_BYTES", sizes[0])
    monkeypatch.setattr("search.record.log._PART_BYTES", sizes[1])
    order = random.Random(1)
    live, log = started(whole), RecordLog(storage, whole.name)
    often, seldom = RecordReader(storage, whole.name), RecordReader(storage, whole.name)
    assert often.read() is None
    for trial in events(whole, seed=1):
        live.put(trial)
        live.update(seconds=live.head.seconds + 0.1)
        if order.random() < 0.3:
            log.write(live, whole=order.random() < 0.02)
            assert often.read() == live.record
            if order.random() < 0.1:
                assert seldom.read() == RecordReader(storage, whole.name).read() == live.record
    live.update(state="finished", mlflow_run_id="a run", ended="")
    log.write(live, whole=True)
    assert often.read() == seldom.read() == live.record
    assert len((search_storage(storage, whole.name) / "record").names()) == 1  # the rest is gone


def test_a_torn_end_is_cut(whole: SearchRecord, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    live, log = started(whole), RecordLog(storage, whole.name)
    log.write(live)
    known: dict[int, SearchRecord] = {}
    file = tmp_path / f"searches/{whole.name}/record/000000.000001.000001.jsonl"
    for trial in whole.trials[:3]:
        live.put(trial)
        log.write(live)
        known[file.stat().st_size] = live.record
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        record = RecordReader(storage, whole.name).read()
        assert record is not None
        expected = sum(len(lines[n]) <= length - sum(map(len, lines[:n])) for n in (0, 2, 4))
        assert record.trials == whole.trials[:expected]
        if length in known:
            assert record == known[length]


def test_what_a_full_disk_cut_is_written_again(
    whole: SearchRecord, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, log = started(whole), RecordLog(storage, whole.name)
    reader, order = RecordReader(storage, whole.name), random.Random(2)
    log.write(live)
    extend = Storage.extend

    def full(self: Storage, path: str, before: bytes, content: bytes) -> None:
        extend(self, path, before, content[: order.randrange(len(content) + 1)])
        raise StorageError("the disk is full", OSError(28, "No space left on device"))

    for trial in events(whole, seed=2):
        live.put(trial)
        if order.random() < 0.3:
            with monkeypatch.context() as context:
                context.setattr(Storage, "extend", full)
                with pytest.raises(StorageError):
                    log.write(live)
            reader.read()  # sees some of it
        elif order.random() < 0.3:
            log.write(live)
            assert reader.read() == live.record
    log.write(live)
    assert reader.read() == RecordReader(storage, whole.name).read() == live.record


def test_a_longer_search_costs_more_in_proportion(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes written, and bytes read by somebody who watches."""
    moved: Counter[str] = Counter()
    write, extend, read, read_from = (
        getattr(Storage, name) for name in ("write", "extend", "read", "read_from")
    )

    def counted_write(self: Storage, path: str, content: bytes) -> None:
        moved["written"] += len(content)
        write(self, path, content)

    def counted_extend(self: Storage, path: str, before: bytes, content: bytes) -> None:
        moved["written"] += len(content)
        extend(self, path, before, content)

    def counted_read(self: Storage, path: str) -> bytes:
        content: bytes = read(self, path)
        moved["read"] += len(content)
        return content

    def counted_read_from(self: Storage, path: str, position: int) -> bytes:
        content: bytes = read_from(self, path, position)
        moved["read"] += len(content)
        return content

    monkeypatch.setattr(Storage, "write", counted_write)
    monkeypatch.setattr(Storage, "extend", counted_extend)
    monkeypatch.setattr(Storage, "read", counted_read)
    monkeypatch.setattr(Storage, "read_from", counted_read_from)
    monkeypatch.setattr("search.record.log._SHORTEST_LOG_BYTES", 2**14)

    def cost(trials: int) -> Counter[str]:
        moved.clear()
        record = made_up_search(trials, name=f"of-{trials}")
        live, log = started(record), RecordLog(storage, record.name)
        reader = RecordReader(storage, record.name)
        for number, trial in enumerate(record.trials):
            live.put(trial.model_copy(update={"state": "running"}))
            live.put(trial)
            log.write(live)
            if number % 4 == 0:
                reader.read()
        return moved.copy()

    short, long = cost(100), cost(1000)
    for way in ("written", "read"):
        assert long[way] < 15 * short[way], (way, short, long)


def test_nobody_reads_what_a_lost_driver_still_writes(
    whole: SearchRecord, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been frozen between its last look at the owner and the write itself."""
    monkeypatch.setattr("search.record.owner.SILENCE", timedelta())
    with owned(storage, whole.name) as frozen:
        lost, late = LiveRecord(whole), RecordLog(storage, whole.name, frozen)
        late.write(lost)
        with owned(storage, whole.name) as present:
            monkeypatch.setattr(frozen, "check", lambda: None)
            live, log = LiveRecord(whole), RecordLog(storage, whole.name, present)
            live.update(ended="by its owner")
            reader = RecordReader(storage, whole.name)
            for everything in (False, True):
                log.write(live)
                lost.update(ended="by nobody")
                late.write(lost, whole=everything)
                assert reader.read() == live.record
            log.write(live, whole=True)
            assert reader.read() == read_record(storage, whole.name) == live.record


def test_a_search_of_version_0_1_0_opens_and_goes_on(whole: SearchRecord, storage: Storage) -> None:
    search = search_storage(storage, whole.name)
    search.write("search.json", whole.model_dump_json(indent=1).encode())
    assert search_names(storage) == [whole.name]
    reader = RecordReader(storage, whole.name)
    assert reader.read() == read_record(storage, whole.name) == whole
    changed = write_record(storage, whole.model_copy(update={"ended": "later"}))
    assert not search.exists("search.json")
    assert reader.read() == changed


def test_a_folder_without_a_whole_snapshot_is_no_search(storage: Storage) -> None:
    """As a driver leaves it that is killed in its first write."""
    search_storage(storage, "begun").write("record/000001.000001.json.0f3a.partial", b"{")
    assert search_names(storage) == []
    with pytest.raises(ValueError, match="no search 'begun'"):
        read_record(storage, "begun")
