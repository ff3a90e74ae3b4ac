"""The search space, derived from the catalogue's declarations; it names no method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from kdcore.contract.layer_pairs import layer_options, resolve_layers
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Choice, LayerChoice, Span
from kdcore.data.config import Judge
from kdcore.distillation.without_labels import cannot_be_judged
from kdcore.errors import ConfigError, did_you_mean
from kdcore.methods import CATALOGUE
from search.errors import ExperimentError, Problem
from search.experiment.schema import CONTROL, Experiment
from search.experiment.searched import Option
from search.experiment.space.fields import ChoiceField, NumberField, SearchedField
from search.experiment.space.point import is_number
from search.experiment.space.published import UNLESS_NAMED, accompanied, published_settings
from search.experiment.space.shared import shared_fields
from search.experiment.space.space import Space


def derive_space(
    experiment: Experiment, pairs: Mapping[tuple[str, str], NetworkPair], source: str
) -> Space:
    """Derives the space from the candidates' declarations, narrowed as the experiment says.

    Args:
        experiment: names the candidates and narrows their fields.
        pairs: by student and teacher; the layer choices follow from them.
        source: the experiment's file, for messages.

    Raises:
        ExperimentError: `narrow` names something that is not searched, or a value that is not
            legal.
    """
    methods = list(dict.fromkeys(name for slot in experiment.objective for name in slot))
    problems = _wrong_names(experiment, methods)
    fields: dict[tuple[str, str, str], tuple[SearchedField, ...]] = {}
    for method in methods:
        of_pairs = []
        for pair in experiment.pairs:
            of_method, wrong = _narrowed_fields(method, pairs[pair], experiment)
            of_pairs.append(of_method)
            problems += [problem for problem in wrong if problem not in problems]
        for number, pair in enumerate(experiment.pairs, start=1):
            fields[*pair, method] = tuple(
                field
                if all(other.get(name) == field for other in of_pairs)
                else replace(field, name=f"{name}.{number}")
                for name, field in of_pairs[number - 1].items()
            )
    if problems:
        raise ExperimentError(source, problems)
    return Space(
        experiment.students,
        experiment.teachers,
        experiment.objective,
        fields,
        shared_fields(experiment),
        experiment.search.combinations,
        accompanied(experiment),
    )


def _wrong_names(experiment: Experiment, methods: Sequence[str]) -> list[Problem]:
    """Names in `narrow` and `combinations` that no candidate has."""
    problems: list[Problem] = []
    known = [
        f"{name}.{field}"
        for name in methods
        if name != CONTROL
        for field in CATALOGUE[name].Params.model_fields
    ]
    for key in experiment.narrow:
        if key not in known:
            hint = f"{did_you_mean(key, known)} Known are: {', '.join(known)}"
            message = f"{key!r} is not a setting of a candidate{hint}"
            problems.append(Problem(key=f"narrow.{key}", message=message))
    for number, combination in enumerate(experiment.search.combinations):
        slots = [i for name in combination for i, s in enumerate(experiment.objective) if name in s]
        if len(set(slots)) < len(combination) or len(slots) != len(combination):
            message = f"{list(combination)} must be candidates of different slots"
            problems.append(Problem(key=f"search.combinations.{number}", message=message))
    return problems


def _narrowed_fields(
    method: str, networks: NetworkPair, experiment: Experiment
) -> tuple[dict[str, SearchedField], list[Problem]]:
    """A method's searched fields by name, with the user's values; and what is wrong with these."""
    judge = experiment.data.judge
    published = published_settings(method, experiment.published, judge=judge)
    narrow = experiment.narrow
    try:
        fields = _fields(method, networks, published)
    except ConfigError as error:
        message = f"{method} cannot teach {networks_in_words(experiment, networks)}: {error}"
        return {}, [Problem(key="objective", message=message)]
    problems = []
    for name in CATALOGUE[method].Params.model_fields:
        key = f"{method}.{name}"
        if key in narrow:
            try:
                old = fields.get(key)
                fields[key] = _narrow(method, name, old, narrow[key], published[name], networks)
            except ConfigError as error:
                problems.append(Problem(key=f"narrow.{key}", message=str(error)))
    if judge is not None:
        fields = _without_labels(judge, method, fields, published)
        first = {**published, **_first_values(method, fields)}
        if reason := _cannot_be_judged(judge, method, first):
            problems.append(Problem(key="objective", message=reason))
        if (key := f"{method}.cross_entropy") in narrow and set(narrow[key]) != {0}:
            message = (
                f"is {list(narrow[key])}, but with data.judge there are no labels; leave it out"
            )
            problems.append(Problem(key=f"narrow.{key}", message=message))
    weight, labels = (
        _least(fields.get(f"{method}.{name}"), published[name])
        for name in ("weight", "cross_entropy")
    )
    if weight == labels == 0 and not problems:
        message = "is 0, as weight may be, which trains nothing; one of them must be above 0"
        problems.append(Problem(key=f"narrow.{method}.cross_entropy", message=message))
    return fields, problems


def _first_values(method: str, fields: Mapping[str, SearchedField]) -> dict[str, Option]:
    """By setting, what the first trial of a method has."""
    return {key.removeprefix(f"{method}."): field.published for key, field in fields.items()}


def _cannot_be_judged(judge: Judge, method: str, settings: Mapping[str, Option]) -> str:
    params = CATALOGUE[method].Params.model_validate(settings)
    return cannot_be_judged(judge, method, params)


def _without_labels(
    judge: Judge, method: str, fields: Mapping[str, SearchedField], published: Mapping[str, Option]
) -> dict[str, SearchedField]:
    """The fields without those options with which a method reads labels, unless none is left."""
    found = dict(fields)
    for key, field in fields.items():
        if isinstance(field, ChoiceField) and not field.layers:
            name = key.removeprefix(f"{method}.")
            options = tuple(
                each
                for each in field.options
                if not _cannot_be_judged(judge, method, {**published, name: each})
            )
            if options and options != field.options:
                first = field.published if field.published in options else options[0]
                found[key] = replace(field, options=options, published=first)
    return found


def networks_in_words(experiment: Experiment, networks: NetworkPair) -> str:
    """A student, and its teacher where there are several, for a sentence that ends with it."""
    student, teacher = networks.student.network, networks.teacher.network
    return student if len(experiment.teachers) == 1 else f"{student} with the teacher {teacher}"


def _least(field: SearchedField | None, otherwise: Option) -> Option:
    """The smallest number of a field; of one that is not searched, its value."""
    if isinstance(field, NumberField):
        return field.low
    return otherwise if field is None else min(filter(is_number, field.options))


def _fields(
    method: str, networks: NetworkPair, published: Mapping[str, Option]
) -> dict[str, SearchedField]:
    """A method's searched fields by name, and those published values that a point must name."""
    CATALOGUE[method].check_teacher(networks)
    params = CATALOGUE[method].Params
    unnamed = {**dict(params()), **UNLESS_NAMED}
    fields: dict[str, SearchedField] = {
        f"{method}.{name}": ChoiceField(f"{method}.{name}", (value,), value)
        for name, value in published.items()
        if name not in params.searched() and value != unnamed[name]
    }
    for name, mark in params.searched().items():
        value = published[name]
        key = f"{method}.{name}"
        match mark:
            case Span():
                assert isinstance(value, int | float)
                integer = params.model_fields[name].annotation is int
                fields[key] = NumberField(key, mark.low, mark.high, mark.log, integer, value)
            case Choice():
                fields[key] = ChoiceField(key, mark.options, value)
            case LayerChoice():
                options = layer_options(networks.student, networks.teacher)
                if value not in options:  # a word like `middle`: the pair that it stands for here
                    (pair,) = resolve_layers(str(value), networks.student, networks.teacher)
                    value = str(pair)
                fields[key] = ChoiceField(key, options, value, layers=True)
    return fields


