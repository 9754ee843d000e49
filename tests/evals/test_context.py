"""Who tells the object and who tells the floor, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.data.sources import scenes
from jaxequi.errors import Refusal
from jaxequi.evals import context

LABEL = np.array([0, 3, 3, 6, 11])
FLOOR = np.array([0.99, 3 / 12 + 0.12, 9 / 12 + 0.01, 0.02, 2 / 12])  # classes 0, 4, 9, 0 and 2


def judged(told):
    latent = np.zeros((5, 1, 7))
    latent[:, 0, scenes.HUES[0]] = FLOOR
    val = {"logits": np.eye(12)[told][:, None], "label": LABEL, "latent": latent}
    return context.evaluate({"val": {**val, "representation": np.zeros((5, 1, 2))}})


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (LABEL, (1, 1, 0)),
        ([0, 4, 9, 0, 2], (0.5, 0, 1)),  # the floors
        ([1, 3, 9, 6, 7], (0.5, 1 / 3, 1 / 3)),
    ],
)
def test_shares(told, expected):
    assert context.reads() == ("logits", "label", "latent", "representation")
    found = judged(told)
    assert tuple(found) == ("near", "far", "misled", "carried")
    np.testing.assert_allclose(list(found.values()), (*expected, 0))


def test_what_a_feature_carries_of_a_hue():
    hue = np.random.default_rng(0).uniform(size=4000)
    noise = np.random.default_rng(1).normal(size=4000)
    waves = np.cos(2 * np.pi * hue), np.sin(4 * np.pi * (hue - 0.1))
    features = np.stack([*waves, waves[0] + np.sqrt(0.5) * noise, noise, np.ones(4000)], axis=1)
    np.testing.assert_allclose(context.carried(features, hue), [1, 1, 0.5, 0, 0], atol=0.03)


def test_other_scenes_are_refused():
    given = {
        "logits": np.zeros((2, 1, 12)),
        "label": np.zeros(2, int),
        "latent": np.zeros((2, 1, 3)),
    }
    with pytest.raises(Refusal, match="7 latents and 12 classes, not 3 and 12"):
        context.evaluate({"val": given})


def test_distances_go_around_the_circle():
    away = context.shifts(np.array([0.0, 0.99, 0.5]))
    assert away.shape == (3, 12)
    own = [scenes.hues(k)[0] for k in range(12)]
    np.testing.assert_allclose(away[1, 0], 0.01 + own[0])
    np.testing.assert_allclose(away[2], np.abs(0.5 - np.array(own)))
    assert away.max() <= 0.5
