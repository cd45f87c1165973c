"""The notebooks of examples/notebooks run from top to bottom, in a kernel of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
NAMES = {path.stem for path in FOLDER.glob("*.ipynb")}
# What the output of a notebook must hold.
SHOWN = {
    "detect": ("star", "pixels", "what color is the star?", "category_id"),
    "finetune": ("->", "red -> ", "blue -> "),
    "search": ("page0.png", " of ["),
}


def test_every_notebook_is_run_here() -> None:
    assert SHOWN.keys() == NAMES


# Tornado and the kernel's client leave sockets to the collector.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs_and_prints_what_it_explains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel finds the package where these tests found it.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = [one for cell in book.cells if cell.cell_type == "code" for one in cell.outputs]
    printed = "".join(one.text for one in outputs if one.output_type == "stream")
    for words in SHOWN[name]:
        assert words in printed
    assert any("image/png" in one.get("data", {}) for one in outputs)


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
