"""What all benchmarks share: nothing of a run that is cut off is lost."""

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from search.experiment.reading import parse_experiment
from search.session.trial import run_trial
from tests.benchmarks import report
from tests.benchmarks.search import reference_trial
from tests.benchmarks.searchers import STOCK, Found, compared, searcher_of
from tests.benchmarks.simulation import Entry, Searcher, Table, regrets


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> report.Benchmark:
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    return report.Benchmark("example", torch.device("cpu"), 1, batch=64)


def test_each_row_is_shown_and_kept_at_once(
    benchmark: report.Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with benchmark:
        benchmark.doing("the first")
        benchmark.add({"side": "ours", "ratio": 2 / 3, "every": [1, 2]})
        assert capsys.readouterr().out.endswith("side ours, ratio 0.6667\n")
        kept = json.loads((tmp_path / "example.json").read_text())
        assert kept["rows"] == [{"side": "ours", "ratio": 2 / 3, "every": [1, 2]}]
        assert (kept["batch"], kept["finished"]) == (64, False)
    assert json.loads((tmp_path / "example.json").read_text())["finished"]
    assert [path.name for path in tmp_path.iterdir()] == ["example.json"]


def test_an_interrupted_run_leaves_its_rows(
    benchmark: report.Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        with benchmark:
            benchmark.add({"ratio": 1.0}, {"ratio": 2.0}, shown="both")
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130
    assert "interrupted; 2 rows" in capsys.readouterr().err
    kept = json.loads((tmp_path / "example.json").read_text())
    assert [row["ratio"] for row in kept["rows"]] == [1.0, 2.0]
    assert not kept["finished"]


def test_the_processor_is_named_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "avx2": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert report.processor().endswith("(amx_bf16 avx2 ONEDNN_MAX_CPU_ISA=AVX2)")


def test_a_process_of_its_own_passes_its_progress_on(capsys: pytest.CaptureFixture[str]) -> None:
    code = "print('half way'); print('{\"seconds\": 1.5}')"
    assert report.figures_of([sys.executable, "-c", code]) == {"seconds": 1.5}
    assert capsys.readouterr().err == "half way\n"


def test_the_fields_trial_takes_what_a_search_gives_to_ours() -> None:
    given = dict.fromkeys(inspect.signature(run_trial).parameters)
    inspect.signature(reference_trial).bind(**given)


def test_a_search_is_simulated_on_the_nearest_trials_of_a_table() -> None:
    experiment = parse_experiment(
        {
            "name": "table",
            "data": {"name": "digits"},
            "teacher": {"backbone": "resnet14", "training": {"epochs": 1}},
            "student": "resnet8",
            "objective": [["none", "kd", "at"]],
            "training": {"epochs": 3},
            "search": {"trials": 4},
        },
        "",
    )
    control = {"control": True, "objective.1": "none"}
    entries = [
        Entry(control, (0.1, 0.2, 0.3), 1.0, 0),
        *(
            Entry({"objective.1": "at", **at}, (0.1, 0.2, accuracy), 1.0, 0)
            for accuracy, at in (
                (0.4, {"at.weight": 1.0, "at.layers": "all"}),
                (0.5, {"at.weight": 100.0, "at.layers": "all"}),
                (0.6, {"at.weight": 1.0, "at.layers": "stage3:stage3"}),
            )
        ),
        Entry({"objective.1": "kd", "kd.weight": 1.0}, (0.8, 0.9, 0.7), 2.0, 0),
    ]
    table = Table(experiment, entries)
    assert (table.best, table.trial_seconds) == (0.9, (4 * 3 + 6) / 5)
    for weight, layers, accuracy in ((9, "all", 0.4), (11, "all", 0.5), (11, "stage3:stage3", 0.6)):
        point = {"objective.1": "at", "at.weight": weight, "at.layers": layers}
        assert table.at(point).accuracies[-1] == accuracy  # in the logarithm 10 is in the middle

    class InTurn(Searcher):
        """Runs the entries in their order, and stops `at` after an epoch."""

        ended: ClassVar[list[tuple[int, int]]] = []

        def start(self, trial: int) -> dict[str, Any]:
            return entries[min(trial, 4)].point

        def goes_on(self, trial: int, epoch: int, best: float, accuracy: float) -> bool:
            return trial not in (1, 2, 3)

        def end(self, trial: int, epochs: int, best: float) -> None:
            self.ended.append((trial, epochs))

    # 3 s of the control, 1 s of each `at`, 2 s an epoch of kd, whose first ends after 36 / 5 s.
    regret, trials = regrets(table, InTurn(), budget=2, slots=1)
    assert InTurn.ended == [(0, 3), (1, 1), (2, 1), (3, 1)]
    assert trials == 5
    # Nothing is known before the first second; then it is the control's curve.
    seconds = 7.2 * np.arange(1, len(regret) + 1) / len(regret)
    shown = np.where(seconds < 1, 0, np.where(seconds < 2, 0.1, np.where(seconds < 3, 0.2, 0.3)))
    np.testing.assert_allclose(regret, 100 * (0.9 - shown), atol=1e-9)
    for name in ("tpe, asha", *STOCK):
        searcher = searcher_of(name, table, budget=2, slots=2, seed=0)
        found, _ = regrets(table, searcher, budget=4, slots=2)
        assert np.all(np.diff(found) <= 0)


def test_a_share_of_the_time_is_told_with_its_interval() -> None:
    basis = np.tile(np.linspace(10, 1, 10), (4, 1))
    found = np.tile(np.array([9.0, 5, 1, 1, 1, 1, 1, 1, 1, 1]), (4, 1))
    figures = compared(found, basis)
    assert (figures["share"], figures["share_low"], figures["share_high"]) == (0.3, 0.3, 0.3)
    assert compared(basis, basis)["share"] == 1.0
    assert compared(found + 1, basis)["share"] == math.inf


def test_what_was_found_of_as_many_seeds_on_the_same_table_is_not_simulated_again(
    tmp_path: Path,
) -> None:
    table, path = tmp_path / "curves", tmp_path / "found.parquet"
    table.write_text("curves")
    regret = np.array([[2.0, 1.0], [2.0, 0.5]])
    row = {"pair": "a:b", "budget": 64, "slots": 8, "searcher": "tpe, asha", "seeds": 2}
    figures = {**row, **compared(regret, regret), "trials": 70.0, "curve": [2.0, 0.75]}
    cell = ("a:b", 64, 8, "tpe, asha")
    Found(path, table).add(figures)
    assert Found(path, table).row(cell, 2) == figures
    assert Found(path, table).row(cell, 3) is None
    assert Found(path, table).row(("a:b", 64, 2, "tpe, asha"), 2) is None
    assert Found(path, table, again=True).row(cell, 2) is None
    table.write_text("others")
    assert Found(path, table).row(cell, 2) is None
