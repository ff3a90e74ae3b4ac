"""README's Python, as it stands there, on a small search."""

import re
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest
import torch

import search

README = Path(__file__).parents[2] / "README.md"

# In place of the file that README names.
SMALL = """
name: quickstart
data: {name: digits, heldout_fraction: 0.4, train_images: 200}
teacher: {backbone: resnet8, training: {epochs: 1}}
student: resnet8
objective: [[none, kd]]
training: {epochs: 1}
search: {trials: 2, asha: null}
"""


def test_readmes_snippet_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.yaml").write_text(SMALL)
    (snippet,) = re.findall(r"```python\n(import search\n.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet.replace("more_trials=8", "more_trials=1"), names)

    found = names["found"]
    assert isinstance(found, search.Search)
    assert found.name == "quickstart-1"
    board = found.leaderboard()
    assert isinstance(board, pd.DataFrame)
    assert list(board["status"])[:1] == ["teacher"]
    assert isinstance(found.plots.learning_curves(), matplotlib.figure.Figure)
    student = names["student"]
    assert isinstance(student, torch.nn.Module)
    assert student(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape == (3, 10)

    extended = search.open_search("quickstart-1")
    assert len(extended.record.trials) == 3
    assert "quickstart-1, finished: 0 running" in repr(extended)
    assert "<table" in extended._repr_html_()
    assert search.search_names() == ["quickstart-1"]
    with pytest.raises(search.SearchError, match="did you mean 'quickstart-1'"):
        search.open_search("quickstart-2")
