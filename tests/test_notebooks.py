"""Every notebook runs from its first cell to its last, and says what its text says."""

from __future__ import annotations

import json
import pathlib

import numpy as np
from matplotlib.figure import Figure

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"


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


def test_equivariance_breaking(capsys):
    left, shown = run("equivariance_breaking.ipynb")
    printed = capsys.readouterr().out
    assert "c4 at 32x32: NOT equivariant from layer2_0/conv1 on" in printed
    assert "c4 at 33x33: exact" in printed
    measured = left["measured"]
    assert measured["32 pixels"].first_above() == "layer2_0/conv1"
    assert measured["33 pixels"].first_above() is None
    assert sum(isinstance(value, Figure) for value in shown) == 4
    ends = {size: losses[-1] for size, losses in left["losses"].items()}
    np.testing.assert_allclose([ends["31 pixels"], ends["33 pixels"]], np.log(2), atol=1e-4)
    assert ends["32 pixels"] < 0.01