def _narrow(
    method: str,
    name: str,
    field: SearchedField | None,
    values: Sequence[Option],
    published: Option,
    networks: NetworkPair,
) -> SearchedField:
    """A field with the user's values: a smaller range, fewer options, or one value that is fixed.

    A setting that is not searched by itself may be fixed, or given options.
    """
    key = f"{method}.{name}"
    params = CATALOGUE[method].Params
    legal = []
    for value in values:
        try:
            legal.append(getattr(params.model_validate({name: value}), name))
        except ValidationError as error:
            rule = error.errors()[0]["msg"]
            raise ConfigError(f"{value!r} is not legal: {rule}") from None
        if isinstance(params.searched().get(name), LayerChoice):
            resolve_layers(legal[-1], networks.student, networks.teacher)
    if isinstance(field, NumberField) and len(legal) != 1:
        if len(legal) != 2 or not legal[0] < legal[1]:
            raise ConfigError(f"is {list(values)}, but must be [low, high] with low < high")
        low, high = legal
        if field.log and low <= 0:
            raise ConfigError(f"low is {low}, but the field is searched in its logarithm: low > 0")
        middle = min(max(field.published, low), high)
        return NumberField(key, low, high, field.log, field.integer, middle)
    if not legal or len(set(legal)) < len(legal):
        raise ConfigError(f"is {list(values)}, but must be one or more different values")
    published = field.published if field else published
    layers = isinstance(params.searched().get(name), LayerChoice)
    return ChoiceField(key, tuple(legal), published if published in legal else legal[0], layers)
