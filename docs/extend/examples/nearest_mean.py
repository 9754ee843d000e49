"""An evaluation of one's own: the class whose mean representation is the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SETS = ("train", "val")  # the last one is judged


def reads(feature: str = "representation", **options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return feature, "label"


def evaluate(
    sets: Mapping[str, Mapping[str, np.ndarray]], feature: str = "representation"
) -> dict[str, float]:
    """Name each example of "val" after the nearest mean of a class of "train"."""
    known, labels = sets["train"][feature][:, 0], sets["train"]["label"]
    asked, truth = sets["val"][feature][:, 0], sets["val"]["label"]
    classes = np.unique(labels)
    means = np.stack([known[labels == c].mean(0) for c in classes])
    distance = np.square(asked[:, None] - means).sum(-1)
    return {"top1": float(np.mean(classes[distance.argmin(1)] == truth))}
