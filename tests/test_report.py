"""Names that come from data stand in a report as they are."""

from __future__ import annotations

import io

import numpy as np

from jaxequi.data.errors import shown
from jaxequi.runs import report


def test_class_names_are_no_formulas():
    names = ["$\\frac{", "a$b^$", shown("two\nlines"), shown("caf\udce9")]
    arrays = {"views": np.zeros((4, 1, 8, 8, 3)), "label": np.arange(4), "class_names": names}
    stream = io.BytesIO()
    figure = report.examples(arrays)
    figure.savefig(stream, format="png", dpi=30)
    assert [axis.get_title() for axis in figure.axes[:4]] == names
    assert stream.getvalue()[:4] == b"\x89PNG"


def test_what_never_changes_is_no_curve():
    rows = [
        {"step": step, "val/knn/k": 20, "val/knn/top1": 0.1 * step, "val/knn/top5": 0.2 * step}
        for step in (1, 2, 3)
    ]
    [axis] = [axis for axis in report.curves(rows).axes if axis.get_title()]
    assert axis.get_title() == "val/knn"
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert set(lines) == {"top1", "top5"}
    assert lines["top5"] == [0.2, 0.4, 0.2 * 3]
