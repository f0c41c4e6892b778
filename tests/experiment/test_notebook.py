"""A function that was defined in a notebook's cell runs as a task."""

import os
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

CELLS = [
    "import math\nimport nemorun as run\nfrom helper import ADD\nFACTOR = {'x': 2}",
    "def inner(n):\n    return n * FACTOR['x']",
    "def work(n: int = 1):\n    print('working on', n)\n    return math.floor(inner(n) + ADD)",
    "result = run.run(run.Partial(work, n=4), executor=run.LocalExecutor())",
    "print('value', result.value)",
    "FACTOR['x'] = 100\nprint('again', run.Experiment.from_id(result.id).wait().value)",
    "from nemorun.experiment import rerun\nprint('rerun', rerun(result.id, ['n=5']).run().value)",
    "try:\n    run.run(run.Partial(work, n='x'))\nexcept run.NemorunError as e:\n    print('refused', e)",
]


def test_a_cells_function_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper.py").write_text("ADD = 0.5\n")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = ["".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells]
    assert "working on 4" in outputs[3] and "succeeded" in outputs[3]
    assert "value 8" in outputs[4]
    assert "again 8" in outputs[5]
    assert "rerun 10" in outputs[6]
    assert "refused" in outputs[7] and "n" in outputs[7]
