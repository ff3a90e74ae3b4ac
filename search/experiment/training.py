"""The students' recipe, of which nearly any key may be searched."""

import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails

from kdcore.training.recipe import NAMED, USED_BY, Recipe, named_keys
from search.experiment.searched import (
    Leaf,
    Option,
    Searched,
    SearchedChoice,
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

# Keys that have one value in all trials, and why.
_BUDGET = "the budget that trials are compared at"
_COMPUTING = "how trials compute, which is measured once"
_SAME_FOR_ALL = {
    "epochs": _BUDGET,
    "preparation_on_top": _BUDGET,
    "sync_batch_norms": "it has an effect only with several resources.workers",
    **dict.fromkeys(("acceleration", "compile", "cuda_graph"), _COMPUTING),
}

# Keys whose values are lists. A list of lists is a choice of them.
_LISTS = ("betas", "milestones")

# As `USED_BY`: keys that have no effect under other values of another key. A trial has them only
# where they have one.
_USED_BY: Mapping[str, tuple[str, tuple[Option, ...]]] = {
    **USED_BY,
    "momentum": ("optimizer", ("sgd",)),
    "frozen_stages": ("linear_probe", (False,)),
    "layer_decay": ("linear_probe", (False,)),
}
_PARENTS = tuple(dict.fromkeys(parent for parent, _ in _USED_BY.values()))

# In which trials choose: what others depend on comes first.
_ORDER = list(dict.fromkeys((NAMED, *_PARENTS, "momentum", *Recipe.model_fields)))

_ORDER_OF_FILES = (NAMED, *Recipe.model_fields)

# Where a recipe's keys are compared with each other, the end of a range that is refused first.
_STRICTEST: Mapping[str, Callable[[Iterable[Any]], Any]] = {
    "learning_rate": min,
    "minimum_learning_rate": max,
    "warmup_epochs": max,
}

_FINITE = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True)
class RecipeSpace:
    """The recipes that a search may train with.

    Args:
        fixed: the keys that have one value, if they have an effect.
        searched: the others, and `recipe` where named recipes are a choice.
    """

    fixed: Mapping[str, Any]
    searched: Mapping[str, Searched]

    def keys(self, chosen: Mapping[str, Option]) -> dict[str, Any]:
        """The keys of a trial's recipe, without those that have no effect in it.

        Args:
            chosen: by name, like `momentum` or `betas.second`, what the trial has; where it has
                nothing, it is as the first trials are.
        """
        values = self._values(chosen)
        return {
            key: value
            for key, value in values.items()
            if _is_used(key, values) or not self._depends(key)
        }

    def fields(self) -> list[tuple[str, Leaf, dict[str, tuple[Option, ...]]]]:
        """What a trial chooses: name, values, and the options of other names that it needs, which
        come before it."""
        return [
            (f"{key}{place}", leaf, self._conditions(key))
            for key in sorted(self.searched, key=_ORDER.index)
            for place, leaf in leaves(self.searched[key]).items()
        ]

    def uses(self, key: str) -> bool:
        """Whether a key has an effect in any trial."""
        parents = self.variants(*_parents_of(key))
        return any(_is_used(key, self._values(each)) for each in parents)

    def variants(self, *keys: str) -> Iterator[dict[str, Option]]:
        """What a trial may have for some keys, each with each; of a range, its ends."""
        names = {
            f"{key}{place}": leaf.ends
            for key in (NAMED, *keys)
            if key in self.searched
            for place, leaf in leaves(self.searched[key]).items()
        }
        for options in product(*names.values()):
            yield dict(zip(names, options, strict=True))

    def mistakes(self, given: Mapping[str, Any]) -> list[InitErrorDetails]:
        """What is wrong with the keys together.

        Args:
            given: what the user wrote.
        """
        for key in given:
            # A momentum is written beside any optimizer; what does not depend on a choice is told
            # of by the recipe.
            judged = key in self.searched or (key != "momentum" and self._depends(key))
            if judged and not self.uses(key):
                return [mistake((), given[key], self._unused(key))]
        strictest = {
            key: pick(leaf.ends)
            for key, pick in _STRICTEST.items()
            if isinstance(leaf := self.searched.get(key), Leaf)
        }
        for structure in self.variants(*_PARENTS, "milestones"):
            try:
                Recipe.model_validate(self.keys(structure | strictest))
            except ValidationError as error:
                return mistakes_in(error, (), given)
        return []

    def _values(self, chosen: Mapping[str, Option]) -> dict[str, Any]:
        values = dict(self.fixed)
        values |= {key: value_at(each, chosen, key) for key, each in self.searched.items()}
        if NAMED in values:
            values = named_keys(values.pop(NAMED), values.get("epochs")) | values
        return values

    def _decided_by(self, parent: str) -> str:
        """The key that says what a key is that others depend on."""
        return parent if parent in self.searched or parent in self.fixed else NAMED

    def _depends(self, key: str) -> bool:
        """Whether a choice decides if a key has an effect."""
        return any(self._decided_by(parent) in self.searched for parent in _parents_of(key))

    def _conditions(self, key: str) -> dict[str, tuple[Option, ...]]:
        found: dict[str, tuple[Option, ...]] = {}
        for parent in _parents_of(key):
            name = self._decided_by(parent)
            leaf = self.searched.get(name)
            if isinstance(leaf, SearchedChoice):
                used = [o for o in leaf.options if _is_used(key, self._values({name: o}), parent)]
                options = tuple(each for each in found.get(name, used) if each in used)
                if len(options) < len(leaf.options):
                    found[name] = options
        return found

    def _unused(self, key: str) -> str:
        parent, users = _USED_BY[key]
        found = (_parent(parent, self._values(each)) for each in self.variants(parent))
        options = dict.fromkeys(map(in_words, found))
        value = self.searched.get(key, self.fixed.get(key))
        return (
            f"{key} is {in_words(value)}, but only {parent} {' or '.join(map(in_words, users))} "
            f"uses it, and {parent} is {' or '.join(options)}; leave it out"
        )


