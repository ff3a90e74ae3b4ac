"""The errors that a user can cause or meet; all of them are KdsearchErrors.

The command prints such an error as one message and ends with status 2. Anything else that is
raised is a defect of this package.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kdcore.errors import DataError, KdsearchError, did_you_mean

__all__ = [
    "ClusterError",
    "DataError",
    "ExperimentError",
    "KdsearchError",
    "LostSearchError",
    "Problem",
    "SearchError",
    "SearchFailedError",
    "StorageError",
    "TrackingError",
    "no_search",
]


@dataclass(frozen=True)
class Problem:
    """A mistake in an experiment.

    Args:
        key: the path of the key, like `search.trials`; empty for the file as a whole.
        message: the value, the rule, the way out.
    """

    key: str
    message: str


class ExperimentError(KdsearchError):
    """An experiment that cannot be run; holds all that is wrong with it."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line per problem: file, key path, message."""
        return [
            ": ".join(part for part in (self.source, problem.key, problem.message) if part)
            for problem in self.problems
        ]


class StorageError(KdsearchError, OSError):
    """A storage or folder cannot be read or written.

    Args:
        what: which one, and what cannot be done with it.
        cause: the library's error.
    """

    def __init__(self, what: str, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause))
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}: {self.strerror}"

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, OSError]]:
        # As it comes back from the process of a trial.
        return StorageError, (self.what, OSError(self.errno, self.strerror))


class ClusterError(KdsearchError):
    """No Ray cluster or job server answers, or it has no room for a trial."""


class SearchError(KdsearchError, ValueError):
    """A search is missing, damaged or busy, or has nothing of what was asked for."""


class SearchFailedError(KdsearchError):
    """A search that began could not continue; the message says why."""


class LostSearchError(SearchFailedError):
    """Another process has taken a search over, so this one may not write to it any more."""


class TrackingError(KdsearchError):
    """MLflow does not answer, or refuses."""


def no_search(name: str, known: Collection[str], where: str) -> SearchError:
    """That there is no search of this name.

    Args:
        name: of it.
        known: the names of those that are there.
        where: that was looked, like `in runs`.
    """
    there = f"There are {', '.join(known)}" if known else "There is none yet"
    return SearchError(f"no search {name!r} {where}{did_you_mean(name, known)} {there}")
