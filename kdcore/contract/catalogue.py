"""A mapping whose names are known at once and whose values are imported on first use."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Catalogue(Mapping[str, T]):
    """Named values that load lazily: reading the names does not import PyTorch.

    Args:
        names: in the order in which they are listed.
        load: returns the value of a name; called once for each.
    """

    def __init__(self, names: Iterable[str], load: Callable[[str], T]) -> None:
        self._names, self._load = tuple(names), load
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name not in self._names:
                raise KeyError(name)
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
