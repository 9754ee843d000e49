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
