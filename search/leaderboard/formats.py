"""TODO-DOC"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields

import pyarrow as pa
from pyarrow import parquet

from search.experiment.schema import CONTROL
from search.leaderboard.ranking import Row, leaderboard
from search.record.record import SearchRecord
from search.record.wording import percent, points, spread


def as_markdown(record: SearchRecord, rows: Sequence[Row]) -> str:
    """Rows as a table for people; accuracies in percent, gains in percentage points."""
    several = len(record.experiment.students) > 1
    names = ["rank", "trial", *(["student"] if several else []), "objective"]
    confirmed = any(each.is_confirmed for each in record.confirmed)
    names += [*(["test %"] if confirmed else []), "held-out %", "gain", "epochs", "status"]
    lines = [names, ["---"] * len(names)]
    for row in rows:
        network = "teacher" if row.trial is None else row.objective
        if row.trial is None and not several:
            network = f"teacher {row.student}"
        cells = [str(row.rank or ""), "" if row.trial is None else str(row.trial)]
        cells += [row.student] if several else []
        cells += [f"{network} (control)" if network == CONTROL else network]
        cells += [spread(row.test_accuracy, row.test_deviation)] if confirmed else []
        cells += [percent(row.heldout_accuracy), points(row.gain), row.epochs, row.status]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def as_bytes(record: SearchRecord, form: str, method: str = "", state: str = "") -> bytes:
    """The leaderboard as `json`, `csv` or `parquet`, with accuracies and gains as shares of 1, or
    as `markdown`, which is for people. Method and state leave rows out, as `leaderboard` does."""
    kept = leaderboard(record, method, state)
    if form == "markdown":
        return as_markdown(record, kept).encode()
    rows = [asdict(row) for row in kept]
    if form == "json":
        return (json.dumps(rows, indent=1) + "\n").encode()
    names = [field.name for field in fields(Row)]
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    schema = pa.schema(
        [
            ("rank", pa.int32()),
            ("trial", pa.int32()),
            ("student", pa.string()),
            ("objective", pa.string()),
            ("heldout_accuracy", pa.float64()),
            ("test_accuracy", pa.float64()),
            ("test_deviation", pa.float64()),
            ("seeds", pa.int32()),
            ("gain", pa.float64()),
            ("parameters", pa.int64()),
            ("latency_ms", pa.float64()),
            ("epochs", pa.string()),
            ("seconds", pa.float64()),
            ("status", pa.string()),
        ]
    )
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()
