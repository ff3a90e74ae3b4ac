"""A mapping whose names are known at once and whose values are imported on first use."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from kdcore.contract import plugged
from kdcore.contract.plugin import Kind

T = TypeVar("T")


class Catalogue(Mapping[str, T]):
    """Named values that load lazily: reading the names does not import PyTorch.

    After its own come those of plugins whose code may be run.

    Args:
        names: in the order in which they are listed.
        load: returns the value of a name; called once for each.
        kind: what it holds.
        own: makes the value of what a plugin has under this name.
    """

    def __init__(
        self,
        names: Iterable[str],
        load: Callable[[str], T],
        kind: Kind,
        own: Callable[[str, Any], T] = lambda name, value: value,
    ) -> None:
        self._names, self._load = tuple(names), load
        self._kind, self._own = kind, own
        self._loaded: dict[str, T] = {}
        plugged.reserve(kind, self._names)

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name not in self._names:
                return self._own(name, plugged.loaded(self._kind, name))
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names or plugged.is_at_hand(self._kind, str(name))

    def __iter__(self) -> Iterator[str]:
        return iter((*self._names, *plugged.names_of(self._kind)))

    def __len__(self) -> int:
        return len(list(iter(self)))
