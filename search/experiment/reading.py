"""Reading an experiment file: overrides, and all mistakes at once, in words."""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from kdcore.errors import did_you_mean
from kdcore.training.recipe import NAMED, BaseRecipe
from search.errors import ExperimentError, Problem
from search.experiment.plugins import KEY, read_plugins
from search.experiment.schema import AUTO, NAME_PATTERN, TAGS, Experiment

BASE = "base"
"""The key that names the file whose keys this one replaces or completes."""

Schema = TypeVar("Schema", bound=BaseModel)


def check_name(name: str) -> None:
    """Refuses a search's name that could leave its folder.

    Raises:
        ExperimentError: it is invalid.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        message = f"invalid search name {name!r}: use 1-100 letters, digits, '.', '_', '-'"
        raise ExperimentError("--name", [Problem(key="", message=message)])


def read_experiment(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads an experiment file.

    Args:
        path: a YAML file.
        overrides: texts like `search.trials=20`; the value is read as YAML.

    Raises:
        ExperimentError: with all mistakes of the file.
    """
    content = read_content(path, overrides)
    if "rows" in content and "objective" not in content:
        message = "are those of a published table; kdsearch reproduce runs this file"
        raise ExperimentError(str(path), [Problem(key="rows", message=message)])
    return parse_experiment(content, str(path))


