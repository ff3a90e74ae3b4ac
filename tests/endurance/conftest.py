"""Long endurance runs in the environment of the integration tests, the longest first."""

import pytest

from tests.integration.commands import forget_the_user

forget_the_user()

# Started last, a long file would keep one worker alone. Each of three workers is given two files at
# the beginning, so the fourth, a short one, waits for the first, the longest.
_FIRST = ("test_under_fire", "test_object_store", "test_killed_drivers", "test_given_cluster")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts these files first, in this order."""
    place = {name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
