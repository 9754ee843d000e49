"""Scores of a classifier by hand, over all views of every example."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.evals import classification


def test_by_hand():
    """Six classes: three of four views right, all but one among the first five."""
    logits = np.full((2, 2, 6), 0.0, np.float32)
    logits[0, 0, 3] = logits[0, 1, 3] = np.log(5)  # right, with probability 1/2
    logits[1, 0, 5] = np.log(15)  # right, with probability 3/4
    logits[1, 1, :5] = np.log(3)  # wrong: the class has 1/16, and five are ahead of it
    found = classification.evaluate({"val": {"logits": logits, "label": np.array([3, 5])}})
    assert found["top1"] == 0.75
    assert found["top5"] == 0.75
    entropy = np.mean(-np.log([1 / 2, 1 / 2, 3 / 4, 1 / 16]))
    assert found["cross_entropy"] == pytest.approx(entropy, rel=1e-6)
    assert set(found) == {"cross_entropy", "top1", "top5"}
    logits[1, 1, 0] = -1  # now four are
    found = classification.evaluate({"val": {"logits": logits, "label": np.array([3, 5])}})
    assert (found["top1"], found["top5"]) == (0.75, 1.0)


def test_what_it_reads():
    assert classification.SETS == ("val",)
    assert classification.reads() == ("logits", "label")
