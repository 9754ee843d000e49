"""Accuracy by quarter turns and over the circle, by hand numbers."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.evals.turned import accuracies, evaluate


def test_unseen_counts_the_upright_images_too():
    # example 0 is right at 0, 45 and 90 degrees, example 1 at 0 alone
    logits = np.zeros((2, 8, 3))
    logits[0, :3, 1] = 9
    logits[0, 3:, 2] = 9
    logits[1, :1, 2] = 9
    logits[1, 1:, 0] = 9
    labels = np.array([1, 2])
    assert accuracies(logits, labels).tolist() == [1, 0.5, 0.5, 0, 0, 0, 0, 0]
    scores = evaluate({"val": {"turned_logits": logits, "label": labels}})
    assert scores.pop("cross_entropy") == pytest.approx(np.log1p(2 * np.exp(-9)))
    assert scores == {"accuracy/seen": 1.0, "accuracy/unseen": 3 / 8, "accuracy/circle": 0.25}


def test_refuses_uneven_angles():
    with pytest.raises(ValueError, match="not 6"):
        evaluate({"val": {"turned_logits": np.zeros((1, 6, 2)), "label": np.zeros(1, int)}})