def read_content(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A file's keys, with those of its base, a name and the overrides.

    Raises:
        ExperimentError: the file or a base cannot be read, or an override is not legal.
    """
    content = _with_base(path, ())
    content.setdefault("name", path.stem)
    for override in overrides:
        _apply(content, override)
    return content


def _with_base(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """A file's keys, over those of its base; the arguments are those of `keys_of`."""
    content = keys_of(path, below)
    if KEY in content:
        content[KEY] = read_plugins(content[KEY] or [], str(path), path.parent)
    if BASE not in content:
        return content
    base = content.pop(BASE)
    if not isinstance(base, str):
        message = f"is {base!r}, but must be a file, relative to this one"
        raise ExperimentError(str(path), [Problem(key=BASE, message=message)])
    chain = (*below, path)
    found = path.parent / base
    if found.resolve() in [each.resolve() for each in chain]:
        message = f"is {base!r}, which leads back here: {' -> '.join(map(str, (*chain, found)))}"
        raise ExperimentError(str(path), [Problem(key=BASE, message=message)])
    keys = _with_base(found, chain)
    keys.pop("name", None)
    return _merged(keys, content)


def keys_of(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What stands in a file itself.

    Args:
        path: a YAML file.
        below: the files whose base it is, the first one first.

    Raises:
        ExperimentError: it cannot be read, or holds no keys.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        if below:  # the mistake is where the base is named
            problem = Problem(key=BASE, message=f"{path} {_reason(error)}")
            raise ExperimentError(str(below[-1]), [problem]) from None
        raise ExperimentError(str(path), [Problem(key="", message=_reason(error))]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ExperimentError(
            str(path), [Problem(key="", message=f"not valid YAML: {text}")]
        ) from None
    if not isinstance(content, dict):
        message = f"holds {type(content).__name__}, but must hold keys like data, teacher, student"
        raise ExperimentError(str(path), [Problem(key="", message=message)])
    return content


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both; where both have one, mappings are merged, and all else is replaced."""
    merged = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping):
            merged[key] = _merged(base[key], over[key])
    return merged


# What may change in a search that has begun: its trials stay comparable.
_BUDGETS = (
    *(
        f"search.{key}"
        for key in (
            *("trials", "hours", "gpu_hours", "cpu_hours", "budget", "concurrent_trials"),
            "teacher_must_lead",
        )
    ),
    *("resources", "resources.cpus", "resources.gpus", "resources.workers"),
    *("prices.gpu_hour", "prices.cpu_hour", "prices.machine_hour"),
)
_OF_PRICES = ("search.budget", *(key for key in _BUDGETS if key.startswith("prices.")))


def with_budgets(experiment: Experiment, overrides: Iterable[str]) -> Experiment:
    """An experiment with other budgets, resources or prices.

    Raises:
        ExperimentError: an override is of something else, or not legal.
    """
    content = experiment.model_dump(mode="json")
    for override in overrides:
        key, message = override.partition("=")[0].strip(), ""
        if key not in _BUDGETS:
            known = ", ".join(_BUDGETS)
            message = f"only budgets and resources can change once a search has begun: {known}"
        elif key in _OF_PRICES and experiment.prices is None:
            message = "the search began without prices, so what it has cost is not known"
        if message:
            raise ExperimentError(f"--set {override}", [Problem(key="", message=message)])
        _apply(content, override)
    return parse_experiment(content, "--set")


def parse_experiment(content: Mapping[str, Any], source: str) -> Experiment:
    """Validates an experiment that is already a tree of plain values.

    Raises:
        ExperimentError: with all mistakes.
    """
    return parse_with_plugins(Experiment, content, source)


def parse_with_plugins(schema: type[Schema], content: Mapping[str, Any], source: str) -> Schema:
    """As `parse`, of what may name plugins: here, where a command runs, by an override."""
    plugins = read_plugins(content.get(KEY) or [], source, Path())
    return parse(schema, {**content, KEY: plugins} if plugins else content, source)


def parse(schema: type[Schema], content: Mapping[str, Any], source: str) -> Schema:
    """Validates a tree of plain values.

    Args:
        schema: what it must be.
        content: the tree.
        source: its file, for messages.

    Raises:
        ExperimentError: with all mistakes.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        errors = error.errors()
        problems = [_problem(schema, each) for each in errors if not _is_told(each, errors)]
        raise ExperimentError(source, problems) from None


def _is_told(details: Any, errors: Sequence[Any]) -> bool:
    """Whether another of pydantic's errors tells of the same mistake."""
    place = details["loc"]
    if details["type"] == "too_short":  # a list whose items are wrong is also called so
        return any(other["loc"][: len(place)] == place != other["loc"] for other in errors)
    return (
        details["type"] == "missing"
        and any(  # a key that is misspelt is also missing
            other["type"] == "extra_forbidden"
            and other["loc"][:-1] == place[:-1]
            and get_close_matches(str(other["loc"][-1]), [str(place[-1])])
            for other in errors
        )
    )


def _reason(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"


def _apply(content: dict[str, Any], override: str) -> None:
    """Sets one key of the tree, as `--set key.path=value` says."""
    source = f"--set {override}"
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        message = "must have the form key.path=value"
        raise ExperimentError(source, [Problem(key="", message=message)])
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise ExperimentError(
            source, [Problem(key="", message=f"value is not valid YAML: {text}")]
        ) from None
    if keys[0] == "narrow" and len(keys) > 1:
        keys = ["narrow", ".".join(keys[1:])]  # its own keys have a dot in them
    node = content
    for key in keys[:-1]:
        if node.get(key) is None or (key == "resources" and node[key] == AUTO):
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            message = f"{key} is {node!r}, which has no keys"
            raise ExperimentError(source, [Problem(key="", message=message)])
    node[keys[-1]] = parsed


def _problem(schema: type[BaseModel], details: Any) -> Problem:
    """One of pydantic's errors in our words."""
    place = [part for part in details["loc"] if part not in TAGS]
    key = ".".join(map(str, place))
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            known = _known_keys(schema, details["loc"][:-1])
            name = str(place[-1])
            message = (
                f"unknown key {name!r}{did_you_mean(name, known)} Known here: {', '.join(known)}"
            )
        case "missing":
            message = "is missing, but has no default"
        case "value_error":
            message = str(details["ctx"]["error"])
        case "tuple_type":
            message = f"is {_short(value)}, but must be a list, like [{value}]"
            if place[:1] == ["objective"]:
                message = (
                    f"is {_short(value)}, but must be a list of methods to choose from: "
                    f"objective: [[none, kd]] tries one of the two, [[kd], [at]] has both at once"
                )
        case _:
            rule = details["msg"].replace("Tuple should", "It should")
            message = f"is {_short(value)}, but {rule[0].lower()}{rule[1:]}"
    return Problem(key=key, message=message)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known_keys(schema: type[BaseModel], place: Sequence[object]) -> list[str]:
    """The keys of a schema at one of pydantic's places."""
    models: list[Any] = [schema]
    for part in place:
        chosen = [each for each in models if each.__name__ == part]
        if chosen or isinstance(part, int) or part in TAGS:  # the schema of an item is at hand
            models = chosen or models
            continue
        models = list(_models_in(models[0].model_fields[part].annotation))
    model = models[0]
    keys = list(model.model_fields)
    if issubclass(model, BaseRecipe):
        return [NAMED, *keys]
    return [BASE, *keys] if not place and "name" in keys else keys  # what has a name may have it


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models among the types that an annotation allows, in tuples too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)
