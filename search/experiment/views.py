"""The augmentation of the students' images, where it is searched."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails

from kdcore import DataConfig
from kdcore.data.augmentation.steps import BASIC, STEPS, mixes, parse_augmentation
from kdcore.data.registry import data_set_of
from kdcore.errors import ConfigError
from search.experiment.searched import (
    CHOICES,
    Leaf,
    Option,
    Searched,
    SearchedPair,
    in_words,
    kinds_of,
    leaves,
    mistake,
    mistakes_in,
    read_leaf,
    refuse,
    value_at,
    written,
)

_KEY = "augmentation"
_SHOULD_BE = "Input should be"  # as pydantic's rules begin

Views = Any
"""An augmentation as in a file: a preset, or a list of steps, each a name or a mapping with its
parameters, of which numbers may be `Searched`."""


@dataclass(frozen=True)
class SearchedViews:
    """The augmentations that a search chooses from; the first trials have the first.

    Args:
        choices: one, if only numbers in it are searched, or several.
    """

    choices: tuple[Views, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """What trials have for the choices: presets themselves, lists of steps in words."""
        return tuple(map(in_words, self.choices))

    def at(self, chosen: Mapping[str, Option]) -> Views:
        """A trial's augmentation, as in a file.

        Args:
            chosen: by name, like `mixup.alpha`, what the trial has, and the choice by an empty
                name; where it has nothing, it is as the first trials are.
        """
        number = self.options.index(str(chosen.get("", self.options[0])))
        own = f".{number + 1}"
        known = {name.removesuffix(own): option for name, option in chosen.items()}
        return _at(self.choices[number], known)

    def fields(self) -> list[tuple[str, Leaf, tuple[str, ...]]]:
        """What a trial chooses within its choice: name, values, and the choices that have it. One
        that differs between choices has the number of its choice after its name."""
        found: dict[str, dict[int, Leaf]] = {}
        for number, views in enumerate(self.choices):
            for name, leaf in _leaves(views).items():
                found.setdefault(name, {})[number] = leaf
        fields = []
        for name, by_choice in found.items():
            if len(set(by_choice.values())) == 1:
                options = tuple(self.options[number] for number in by_choice)
                fields.append((name, next(iter(by_choice.values())), options))
            else:
                fields += [
                    (f"{name}.{number + 1}", leaf, (self.options[number],))
                    for number, leaf in by_choice.items()
                ]
        return fields

    def variants(self) -> Iterator[Views]:
        """The augmentations that show whether all are legal: in each choice, each number of a step
        at its ends beside the others' first values, and all numbers of a step at their ends."""
        for views in self.choices:
            yield _at(views, {})
            found = _leaves(views)
            for name, leaf in found.items():
                yield from (_at(views, {name: end}) for end in leaf.ends)
            for step in {name.partition(".")[0] for name in found}:
                of_step = {n: leaf for n, leaf in found.items() if n.partition(".")[0] == step}
                ends = [(leaf.ends[0], leaf.ends[-1]) for leaf in of_step.values()]
                if len(of_step) > 1:
                    for each in product(*ends):
                        yield _at(views, dict(zip(of_step, each, strict=True)))

    @property
    def mixes(self) -> bool:
        """Whether any of them mixes images, and so their labels."""
        return any(mixes(parse_augmentation(_at(views, {}))) for views in self.choices)

    def written(self) -> Any:
        """As in a file."""
        if len(self.choices) == 1:
            return written(self.choices[0])
        return {CHOICES: [written(views) for views in self.choices]}


def searched_views(data: Mapping[str, Any]) -> tuple[SearchedViews | None, list[InitErrorDetails]]:
    """What a file leaves to the search of its data's augmentation.

    Args:
        data: the keys of a data set.

    Returns:
        It, none if nothing is searched or it cannot be read; and what is wrong with it.
    """
    value = data.get(_KEY)
    place = ("data", _KEY)
    try:
        if isinstance(value, Mapping) and CHOICES in value:
            views = SearchedViews(_read_choices(value))
        else:
            views = SearchedViews((_read(value),))
            if not _leaves(views.choices[0]):
                return None, []
    except ConfigError as error:
        return None, [mistake(place, value, str(error))]
    wrong = _mistakes(data, views)
    return (None, wrong) if wrong else (views, [])


def with_augmentation(data: DataConfig, views: Views) -> DataConfig:
    """The same images with another augmentation."""
    return DataConfig.model_validate({**data.model_dump(), _KEY: views})


