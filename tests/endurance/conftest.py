"""Long endurance runs in the environment of the integration tests, the longest first."""

import pytest

from tests.integration.commands import forget_the_user

forget_the_user()

# Started last, a long file would keep one worker alone. Each of three workers is given two files at
# the beginning, so the fourth waits for the first: of the largest, one is in memory at a time.
_FIRST = (
    *("test_ray_up", "test_under_fire", "test_object_store"),
    *("test_ray_up_aws", "test_failing_trials", "test_given_cluster"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts these files first, in this order."""
    place = {name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
