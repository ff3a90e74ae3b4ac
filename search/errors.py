"""TODO-DOC"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from kdcore.errors import KdsearchError


class Problem(BaseModel):
    """A mistake in an experiment.

    Args:
        key: the path of the key, like `search.trials`; empty for the file as a whole.
        message: the value, the rule, the way out.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    message: str


class ExperimentError(Exception):
    """An experiment that cannot be run; holds all that is wrong with it."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line a problem: file, key path, message."""
        return [
            ": ".join(part for part in (self.source, problem.key, problem.message) if part)
            for problem in self.problems
        ]


class SearchFailedError(Exception):
    """A search that could not go on; the message says why and where the log is."""


class SearchError(KdsearchError, ValueError):
    """No such search or trial, a wrong option, or a search that has nothing to give yet."""


class StorageError(KdsearchError, OSError):
    """A folder or bucket cannot be reached, read or written."""


class ClusterError(KdsearchError):
    """Ray's cluster cannot be reached, or lacks what was asked for."""


class TrackingError(KdsearchError):
    """MLflow cannot be reached, or refuses a request."""
