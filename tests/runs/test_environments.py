"""What a shift of the context costs, read off the figure."""

from __future__ import annotations

import numpy as np

from jaxequi.data.sources import scenes
from jaxequi.runs import environments


def test_a_line_a_run_by_the_distance_of_the_floor():
    own = scenes.hues(0)[0]
    latent = np.zeros((4, 1, 7))
    latent[:, 0, scenes.HUES[0]] = (own + np.array([0.01, -0.02, 0.49, 0.2])) % 1
    right, wrong = np.eye(12)[0], np.eye(12)[5]
    logits = np.stack([right, wrong, right, wrong])[:, None]
    seen = {"logits": logits, "latent": latent, "label": np.zeros(4, int)}
    [axis] = environments.by_shift({"this run": seen, "scratch": seen}).axes
    assert [line.get_label() for line in axis.lines] == ["this run", "scratch"]
    x, y = axis.lines[0].get_data()
    np.testing.assert_allclose(x, (np.arange(6) + 0.5) / 12)
    np.testing.assert_allclose(y, [0.5, np.nan, 0, np.nan, np.nan, 1])