def _parents_of(key: str) -> tuple[str, ...]:
    """The keys that decide whether it has an effect."""
    parents = (_USED_BY[key][0],) if key in _USED_BY else ()
    return (*parents, "momentum") if key == "nesterov" else parents


def _parent(key: str, values: Mapping[str, Any]) -> Any:
    """What a key is that decides whether others have an effect."""
    return values.get(key, Recipe.model_fields[key].default)


def _is_used(key: str, values: Mapping[str, Any], by: str | None = None) -> bool:
    """Whether a key has an effect beside the others; `by` looks at one of them alone."""
    for parent in _parents_of(key):
        value = _parent(parent, values)
        # Nesterov's momentum is none where there is no momentum.
        users = value != 0 if parent == "momentum" else value in _USED_BY[key][1]
        if by in (None, parent) and not users:
            return False
    return True


class Training(Recipe):
    """The students' recipe: `kdcore.Recipe`, of which nearly any key may be searched.

    In the place of a number `{low: 0.01, high: 0.1}`, on a logarithmic scale unless there is
    `log: false`; in the place of any value a list of choices, or `{choices: [...]}`. Where a value
    is a list itself, a list of such is a choice, and an entry of `betas` may be searched. The
    attributes are those of the first trials: the centre of a range, the first choice.
    """

    _space: RecipeSpace | None = PrivateAttr(None)

    @property
    def space(self) -> RecipeSpace | None:
        """What is searched; none if nothing is."""
        return self._space

    def at(self, chosen: Mapping[str, Option]) -> Recipe:
        """A trial's recipe; see `RecipeSpace.keys`."""
        if self._space is None:
            return Recipe.model_validate(self.model_dump() | dict(chosen))
        return Recipe.model_validate(self._space.keys(chosen))

    def variants(self, *keys: str) -> list[Recipe]:
        """The recipes that trials may have, as far as they differ in these keys: each value of one
        with each of another, of a range its ends."""
        if self._space is None:
            return [self]
        return [self.at(chosen) for chosen in self._space.variants(*keys)]

    def check_fresh(self, network: str) -> None:
        """See `Recipe`; refuses it where any trial may be so."""
        if self._space is None:
            super().check_fresh(network)
            return
        for recipe in self.variants("linear_probe", "frozen_stages", "layer_decay"):
            recipe.check_fresh(network)

    @model_validator(mode="wrap")
    @classmethod
    def _with_searched_keys(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, Mapping):
            return handler(value)
        space = _read(value)
        if space is None:
            return handler(value)
        made = handler(space.keys({}))
        fixed = {key: _legal(key)(each) for key, each in space.fixed.items()}
        if NAMED not in space.searched:  # else defaults would take the place of what it stands for
            first, fields = space.keys({}), cls.model_fields
            later = {k: v for k, v in fixed.items() if k not in first and v != fields[k].default}
            fixed = made.model_dump(exclude={*space.searched}) | later
        made._space = RecipeSpace(fixed, space.searched)
        return made

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = super()._without_later_defaults(handler)
        if self._space is not None:
            known = {**self._space.fixed, **self._space.searched}
            content = {key: written(known[key]) for key in _ORDER_OF_FILES if key in known}
        return content

    def __str__(self) -> str:
        if self._space is None:
            return super().__str__()
        rate = self._space.searched.get("learning_rate")
        words = self.in_words(f"{self.learning_rate:g}" if rate is None else str(rate))
        others = [key for key in self._space.searched if key != "learning_rate"]
        if others:
            words += f" (first trials; searched: {', '.join(others)})"
        return words


