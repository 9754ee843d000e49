"""Accuracy on images turned about their centre.

Edixhoven, Lengyel and van Gemert (2023); `classification/train.py` validation_step, and the sweeps
of `rotmnist/trainer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.errors import Refusal
from jaxequi.objectives import classification

SETS = ("val",)


def reads(**options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return "turned_logits", "label"


def accuracies(turned_logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of right answers at each angle: f64[A] from f32[N, A, K] and i32[N]."""
    logits, labels = np.asarray(turned_logits), np.asarray(labels)
    return np.array(
        [classification.top_k(logits[:, turn], labels, 1) for turn in range(logits.shape[1])]
    )


def evaluate(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Score the logits of turned images.

    Args:
      sets: "val": "turned_logits" f32[N, A, K], turned by 0, 1, ... times 360 / A degrees, where 4
        divides A; "label" i32[N].

    Returns:
      `accuracy/seen`, of the upright images; `accuracy/unseen`, the mean over the four quarter
      turns, the upright images among them, as the reference counts; `accuracy/circle`, the mean
      over all A angles; `cross_entropy` of the upright images.

    Raises:
      ValueError: angles that are not evenly spread over the quarters.
    """
    features = sets["val"]
    logits, labels = np.asarray(features["turned_logits"]), np.asarray(features["label"])
    if logits.shape[1] % 4:
        raise Refusal(
            f"the evaluation 'turned' takes 4, 8, ... angles, not {logits.shape[1]}; set "
            "config.method.turns"
        )
    found = accuracies(logits, labels)
    return {
        "accuracy/seen": float(found[0]),
        "accuracy/unseen": float(found[:: len(found) // 4].mean()),
        "accuracy/circle": float(found.mean()),
        "cross_entropy": float(classification.cross_entropy(logits[:, 0], labels)),
    }
