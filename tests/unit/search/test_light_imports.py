"""What shows or judges a finished search loads no library that trains or runs one."""

import subprocess
import sys

SLOW = {"torch", "ray", "mlflow", "optuna", "pandas", "matplotlib", "pyarrow.parquet"}
MODULES = (
    "search.leaderboard.comparison",
    "search.leaderboard.formats",
    "search.leaderboard.progress",
    "search.leaderboard.ranking",
    "search.leaderboard.tables",
    "search.report.explanation",
    "search.stopping.named",
    "search.stopping.replay",
    "search.stopping.rungs",
    "search.export.choice",
    "search.report.summary",
    "search.tracking.runs_table",
)
PROGRAM = f"""
import sys
from importlib import import_module
for name in {MODULES}:
    import_module(name)
    loaded = {SLOW} & sys.modules.keys()
    assert not loaded, f"{{name}} imports {{loaded}}"
"""


def test_what_shows_a_search_imports_nothing_slow() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
