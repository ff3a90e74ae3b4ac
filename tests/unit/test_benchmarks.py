"""What all benchmarks share: nothing of a run that is cut off is lost."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch

from search.session.trial import run_trial
from tests.benchmarks import report
from tests.benchmarks.search import reference_trial


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