def _read(content: Mapping[str, Any]) -> RecipeSpace | None:
    """What a recipe in a file leaves to the search; none if nothing.

    Raises:
        ValidationError: with all mistakes, if something is searched.
    """
    names = [key for key, value in content.items() if _is_searched(key, value)]
    if not names:
        return None
    searched: dict[str, Searched] = {}
    fixed = {key: value for key, value in content.items() if key not in names}
    wrong: list[InitErrorDetails] = []
    for key in names:
        try:
            searched[key] = _read_key(key, content[key])
        except ValidationError as error:
            wrong += mistakes_in(error, (key,), content[key])
    for key, value in fixed.items():
        wrong += _wrong_alone(key, value)
    if NAMED not in fixed and "epochs" not in content:
        message = "is missing, but has no default"
        if NAMED in searched:
            message = "is missing, but named recipes are compared at one number of epochs"
        wrong.append(mistake(("epochs",), content, message))
    refuse(wrong)
    space = RecipeSpace(fixed, searched)
    if NAMED in fixed:
        try:
            named = named_keys(fixed.pop(NAMED), fixed.get("epochs"))
        except ValueError as error:
            refuse(mistakes_in(error, (), content))
        named = {key: value for key, value in named.items() if key not in content}
        space = RecipeSpace(named | fixed, searched)
        # The user did not write those that have no effect in any trial.
        named = {key: value for key, value in named.items() if space.uses(key)}
        space = RecipeSpace(named | fixed, searched)
    refuse(space.mistakes(content))
    return space


def _wrong_alone(key: str, value: Any) -> list[InitErrorDetails]:
    """What is wrong with a key that is not searched."""
    if key == NAMED:
        return []
    if key not in Recipe.model_fields:
        return [InitErrorDetails(type="extra_forbidden", loc=(key,), input=value, ctx={})]
    try:
        _legal(key)(value)
    except ValidationError as error:
        return mistakes_in(error, (key,), value)
    return []


def _is_searched(key: str, value: Any) -> bool:
    if key != NAMED and key not in Recipe.model_fields:
        return False
    if key in _LISTS and isinstance(value, list | tuple):
        return any(each is None or isinstance(each, list | tuple | Mapping) for each in value)
    return isinstance(value, list | tuple | Mapping)


def _read_key(key: str, value: Any) -> Searched:
    """A key that is searched.

    Raises:
        ValidationError: with all mistakes, each at its place.
    """
    if key in _SAME_FOR_ALL:
        message = f"is {in_words(value)}, but must be one value: {_SAME_FOR_ALL[key]}"
        refuse([mistake((), value, message)])
    if key == NAMED:
        return read_leaf(value, _named, number=False, integer=False)
    if key in _LISTS and any(isinstance(each, Mapping) for each in value):
        return _read_entries(key, value)
    kinds = kinds_of(Recipe.model_fields[key].annotation)
    return read_leaf(
        value,
        _legal(key),
        number=bool({int, float} & kinds),
        integer=int in kinds,
    )


def _read_entries(key: str, value: Sequence[Any]) -> SearchedPair:
    """A list of which an entry is searched."""
    entries = typing.get_args(Recipe.model_fields[key].annotation)
    if key != "betas" or len(value) != len(entries):
        message = f"is {in_words(value)}, but no entry of it can be searched; list several lists"
        refuse([mistake((), value, message)])
    read: list[Any] = []
    wrong: list[InitErrorDetails] = []
    for index, (entry, kind) in enumerate(zip(value, entries, strict=True)):
        legal = TypeAdapter(kind, config=_FINITE).validate_python
        try:
            searched = isinstance(entry, Mapping)
            read.append(
                read_leaf(entry, legal, number=True, integer=False) if searched else legal(entry)
            )
        except ValidationError as error:
            wrong += mistakes_in(error, (index,), entry)
    refuse(wrong)
    first, second = read
    return SearchedPair((first, second))


def _named(value: Any) -> Any:
    named_keys(value)
    return value


@cache
def _legal(key: str) -> Callable[[Any], Any]:
    """What a single value of a key comes to; raises ValidationError if it is not legal."""
    field = Recipe.model_fields[key]
    annotation: Any = field.annotation
    if field.metadata:
        annotation = Annotated[annotation, *field.metadata]
    return TypeAdapter(annotation, config=_FINITE).validate_python
