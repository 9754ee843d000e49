"""How far the surroundings of an object lead a classifier astray: of scenes with known hues.

The source `scenes` gives the floor the hue of the object's class, as often as its `context` says. A
classifier that learned from such images may tell the floor in place of the object. Held-out images
have floors of any hue, so that what it does can be read off them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.data.sources import scenes
from jaxequi.errors import Refusal

SETS = ("val",)
NEAR = 0.125  # of the circle of hues; the classes are 1/12 apart


def reads(**options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return "logits", "label", "latent"


def evaluate(sets: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Compare predictions with the class and with the floor.

    Args:
      sets: "val": "logits" f32[n, V, 12], "label" i32[n] and "latent" f32[n, V, 7].

    Returns:
      `near`, `far`: top-1 of images whose floor is within `NEAR` of the hue of their class, and of
      the others. `misled`: of the latter, where the floor is another class's, the share of images
      that are taken for that class; without any bias it is 1/12 about.

    Raises:
      ValueError: other latents or classes than those of `scenes`.
    """
    val = sets["val"]
    logits, latent = np.asarray(val["logits"]), np.asarray(val["latent"])
    classes = len(scenes.Scenes.class_names)
    if latent.shape[-1] != len(scenes.LATENT_NAMES) or logits.shape[-1] != classes:
        raise Refusal(
            f"evals.context reads floors of the source scenes, {len(scenes.LATENT_NAMES)} latents "
            f"and {classes} classes, not {latent.shape[-1]} and {logits.shape[-1]}; leave it out"
        )
    views = logits.shape[1]
    label = np.repeat(np.asarray(val["label"]), views)
    told = logits.reshape(len(label), classes).argmax(axis=-1)
    floor = latent.reshape(len(label), -1)[:, scenes.HUES[0]]
    own = np.array([scenes.hues(k)[0] for k in range(classes)])
    away = np.abs((floor[:, None] - own + 0.5) % 1 - 0.5)  # f[n V, 12], at most a half
    far = away[np.arange(len(label)), label] > NEAR
    by_floor = away.argmin(axis=-1)
    return {
        "near": _share(told == label, ~far),
        "far": _share(told == label, far),
        "misled": _share(told == by_floor, far & (by_floor != label)),
    }


def _share(right: np.ndarray, among: np.ndarray) -> float:
    return float(right[among].mean()) if among.any() else 0.0
