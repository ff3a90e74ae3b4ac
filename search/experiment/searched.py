"""What an experiment may write in the place of a value: a range, choices, or a pair of such."""

import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from kdcore.errors import ConfigError, did_you_mean

Option = bool | int | float | str | None
"""What a trial may have for a setting."""

CHOICES = "choices"
_LOW, _HIGH, _LOG = _RANGE = ("low", "high", "log")

# Of a pair that is a setting, what a trial's two numbers are called.
_PLACES = ("first", "second")


@dataclass(frozen=True)
class SearchedRange:
    """A number that the search chooses, both ends included.

    Args:
        low: the smallest value; > 0 on a logarithmic scale.
        high: the largest value.
        log: sample evenly in the logarithm.
        integer: only whole numbers.
    """

    low: float
    high: float
    log: bool = True
    integer: bool = False

    @property
    def first(self) -> float:
        """Where the first trials stand: the centre on the scale that is sampled."""
        middle = (self.low + self.high) / 2
        if self.log:
            middle = math.sqrt(self.low * self.high)
        return round(middle) if self.integer else middle

    @property
    def ends(self) -> tuple[float, ...]:
        """The values that show whether all are legal; of a few whole numbers, each."""
        if self.integer and self.high - self.low < _FEW:
            return tuple(range(int(self.low), int(self.high) + 1))
        return self.low, self.high

    def value(self, option: Option) -> Any:
        """What an option stands for."""
        return option

    def written(self) -> dict[str, Any]:
        """As in a file."""
        return {_LOW: self.low, _HIGH: self.high, _LOG: self.log}

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


_FEW = 256


@dataclass(frozen=True)
class SearchedChoice:
    """Values that the search chooses from; the first trials have the first.

    Args:
        values: two or more different ones.
    """

    values: tuple[Any, ...]

    @property
    def options(self) -> tuple[Option, ...]:
        """What trials have for the values: numbers, names and null themselves, lists in words."""
        return tuple(map(option_of, self.values))

    @property
    def first(self) -> Option:
        return self.options[0]

    @property
    def ends(self) -> tuple[Option, ...]:
        return self.options

    def value(self, option: Option) -> Any:
        """What an option stands for; one that is not among them is a value itself."""
        return dict(zip(self.options, self.values, strict=True)).get(option, option)

    def written(self) -> dict[str, Any]:
        """As in a file."""
        return {CHOICES: [plain(value) for value in self.values]}

    def __str__(self) -> str:
        return " or ".join(map(in_words, self.values))


Leaf = SearchedRange | SearchedChoice


@dataclass(frozen=True)
class SearchedPair:
    """A pair of numbers of which one or both are searched.

    Args:
        entries: the two, each a number or searched.
    """

    entries: tuple[Any, Any]

    def written(self) -> list[Any]:
        """As in a file."""
        return [written(each) for each in self.entries]

    def __str__(self) -> str:
        return in_words(self.entries)


Searched = Leaf | SearchedPair


def leaves(searched: Searched) -> dict[str, Leaf]:
    """What a trial chooses, by what follows the setting's name; for most, that is nothing."""
    if not isinstance(searched, SearchedPair):
        return {"": searched}
    return {
        f".{place}": entry
        for place, entry in zip(_PLACES, searched.entries, strict=True)
        if isinstance(entry, Leaf)
    }


def value_at(searched: Searched, chosen: Mapping[str, Option], name: str) -> Any:
    """A setting's value in a trial.

    Args:
        searched: what the setting may be.
        chosen: by name, what the trial has; where it has nothing, it is as the first trials are.
        name: of the setting.
    """
    found = {
        place: leaf.value(chosen.get(f"{name}{place}", leaf.first))
        for place, leaf in leaves(searched).items()
    }
    if not isinstance(searched, SearchedPair):
        return found[""]
    return tuple(
        found.get(f".{place}", entry)
        for place, entry in zip(_PLACES, searched.entries, strict=True)
    )


def written(value: Any) -> Any:
    """A value, searched or not, as in a file."""
    return value.written() if isinstance(value, Searched) else plain(value)


def plain(value: Any) -> Any:
    """A value as YAML and JSON have it."""
    if isinstance(value, Mapping):
        return {key: written(each) for key, each in value.items()}
    return [written(each) for each in value] if isinstance(value, list | tuple) else value


def option_of(value: Any) -> Option:
    """What a trial has for a value."""
    return in_words(value) if isinstance(value, list | tuple | Mapping) else value


