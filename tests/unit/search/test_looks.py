"""Looks at the test split: each is counted, for all searches on the same images."""

from pathlib import Path

import pytest

from search.errors import SearchError
from search.record.looks import looks_at, looks_in_words, record_look
from search.record.record import SearchRecord
from search.record.storage import Storage
from tests.synthetic import finished_search


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def on(name: str = "task-1", **data: object) -> SearchRecord:
    """A search on the digits."""
    return finished_search((), {"data": {"name": "digits", **data}}, name=name)


def test_looks_of_all_searches_on_the_same_images_are_counted(storage: Storage) -> None:
    data = on().experiment.data
    assert looks_at(storage, data) == ()
    looks = (
        record_look(storage, on(), by="confirm", students=("a", "b")),
        record_look(storage, on("task-2", views=3), by="best", students=("a", "c")),
        record_look(storage, on("task-2"), by="best", students=("a", "c")),
    )
    record_look(storage, on("other", split_seed=1), by="best", students=("d",))
    assert looks_at(storage, data) == looks
    assert [(look.by, look.search) for look in looks] == [
        ("confirm", "task-1"),
        ("best", "task-2"),
        ("best", "task-2"),
    ]


def test_a_look_that_is_taken_again_counts_again_but_its_students_do_not(
    storage: Storage,
) -> None:
    def said() -> str:
        return looks_in_words(looks_at(storage, on().experiment.data))

    assert said() == "test split not looked at yet for this task"
    record_look(storage, on(), by="best", students=("a",))
    assert said() == "test split looked at once for this task, at 1 student"
    record_look(storage, on(), by="best", students=("a",))
    record_look(storage, on(), by="confirm", students=("b", "c"))
    assert said() == "test split looked at 3 times for this task, at 3 different students"


def test_a_look_of_a_later_version_is_read_and_one_that_is_written_is_not_there_yet(
    storage: Storage, tmp_path: Path
) -> None:
    look = record_look(storage, on(), by="best", students=("a",))
    (file,) = tmp_path.glob("looks/*/*.json")
    later = look.model_dump_json().replace("{", '{"why":"curious",')
    file.write_text(later)
    file.with_name(f"{file.name}.7.partial").write_text("")
    assert looks_at(storage, on().experiment.data) == (look,)


def test_a_damaged_look_is_named(storage: Storage, tmp_path: Path) -> None:
    record_look(storage, on(), by="best", students=("a",))
    (file,) = tmp_path.glob("looks/*/*.json")
    file.write_text("{")
    with pytest.raises(SearchError, match=rf"{file.name} is damaged, .* restore or remove it"):
        looks_at(storage, on().experiment.data)
