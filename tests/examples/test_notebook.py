"""The notebook is run cell by cell, and is stored without outputs."""

import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot

NOTEBOOK = Path(__file__).parents[2] / "examples" / "filter_and_verify.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_every_cell_runs_and_the_result_passes_its_check(capsys):
    matplotlib.use("agg")
    seen: dict = {}
    for place, cell in enumerate(cell for cell in CELLS if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {place}", "exec"), seen)  # noqa: S102
    pyplot.close("all")
    said = capsys.readouterr().out
    auroc = next(float(line.split()[2]) for line in said.splitlines() if line.startswith("probe"))
    assert auroc > 0.95
    assert "270 rows kept, 30 dropped" in said and "269 rows kept, 31 dropped" in said
    assert [line.split()[1] for line in said.splitlines()[-5:]] == ["pass"] * 5
    assert not seen["folder"].exists()


def test_it_holds_no_outputs():
    for cell in CELLS:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
