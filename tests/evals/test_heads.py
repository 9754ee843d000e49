"""Scores of heads on a frozen network by hand numbers."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.evals import heads
from jaxequi.groups import quaternions
from jaxequi.methods import linear

TASKS = linear.tasks(("classification", "color", "rotation"), 3)


def test_by_hand():
    logits = np.array([[[5.0, 1, 0], [0, 1, 5]], [[5, 4, 0], [0, 9, 1]]])
    latent = np.zeros((2, 2, 7))
    latent[:, 1, 3], latent[:, 1, 6] = [0.2, 0.4], [0.0, 0.4]
    val = {
        "heads": {
            "classification-all-linear": logits,
            "color-all-deep": np.array([[[0.2, 0.0]], [[0.4, 0.2]]]),
        },
        "label": np.array([0, 1]),
        "latent": latent,
    }
    scores = heads.evaluate({"val": val}, TASKS)
    assert scores["top1/classification-all-linear"] == 0.5
    assert scores["top5/classification-all-linear"] == 1.0
    assert scores["mse/color-all-deep"] == pytest.approx(0.01)
    # targets .2 0 .4 .4, mean .25: squares about it .11, residual .04
    assert scores["r2/color-all-deep"] == pytest.approx(1 - 0.04 / 0.11)
    assert scores["r2_floor_hue/color-all-deep"] == pytest.approx(1)
    assert scores["r2_light_hue/color-all-deep"] == pytest.approx(1 - 0.04 / 0.08)
    assert scores["r2_columns/color-all-deep"] == pytest.approx(0.75)
    # column means .3 and .2 instead of .25: residual .02 + .08
    assert scores["r2_floor/color"] == pytest.approx(1 - 0.1 / 0.11)


def test_pairs_of_views_are_scored_each_and_an_odd_one_is_left_out():
    """Of five views 1 with 2, and 3 with 4; a head that is right scores 1 whatever the fifth."""
    latent = np.random.default_rng(0).uniform(0, 1, (3, 5, 7))
    right = latent[:, [1, 3]][..., [3, 6]] - latent[:, [0, 2]][..., [3, 6]]
    val = {"heads": {"color-all-linear": right}, "label": np.zeros(3, int), "latent": latent}
    scores = heads.evaluate({"val": val}, TASKS)
    assert scores["mse/color-all-linear"] == pytest.approx(0, abs=1e-15)
    assert scores["r2/color-all-linear"] == pytest.approx(1)
    val["heads"] = {"color-all-linear": right[:, ::-1]}  # the pairs of each example exchanged
    assert heads.evaluate({"val": val}, TASKS)["r2/color-all-linear"] < 0.9


def test_numbers_of_one_view_are_scored_in_each():
    tasks = linear.tasks(("orientation",), 3)
    latent = np.random.default_rng(0).uniform(-1, 1, (3, 5, 7))
    right = quaternions.from_euler_xyz(latent[..., :3])
    val = {"heads": {"orientation-all-deep": right}, "label": np.zeros(3, int), "latent": latent}
    assert heads.evaluate({"val": val}, tasks)["mse/orientation-all-deep"] == 0
    val["heads"] = {"orientation-all-deep": right[:, ::-1]}
    assert heads.evaluate({"val": val}, tasks)["mse/orientation-all-deep"] > 0.01


def test_what_it_reads():
    assert heads.SETS == ("val",)
    assert heads.reads(tasks=TASKS) == ("heads", "label", "latent")
    assert heads.reads(tasks=linear.tasks(("classification",), 3)) == ("heads", "label")
