"""README's Python, as it stands there, on a small search."""

import re
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

import search

README = Path(__file__).parents[2] / "README.md"

# In place of the file that README names.
SMALL = """
name: quickstart
data:
  name: digits
  heldout_fraction: 0.4
  train_images: 200
  augmentation: [pad_crop, {mixup: {alpha: {low: 0.1, high: 1.0}}}]
teacher: {backbone: resnet8, training: {epochs: 1}}
student: resnet8
objective: [[kd]]
training: {epochs: 1, optimizer: [sgd, adamw], momentum: {low: 0.5, high: 0.98, log: false}}
search: {trials: 2, asha: null, concurrent_trials: 1}
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
    control, kd, drawn = extended.record.trials
    middle = {
        "training.optimizer": "sgd",
        "training.momentum": pytest.approx(0.74),
        "data.augmentation.mixup.alpha": pytest.approx(0.1**0.5),
    }
    assert control.point == {"control": True, "objective.1": "none", **middle}
    assert middle.items() <= kd.point.items()
    alpha = drawn.point["data.augmentation.mixup.alpha"]
    assert alpha != kd.point["data.augmentation.mixup.alpha"]
    assert f"mixup.alpha={alpha:.4g}" in str(extended.leaderboard().loc[drawn.number, "recipe"])
    client = MlflowClient(extended.record.tracking_uri)
    assert extended.record.mlflow_experiment_id is not None
    runs = client.search_runs([extended.record.mlflow_experiment_id])
    told = [run.data.params.get("data.augmentation.mixup.alpha") for run in runs]
    assert str(alpha) in told
    card = Path("runs/searches/quickstart-1/best/README.md").read_text()
    assert "\n- augmentation: [pad_crop, {mixup: {alpha: 0." in card
    # Whatever a trial sees, its teacher is that of the first ones.
    assert len(list(Path("runs/teachers").glob("*/teacher.safetensors"))) == 1
    assert "quickstart-1, finished: 0 running" in repr(extended)
    assert "<table" in extended._repr_html_()
    assert search.search_names() == ["quickstart-1"]
    with pytest.raises(search.SearchError, match="did you mean 'quickstart-1'"):
        search.open_search("quickstart-2")
