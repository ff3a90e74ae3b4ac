"""The deliberate mistakes of `tests/mutations.py`: whether they can still be made."""

from tests.mutations import DEFECTS, ROOT


def test_every_deliberate_mistake_has_its_one_place() -> None:
    places = {each.words: (ROOT / each.file).read_text().count(each.old) for each in DEFECTS}
    assert set(places.values()) == {1}, places
