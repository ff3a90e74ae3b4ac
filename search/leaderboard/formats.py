"""The leaderboard for files and other programs: Markdown, JSON, CSV, Parquet and a DataFrame."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from kdcore.errors import did_you_mean
from kdcore.networks.cost import CostName
from search.errors import SearchError
from search.experiment.schema import CONTROL
from search.leaderboard.ranking import (
    LeaderboardRow,
    confirmed_trials,
    further_columns,
    leaderboard,
    pretrained_students,
    searches_recipe,
    searches_teacher,
    tested_cells,
    tested_heads,
)
from search.record.record import SearchRecord
from search.record.wording import markdown_table, percent, points

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("json", "csv", "parquet", "markdown")

# By column, Arrow's name of its type.
_TYPES = {
    "rank": "int32",
    "trial": "int32",
    "student": "string",
    "teacher": "string",
    "pretrained": "bool",
    "objective": "string",
    "recipe": "string",
    "heldout_accuracy": "float64",
    "heldout_balanced_accuracy": "float64",
    "heldout_top5": "float64",
    "test_accuracy": "float64",
    "test_deviation": "float64",
    "seeds": "int32",
    "gain": "float64",
    "parameters": "int64",
    "latency_ms": "float64",
    "epochs": "string",
    "seconds": "float64",
    "status": "string",
}


def as_markdown(record: SearchRecord, rows: Sequence[LeaderboardRow]) -> str:
    """Rows as a Markdown table; accuracies in percent, gains in percentage points."""
    several = len(record.experiment.students) > 1
    confirmed = any(each.is_confirmed for each in record.confirmed)
    tested = confirmed_trials(record)
    pretrained, further = bool(pretrained_students(record)), further_columns(record)
    teachers = searches_teacher(record)
    names = ["rank", "trial", *(["student"] if several else [])]
    names += ["teacher"] if teachers else []
    names += [*(["pretrained"] if pretrained else []), "objective"]
    names += ["recipe"] if searches_recipe(record) else []
    names += [*(tested_heads(record) if confirmed else []), "held-out %", *further.values()]
    names += ["gain", "epochs", "status"]
    lines = [names]
    for row in rows:
        network = "teacher" if row.trial is None else row.objective
        if row.trial is None and not (several or teachers):
            network = f"teacher {row.student}"
        cells = [str(row.rank or ""), "" if row.trial is None else str(row.trial)]
        cells += ["" if teachers and row.trial is None else row.student] if several else []
        cells += [row.teacher] if teachers else []
        cells += ["yes" if row.pretrained else ""] if pretrained else []
        cells += [f"{network} (control)" if network == CONTROL else network]
        cells += [row.recipe] if searches_recipe(record) else []
        cells += tested_cells(record, tested.get(row.trial)) if confirmed else []
        cells += [percent(row.heldout_accuracy)]
        cells += [percent(getattr(row, field)) for field in further]
        cells += [points(row.gain), row.epochs, row.status]
        lines.append(cells)
    return markdown_table(lines) + "\n"


def as_bytes(
    record: SearchRecord,
    form: str,
    method: str = "",
    state: str = "",
    front_by: CostName | None = None,
) -> bytes:
    """The leaderboard as the content of a file.

    Args:
        record: the search.
        form: `json`, `csv` or `parquet`, with accuracies and gains from 0 to 1; or `markdown`, with
            percent and percentage points.
        method, state, front_by: only these trials, see `leaderboard`.

    Raises:
        SearchError: there is no such form, or the search has no such method.
    """
    if form not in FORMATS:
        hint = did_you_mean(form, FORMATS)
        raise SearchError(f"no format {form!r}{hint} There are {', '.join(FORMATS)}")
    rows = leaderboard(record, method, state, front_by)
    if form == "markdown":
        return as_markdown(record, rows).encode()
    values = [vars(row) for row in rows]
    if form == "json":
        return (json.dumps(values, indent=1) + "\n").encode()
    if form == "parquet":
        return parquet_file(values, _TYPES)
    text = io.StringIO()
    names = [field.name for field in fields(LeaderboardRow)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue().encode()


def parquet_file(rows: Sequence[Mapping[str, object]], types: Mapping[str, str]) -> bytes:
    """Rows as the content of a Parquet file.

    Args:
        rows: a value for each column.
        types: by column, Arrow's name of its type; with [] a list of such.
    """
    import pyarrow as pa
    from pyarrow import parquet

    def arrow(kind: str) -> pa.DataType:
        of_each = pa.type_for_alias(kind.removesuffix("[]"))
        return pa.list_(of_each) if kind.endswith("[]") else of_each

    schema = pa.schema([(name, arrow(kind)) for name, kind in types.items()])
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema), sink)
    return sink.getvalue()


def leaderboard_frame(
    record: SearchRecord, method: str = "", state: str = "", front_by: CostName | None = None
) -> "pd.DataFrame":
    """The leaderboard as a pandas DataFrame.

    Args:
        record: the search.
        method, state, front_by: only these trials, see `leaderboard`.

    Returns:
        A row for each teacher, then the trials by rank. The index is the trial's number, <NA> for
        a teacher; the columns are the other fields of `LeaderboardRow`.

    Raises:
        SearchError: the search has no such method.
    """
    import pandas as pd

    # Whole numbers can be missing, which NumPy's integers cannot.
    types = {name: kind.replace("int", "Int") for name, kind in _TYPES.items()}
    rows = [vars(row) for row in leaderboard(record, method, state, front_by)]
    frame = pd.DataFrame(rows, columns=list(types)).astype(types)
    return frame.set_index("trial")
