"""A proposal as a file: YAML, each key with its reason as a comment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_INDENT = "  "


@dataclass(frozen=True)
class Line:
    """A key of the proposal.

    Args:
        path: of the key.
        value: plain.
        reason: why.
    """

    path: tuple[str, ...]
    value: Any
    reason: str


def as_yaml(head: Sequence[str], lines: Sequence[Line]) -> str:
    """The file.

    Args:
        head: lines of the comment that it begins with.
        lines: its keys; those of one mapping follow each other.
    """
    rows: list[tuple[str, str]] = []
    before: tuple[str, ...] = ()
    for line in lines:
        above = line.path[:-1]
        common = 0
        while common < min(len(above), len(before)) and above[common] == before[common]:
            common += 1
        rows += [(f"{_INDENT * depth}{above[depth]}:", "") for depth in range(common, len(above))]
        key, reason = f"{_INDENT * len(above)}{line.path[-1]}:", f"# {line.reason}"
        if line.path[-1] == "ensemble":  # too long for a line
            rows += [(key, reason)]
            rows += [(f"{_INDENT * len(line.path)}- {_plain(each)}", "") for each in line.value]
        else:
            rows.append((f"{key} {_plain(line.value)}", reason))
        before = above
    width = min(44, max(len(key) for key, _ in rows))
    text = [f"# {line}".rstrip() for line in head]
    text += [f"{key:<{width}}  {reason}".rstrip() for key, reason in rows]
    return "\n".join(text) + "\n"


def _plain(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def as_tree(lines: Sequence[Line]) -> Mapping[str, Any]:
    """The keys as an experiment file would have them."""
    tree: dict[str, Any] = {}
    for line in lines:
        node = tree
        for key in line.path[:-1]:
            node = node.setdefault(key, {})
        node[line.path[-1]] = line.value
    return tree
