"""Loops in tests: which of its cases failed."""

from types import TracebackType


class Case:
    """Adds to whatever fails within in which case of a loop it did."""

    def __init__(self, *what: object) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if failure is not None:
            failure.add_note(f"in the case {', '.join(map(str, self.what))}")
