"""Writes a report's files: summary, leaderboard and pictures.

`python -m search.report.files RECORD FOLDER NICENESS` is the process that `Reporter` starts.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from search.leaderboard.ranking import (
    confirmed_trials,
    further_columns,
    leaderboard,
    searches_teacher,
    tested_cells,
    tested_heads,
)
from search.record.record import SearchRecord
from search.record.wording import percent, points
from search.report.summary import SUMMARY, TABLE, summary


def write_report(record: SearchRecord, folder: Path) -> None:
    """Writes summary, leaderboard and pictures.

    A picture that cannot be drawn is left out, and its error is printed.

    Args:
        record: the search.
        folder: the report's folder; only files whose content changes are replaced.
    """
    write_whole(folder / SUMMARY, summary(record).encode())
    write_whole(folder / TABLE, _table(record))
    from search.report.plots.drawings import DRAWINGS, png

    for number, (name, drawing) in enumerate(DRAWINGS.items(), start=1):
        try:
            content = png(drawing, record)
        except Exception:
            print(f"cannot draw {name} of {record.name}:", file=sys.stderr)
            traceback.print_exc()
            continue
        file = folder / f"{number}_{name}.png"
        if content is not None:
            write_whole(file, content)
        else:
            file.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes) -> None:
    """Replaces a file whose content changes."""
    if not file.exists() or file.read_bytes() != content:
        partial = file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(file)


def _table(record: SearchRecord) -> bytes:
    """The leaderboard as JSON that MLflow's pages show as a table."""
    further, tested = further_columns(record), confirmed_trials(record)
    teachers = searches_teacher(record)
    columns = ["rank", "trial", "student", *(["teacher"] if teachers else []), "objective"]
    columns += [*tested_heads(record), "held-out %"]
    columns += [*further.values(), "gain", "parameters", "latency ms", "epochs", "seconds"]
    columns += ["status"]
    data = [
        [
            *("" if number is None else number for number in (row.rank, row.trial)),
            *(row.student, *([row.teacher] if teachers else []), row.objective),
            *tested_cells(record, tested.get(row.trial)),
            *(percent(row.heldout_accuracy), *(percent(getattr(row, name)) for name in further)),
            points(row.gain),
            *("" if number is None else number for number in (row.parameters, row.latency_ms)),
            *(row.epochs, "" if row.seconds is None else row.seconds, row.status),
        ]
        for row in leaderboard(record)
    ]
    return json.dumps({"columns": columns, "data": data}).encode()


def main(record: Path, folder: Path, niceness: int) -> None:
    """Writes a report from a record's file, at a lower priority."""
    os.nice(niceness)
    write_report(SearchRecord.model_validate_json(record.read_text()), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
