"""The notebooks run from top to bottom in a fresh kernel, and show what is kept in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks' tools are not installed")
pytest.importorskip("nbclient", reason="the notebooks' tools are not installed")
pytest.importorskip("matplotlib", reason="the notebooks' tools are not installed")

from notebooks.run import HERE, NOTEBOOKS, executed  # noqa: E402 - needs what is looked for above

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def shown(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Give what each code cell shows: its text as it is, and `<picture>` for each picture."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[_told(output) for output in cell.outputs] for cell in cells]


def _told(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return "<picture>" if "image/png" in output.data else str(output.data.get("text/plain"))


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*event loop.*:DeprecationWarning")  # Jupyter's way of starting a kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_kept_in_it(path: Path):
    """Run anew, without network or key, each cell prints what stands below it and draws as many pictures."""
    kept = shown(nbformat.read(path, as_version=4))
    assert shown(executed(path)) == kept


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_pictures_and_no_warnings(path: Path):
    """A notebook that is kept has been run, draws something, and writes nothing to stderr."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path: Path):
    """What a notebook links to beside it is there."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    assert [link for link in LINK.findall(text) if not (HERE / link).is_file()] == []
