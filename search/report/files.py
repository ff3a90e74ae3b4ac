"""The story of a search, for its page in MLflow: summary, leaderboard and pictures.

They are made in a process of their own, from a copy of the search's record, and at the lowest
priority while trials run: drawing takes seconds, and neither its time nor its errors may reach the
search.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from search.leaderboard.ranking import leaderboard
from search.record.record import SearchRecord
from search.record.wording import percent, points, spread
from search.report.summary import SUMMARY, TABLE, summary


def write_report(record: SearchRecord, folder: Path) -> None:
    """Writes summary, table and pictures; a picture that cannot be drawn is told of and left out.

    Args:
        record: the search.
        folder: for the files; each appears whole, and is touched only where it has changed.
    """
    _write(folder / SUMMARY, summary(record).encode())
    _write(folder / TABLE, _table(record))
    from search.report.plots.drawings import DRAWINGS, png

    for name, drawing in DRAWINGS.items():
        try:
            content = png(drawing, record)
        except Exception:
            print(f"no picture {name} of {record.name}:", file=sys.stderr)
            traceback.print_exc()
            continue
        if content is not None:
            _write(folder / f"{name}.png", content)


def _write(file: Path, content: bytes) -> None:
    if not file.exists() or file.read_bytes() != content:
        partial = file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(file)


def _table(record: SearchRecord) -> bytes:
    """The leaderboard in the form that MLflow's pages show as a table."""
    columns = ["rank", "trial", "student", "objective", "test %", "held-out %", "gain"]
    columns += ["parameters", "latency ms", "epochs", "seconds", "status"]
    data = [
        [
            *("" if number is None else number for number in (row.rank, row.trial)),
            *(row.student, row.objective, spread(row.test_accuracy, row.test_deviation)),
            *(percent(row.heldout_accuracy), points(row.gain)),
            *("" if number is None else number for number in (row.parameters, row.latency_ms)),
            *(row.epochs, "" if row.seconds is None else row.seconds, row.status),
        ]
        for row in leaderboard(record)
    ]
    return json.dumps({"columns": columns, "data": data}).encode()


def main(record: Path, folder: Path, niceness: int) -> None:
    """Makes a report from a record's file."""
    os.nice(niceness)
    write_report(SearchRecord.model_validate_json(record.read_text()), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
