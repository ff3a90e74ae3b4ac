"""A file of trials that a user asks for: a YAML list of mappings, or a Parquet table."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdcore.errors import ConfigError


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a file, each with its place in there; what is null or NaN is left out.

    Args:
        path: of a Parquet table if it ends in `.parquet`, a row for each point; else of a YAML
            file, a mapping for each.

    Raises:
        ConfigError: it cannot be read, or holds something else, or nothing.
    """
    try:
        rows = _rows(path) if path.suffix == ".parquet" else _mappings(path)
        found = [_point(f"{path.name}, {place}", row) for place, row in rows]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    if not found:
        raise ConfigError(f"{path} holds no points; leave search.points out")
    return found


def _point(place: str, row: object) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{place} is {row!r}, but must be a mapping, like {{method: kd}}")
    given = {
        str(key): value
        for key, value in row.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    }
    for key, value in given.items():
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{place}: {key} is {value!r}, but must be one value")
    return {"place": place, "values": given}


def _mappings(path: Path) -> Iterable[tuple[str, object]]:
    try:
        text = path.read_text()
        tree, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return []
    if not isinstance(content, list):
        held = type(content).__name__
        raise ConfigError(f"{path} holds {held}, but must hold a list of mappings")
    lines = [node.start_mark.line + 1 for node in tree.value]
    return [(f"line {line}", row) for line, row in zip(lines, content, strict=True)]


def _rows(path: Path) -> Iterable[tuple[str, object]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise ConfigError(f"{path} is no Parquet table: {str(error).splitlines()[0]}") from None
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]
