"""Long endurance runs in the environment of the integration tests."""

from tests.integration.commands import forget_the_user

forget_the_user()
