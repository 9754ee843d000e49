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
    return "logits", "label", "latent", "representation"


def evaluate(sets: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Compare predictions with the class and with the floor.

    Args:
      sets: "val": "logits" f32[n, V, 12], "label" i32[n], "latent" f32[n, V, 7] and
        "representation" f32[n, V, R].

    Returns:
      `near`, `far`: top-1 of images whose floor is within `NEAR` of the hue of their class, and of
      the others. `misled`: of the latter, where the floor is another class's, the share of images
      that are taken for that class; without any bias it is 1/12 about.
      `carried`: mean over the features of how much of their variance the floor explains.

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
    floor = hue_of_floor(latent.reshape(len(label), -1))
    representation = np.asarray(val["representation"]).reshape(len(label), -1)
    away = shifts(floor)
    far = away[np.arange(len(label)), label] > NEAR
    by_floor = away.argmin(axis=-1)
    return {
        "near": _share(told == label, ~far),
        "far": _share(told == label, far),
        "misled": _share(told == by_floor, far & (by_floor != label)),
        "carried": float(carried(representation, floor).mean()),
    }


def hue_of_floor(latent: np.ndarray) -> np.ndarray:
    """Hues f[n] of latents f[n, 7]."""
    return latent[:, scenes.HUES[0]]


def shifts(hue: np.ndarray) -> np.ndarray:
    """How far hues f[n] are from that of each class: f[n, 12], parts of the circle, at most 0.5."""
    own = np.array([scenes.hues(k)[0] for k in range(len(scenes.Scenes.class_names))])
    return np.abs((hue[:, None] - own + 0.5) % 1 - 0.5)


def carried(features: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Share of the variance of each feature that a hue explains, by waves of one and two periods.

    Args:
      features: f[n, R].
      hue: f[n], of which 0 and 1 are the same.

    Returns:
      f[R]; 0 of a feature that is constant.
    """
    waves = [wave(2 * np.pi * n * hue) for n in (1, 2) for wave in (np.cos, np.sin)]
    known = np.stack([np.ones_like(hue), *waves], axis=1).astype(np.float64)
    rows = features.astype(np.float64)
    left = rows - known @ np.linalg.lstsq(known, rows, rcond=None)[0]
    total = rows.var(axis=0)
    return np.where(total > 1e-12, 1 - left.var(axis=0) / np.maximum(total, 1e-12), 0.0)


def _share(right: np.ndarray, among: np.ndarray) -> float:
    return float(right[among].mean()) if among.any() else 0.0