def in_words(value: Any) -> str:
    """A value as it could stand in a file."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return short if float(short := f"{value:g}") == value else repr(value)
        case list() | tuple():
            return f"[{', '.join(map(in_words, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{key}: {in_words(each)}' for key, each in value.items())}}}"
    return str(value)


def read_leaf(value: Any, legal: Callable[[Any], Any], *, number: bool, integer: bool) -> Leaf:
    """Reads a range or choices.

    Args:
        value: a mapping, or a list of choices.
        legal: what a single value comes to; raises ValueError if it is not legal.
        number: whether a value is a number, so that there may be a range.
        integer: whether only a whole one is.

    Raises:
        ValidationError: with all mistakes, each at its place.
    """
    if isinstance(value, Mapping) and CHOICES not in value:
        return _read_range(value, legal, number=number, integer=integer)
    place: tuple[str, ...] = ()
    choices = value
    if isinstance(value, Mapping):
        place, choices = (CHOICES,), value[CHOICES]
        refuse(_unknown_keys(value, (CHOICES,)))
    if not isinstance(choices, list | tuple):
        refuse([mistake(place, choices, f"is {choices!r}, but must be a list")])
    found, wrong = [], []
    for index, each in enumerate(choices):
        try:
            found.append(legal(each))
        except ValueError as error:
            wrong += mistakes_in(error, (*place, index), each)
    if not wrong and len(found) < 2:
        message = f"is {in_words(choices)}, but choices are two or more; write one as it is"
        wrong.append(mistake(place, choices, message))
    options = list(map(option_of, found))
    twice = [each for index, each in enumerate(options) if each in options[:index]]
    if twice and not wrong:
        message = f"lists {in_words(twice[0])} twice; list each choice once"
        wrong.append(mistake(place, choices, message))
    refuse(wrong)
    return SearchedChoice(tuple(found))


def _read_range(
    value: Mapping[Any, Any], legal: Callable[[Any], Any], *, number: bool, integer: bool
) -> SearchedRange:
    refuse(_unknown_keys(value, _RANGE))
    if not number:
        message = "is a range, but the values are no numbers; list choices"
        refuse([mistake((), value, message)])
    ends, wrong = {}, []
    for end in (_LOW, _HIGH):
        if value.get(end) is None:
            wrong.append(mistake((end,), value, "is missing, but has no default"))
            continue
        try:
            ends[end] = legal(value[end])
        except ValueError as error:
            wrong += mistakes_in(error, (end,), value[end])
    log = value.get(_LOG, True)
    if not isinstance(log, bool):
        message = f"is {log!r}, but must be true or false"
        wrong.append(mistake((_LOG,), log, message))
    refuse(wrong)
    low, high = ends[_LOW], ends[_HIGH]
    if not low < high:
        message = f"low is {low}, but must be below high, which is {high}"
        refuse([mistake((), value, message)])
    if log and low <= 0:
        message = f"low is {low:g}, but a logarithmic range needs low > 0; write log: false"
        refuse([mistake((), value, message)])
    return SearchedRange(low, high, log, integer)


def _unknown_keys(value: Mapping[Any, Any], known: Sequence[str]) -> Iterator[InitErrorDetails]:
    if not value.keys() & {CHOICES, *_RANGE}:
        message = (
            f"is {dict(value)!r}, but must be a range, like {{low: 0.01, high: 0.1}}, or "
            f"{{choices: [...]}}"
        )
        yield mistake((), value, message)
        return
    for key in value:
        if key not in known:
            hint = f"{did_you_mean(str(key), known)} Known here: {', '.join(known)}"
            yield mistake((str(key),), value[key], f"unknown key {key!r}{hint}")


def kinds_of(annotation: Any) -> set[Any]:
    """The types of the values that an annotation allows."""
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation):
        case None:
            return {annotation}
        case typing.Annotated:
            return kinds_of(arguments[0])
        case types.UnionType | typing.Union:
            return {kind for argument in arguments for kind in kinds_of(argument)}
        case other:
            return {other}


def mistake(place: tuple[str | int, ...], value: object, message: str) -> InitErrorDetails:
    """A mistake in our own words."""
    return InitErrorDetails(
        type="value_error", loc=place, input=value, ctx={"error": ConfigError(message)}
    )


def mistakes_in(
    error: ValueError, place: tuple[str | int, ...], value: object
) -> list[InitErrorDetails]:
    """The mistakes that an error tells of, at their place."""
    if not isinstance(error, ValidationError):
        return [mistake(place, value, str(error))]
    return [
        InitErrorDetails(
            type=each["type"],
            loc=(*place, *each["loc"]),
            input=each["input"],
            ctx=each.get("ctx", {}),
        )
        for each in error.errors()
    ]


def refuse(mistakes: Iterable[InitErrorDetails]) -> None:
    """Refuses with all mistakes, if there are any; each counts once.

    Raises:
        ValidationError: there are some.
    """
    different = {(each["type"], each["loc"], str(each["ctx"])): each for each in mistakes}
    if different:
        raise ValidationError.from_exception_data("experiment", list(different.values()))