def _mistakes(data: Mapping[str, Any], views: SearchedViews) -> list[InitErrorDetails]:
    """What the data set does not take of the augmentations."""
    decodes: dict[bool, Views] = {}
    for each in views.variants():
        try:
            config = DataConfig.model_validate({**data, _KEY: each})
        except ValidationError as error:
            return mistakes_in(error, ("data",), data)
        if "augmentation" in data_set_of(config.name).settings:
            decodes.setdefault(config.decodes_once, each)
    if len(decodes) > 1:
        message = (
            f"{in_words(decodes[True])} decodes the images once, and {in_words(decodes[False])} "
            f"while training; the choices must do one of them, so that all trials have the same "
            f"images"
        )
        return [mistake(("data", _KEY), data, message)]
    return []


def _read_choices(value: Mapping[str, Any]) -> tuple[Views, ...]:
    """The choices of a mapping.

    Raises:
        ConfigError: the first mistake.
    """
    found = value[CHOICES]
    if list(value) != [CHOICES]:
        raise ConfigError(f"is {dict(value)!r}, but beside {CHOICES} no other key is known")
    if not isinstance(found, list | tuple) or len(found) < 2:
        raise ConfigError(
            f"{CHOICES} is {found!r}, but must be a list of two or more presets or lists of steps"
        )
    read = tuple(_read(BASIC if each is None else each) for each in found)
    words = [in_words(each) for each in read]
    twice = [each for index, each in enumerate(words) if each in words[:index]]
    if twice:
        raise ConfigError(f"{CHOICES} has {twice[0]} twice; list each choice once")
    return read


def _read(value: Any) -> Views:
    """An augmentation with what is searched in it; what is no list of steps stays as it is."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(_read_step(each) for each in value)


def _read_step(step: Any) -> Any:
    if not isinstance(step, Mapping) or len(step) != 1:
        return step
    ((name, parameters),) = step.items()
    if not isinstance(parameters, Mapping):
        return step
    read = {}
    for key, value in parameters.items():
        try:
            read[key] = _read_parameter(value, _is_whole(name, key))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (key, *first["loc"])))
            said = f"is {first['input']!r}, but must be{first['msg'].removeprefix(_SHOULD_BE)}"
            if first["type"] == "value_error":
                said = str(first["ctx"]["error"])
            raise ConfigError(f"step {name}: {place}: {said}") from None
    return {name: read}


def _is_whole(step: Any, parameter: Any) -> bool:
    """Whether a parameter is a whole number; one that is unknown is told of later."""
    field = STEPS[step].model_fields.get(parameter) if step in STEPS else None
    kinds = set() if field is None else kinds_of(field.annotation)
    return int in kinds and float not in kinds


def _read_parameter(value: Any, whole: bool) -> Any:
    """A parameter, of which a number or its choices may be searched; whether the numbers are legal
    is told by the step."""
    kind: TypeAdapter[Any] = TypeAdapter(int if whole else float)

    def legal(each: Any) -> Any:
        if isinstance(each, list | tuple):
            return tuple(map(kind.validate_python, each))
        return each if each is None else kind.validate_python(each)

    if isinstance(value, Mapping):
        return read_leaf(value, legal, number=True, integer=whole)
    if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        if len(value) != 2:
            refuse([mistake((), value, f"is {in_words(value)}, but must be a pair")])
        first, second = (_read_parameter(each, whole) for each in value)
        return SearchedPair((first, second))
    return value


def _numbered(views: Views) -> Iterator[tuple[str, Any]]:
    """The steps of an augmentation, if it has any, with their names; a step that is listed again
    has its number after its name."""
    seen: Counter[str] = Counter()
    for step in views if isinstance(views, tuple) else ():
        name = str(next(iter(step))) if isinstance(step, Mapping) and step else str(step)
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}_{seen[name]}", step


def _searched(name: str, step: Any) -> dict[str, Searched]:
    """What is searched of a step, by names like `mixup.alpha`."""
    parameters = next(iter(step.values()), None) if isinstance(step, Mapping) else None
    found = parameters.items() if isinstance(parameters, Mapping) else ()
    return {f"{name}.{key}": value for key, value in found if isinstance(value, Searched)}


def _leaves(views: Views) -> dict[str, Leaf]:
    """What a trial chooses in an augmentation, by name."""
    return {
        f"{name}{place}": leaf
        for unique, step in _numbered(views)
        for name, value in _searched(unique, step).items()
        for place, leaf in leaves(value).items()
    }


def _at(views: Views, chosen: Mapping[str, Option]) -> Views:
    """An augmentation with a trial's numbers."""
    if not isinstance(views, tuple):
        return views
    steps = []
    for unique, step in _numbered(views):
        if _searched(unique, step):
            ((name, parameters),) = step.items()
            numbers = {
                key: value_at(value, chosen, f"{unique}.{key}")
                for key, value in parameters.items()
                if isinstance(value, Searched)
            }
            steps.append({name: parameters | numbers})
        else:
            steps.append(step)
    return steps
