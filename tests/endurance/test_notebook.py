"""The notebook runs, with fewer epochs, in a process of its own, and shows what it says."""

import shutil
from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "quickstart.ipynb"
# As they stand in the notebook's JSON.
FEWER = {r"\"epochs\": 20": r"\"epochs\": 4", r"\"epochs\": 15": r"\"epochs\": 6"}


def test_the_notebook_runs_and_shows_tables_and_pictures(tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    text = (tmp_path / NOTEBOOK.name).read_text()
    for epochs, fewer in FEWER.items():
        assert text.count(epochs) == 1
        text = text.replace(epochs, fewer)
    notebook = nbformat.reads(text, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert kinds.count("image/png") >= 2
    assert kinds.count("text/html") >= 3
    said = "".join(output.get("text", "") for output in outputs)
    assert "trial 0 finished" in said
    assert "on the test split" in said
    assert all(output["output_type"] != "error" for output in outputs)
