"""The test split stays shut until somebody asks for it, and each look at it is written down."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from kdcore.data.split import Split
from kdcore.networks.classifier import Classifier
from kdcore.training import judging
from kdcore.training.evaluation import Evaluation
from search.cli.launching import _show_end
from search.errors import SearchError
from search.export import export
from search.record.storage import Storage
from search.session.search import Search
from tests.integration.stored_search import unpacked
from tests.records import write_record


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """A small search that has finished, in its user's folder."""
    monkeypatch.chdir(tmp_path)
    record = unpacked(tmp_path)
    changes = {"state": "finished", "trials": record.trials[:2]}
    storage = Storage("runs")
    return Search(write_record(storage, record.model_copy(update=changes)), storage)


@pytest.fixture
def looks_when_tested(found: Search, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of looks that were written down whenever a network was tested."""
    counts: list[int] = []
    measure: Callable[[Classifier, Split], Evaluation] = judging.evaluate_classes
    tested = export.open_data(found.record.experiment.data, Path("runs")).test.labels

    def watched(classifier: Classifier, split: Split) -> Evaluation:
        if len(split) == len(tested):
            counts.append(len(list(Path("runs/looks").glob("*/*.json"))))
        return measure(classifier, split)

    monkeypatch.setattr(judging, "evaluate_classes", watched)
    return counts


def test_a_launch_exports_the_best_and_says_how_to_open_the_test_split(
    found: Search, looks_when_tested: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    _show_end(found, "runs")
    assert looks_when_tested == []
    card = Path("runs/searches/stored-1/best/README.md").read_text()
    metrics = json.loads(Path("runs/searches/stored-1/best/student.json").read_text())["metrics"]
    assert metrics == {"heldout_accuracy": found.record.trials[1].heldout_accuracy}
    said = capsys.readouterr().out
    for text in (said, card):
        assert "held-out %" in text
        assert "test %" not in text
        assert "est split not looked at yet" in text
        assert "kdsearch confirm stored-1" in text
        assert "kdsearch best stored-1" in text


def test_best_opens_it_once_more_each_time_and_says_so(
    found: Search, looks_when_tested: list[int]
) -> None:
    first = found.best()
    assert first.test_accuracy is not None
    assert looks_when_tested == [1, 1, 1]  # student, teacher, control
    (look,) = first.looks
    assert (look.by, look.search) == ("best", "stored-1")
    assert look.students == tuple(trial.checkpoint for trial in found.record.trials[::-1])
    words = "Test split looked at once for this task, at 2 different students."
    assert words in (first.folder / "README.md").read_text()
    other = write_record(found.storage, found.record.model_copy(update={"name": "other"}))
    again = Search(other, found.storage).best()
    assert len(again.looks) == 2
    shut = found.best(open_test=False)
    assert (shut.looks, shut.test_accuracy) == (again.looks, None)
    words = "Test split looked at 2 times for this task, at 2 different students."
    assert words in (shut.folder / "README.md").read_text()
    assert looks_when_tested == [1, 1, 1, 2, 2, 2]


def test_an_int8_graph_that_costs_too_much_is_refused_before_it_is_opened(
    found: Search, looks_when_tested: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(source: Path, split: Split, path: Path) -> None:
        model = onnx.load(source)
        weights = {each.name: each for each in model.graph.initializer}["backbone.fc.weight"]
        weights.CopyFrom(
            onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), weights.name)
        )
        onnx.save(model, path)

    monkeypatch.setattr(export, "write_int8", spoilt)
    with pytest.raises(SearchError, match=r"int8 costs \d+\.\d\d points of held-out accuracy"):
        found.best(format="onnx", int8=True)
    assert looks_when_tested == []
    assert not Path("runs/looks").exists()
    assert not Path("runs/searches/stored-1/best").exists()
