"""Every notebook runs from its first cell to its last, and says what its text says."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
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
        lines = [line for line in lines if line != "%matplotlib inline"]  # of Jupyter
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


@pytest.mark.parametrize("script", make.scripts(), ids=lambda file: file.stem)
def test_links_lead_somewhere_and_a_page_names_the_notebook(script):
    for link in re.findall(r"\]\(([^)\s#]+)", script.read_text()):
        assert (NOTEBOOKS / link).exists(), link
    page = (NOTEBOOKS.parent / "docs/notebooks.md").read_text()
    assert f"](../notebooks/{script.stem}.ipynb)" in page


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


def test_sie():
    left, shown = run("sie.ipynb")
    assert figures(shown) == 5
    assert left["found"]["val/retrieval/mrr"] > 1.5 * left["guess"]["mrr"]
    last = left["rows"][-1]
    for part in ("equi", "inv"):
        assert last[f"online/top1/representation-{part}"] > 2 / 12
    assert last["online/r2/representation-equi"] > 0.28  # a constant guess has 0.229


def test_method_from_scratch(capsys):
    left, shown = run("method_from_scratch.ipynb")
    assert figures(shown) == 3
    assert "pixels 0.983" in capsys.readouterr().out
    assert left["judged"][-1][1] > 0.8
    c = np.abs(left["c"])
    others = c[~np.eye(len(c), dtype=bool)]
    assert np.diagonal(c).mean() > 2 * others.mean()
    # by hand: two dimensions, equal in both views and independent of each other
    z = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(left["correlations"](z, z), np.eye(2), atol=1e-4)


def test_torch_checkpoint(capsys):
    left, shown = run("torch_checkpoint.ipynb")
    printed = capsys.readouterr().out
    assert figures(shown) == 1
    assert left["form"] == "torchvision"
    assert (
        "equal to the file: True; loads in torchvision.models.resnet18(num_classes=10)" in printed
    )
    assert "+ layer3.0.convolution.weight (256, 128, 3, 3)" in printed
    assert left["judged"]["val/knn/top1"] > 0.9
    assert left["judged"]["val/heads/top1/classification-all-linear"] > 0.9


def test_eqinv():
    left, shown = run("eqinv.ipynb")
    assert figures(shown) == 5
    assert list(left["folders"]) == ["stage1", "finetune", "eqinv"]
    assert left["near"][0] > 0.8 > 0.4 > left["near"][-1]  # the environments go by the floor
    assert [line[0] for line in left["cells"]] == ["run", "finetune", "eqinv"]


def test_plan_a_pod(capsys):
    left, shown = run("plan_a_pod.ipynb")
    assert figures(shown) == 1
    plan = left["plans"]["v5e:2x4"]
    np.testing.assert_allclose(plan["cost"], 1.2 * 8 * plan["hours"])
    np.testing.assert_allclose(plan["hours"], plan["steps"] * plan["step_seconds"] / 3600)
    assert plan["bound"] == "traffic"
    np.testing.assert_allclose(left["corner"], 197e12 / 819e9)
    places = left["places"]
    assert places["SIE, the three steps of a smoke test"] < places["SIE, ResNet-18"]
    assert max(places.values()) == places["MAE, ViT-B"] < left["corner"]
    assert capsys.readouterr().out.count("v5e:2x4") == 3


def test_compare_runs(capsys):
    left, shown = run("compare_runs.ipynb")
    assert figures(shown) == 2
    assert left["gap"] < 1e-5  # the checkpoint encodes as the run did
    head, *body = left["cells"]
    by_method = {line[0]: dict(zip(head, line)) for line in body}
    assert set(by_method) == {"simsiam", "supervised"}
    assert by_method["supervised"]["kNN"].endswith("(2)")
    last = left["rows"]["simsiam"][-1]
    assert by_method["simsiam"]["kNN"] == f"{last['val/knn/top1']:.3f}"
    assert "report.html, with its figures in it" in capsys.readouterr().out
