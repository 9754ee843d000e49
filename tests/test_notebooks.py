"""Every notebook runs from its first cell to its last, and says what its text says."""

from __future__ import annotations

import importlib
import json
import pathlib
import tempfile

import numpy as np
import pytest
from matplotlib.figure import Figure

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"
make = importlib.import_module("notebooks.make")


@pytest.fixture(autouse=True)
def runs_go_here(tmp_path, monkeypatch):
    """Notebooks make their runs in a temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def run(name):
    """Run the code cells in order; return what they leave behind, and the value of each cell."""
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    left, shown = {}, []
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        lines = "".join(cell["source"]).rstrip().split("\n")
        place = f"{name}, code cell {number}"
        try:  # a last line that is an expression is what the notebook shows
            last = compile(lines[-1], place, "eval")
        except SyntaxError:
            exec(compile("\n".join(lines), place, "exec"), left)
            continue
        exec(compile("\n".join(lines[:-1]), place, "exec"), left)
        shown.append(eval(last, left))
    return left, shown


def figures(shown):
    """How many figures were shown; each has a title."""
    found = [value for value in shown if isinstance(value, Figure)]
    for figure in found:
        assert figure.get_suptitle() or any(axis.get_title() for axis in figure.axes)
    return len(found)


@pytest.mark.parametrize("script", make.scripts(), ids=lambda file: file.stem)
def test_notebooks_are_made_from_their_scripts(script):
    assert script.with_suffix(".ipynb").read_text() == make.notebook(script)


def test_every_notebook_has_a_script_and_runs_here():
    names = {file.stem for file in NOTEBOOKS.glob("*.ipynb")}
    assert names == {file.stem for file in make.scripts()}
    assert {f"test_{name}" for name in names} <= globals().keys()


def test_equivariance_breaking(capsys):
    left, shown = run("equivariance_breaking.ipynb")
    printed = capsys.readouterr().out
    assert "c4 at 32x32: NOT equivariant from layer2_0/conv1 on" in printed
    assert "c4 at 33x33: exact" in printed
    measured = left["measured"]
    assert measured["32 pixels"].first_above() == "layer2_0/conv1"
    assert measured["33 pixels"].first_above() is None
    assert figures(shown) == 4
    ends = {size: losses[-1] for size, losses in left["losses"].items()}
    np.testing.assert_allclose([ends["31 pixels"], ends["33 pixels"]], np.log(2), atol=1e-4)
    assert ends["32 pixels"] < 0.01


def test_steerable_filters():
    left, shown = run("steerable_filters.ipynb")
    assert figures(shown) == 6
    assert 1e-4 < left["gap"] < 0.03  # the arrows turn with the image, but for the interpolation
    assert left["worst"]["d4"].max() < 1e-6
    assert left["worst"]["c8"][::2].max() < 1e-6 < left["worst"]["c8"][1::2].min()
