"""How often a classifier is right on a held-out set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.objectives import classification

SETS = ("val",)


def reads(**options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return "logits", "label"


def evaluate(sets: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Score logits.

    Args:
      sets: "val": "logits" f32[n, V, C] and "label" i32[n].

    Returns:
      `cross_entropy`, `top1`, `top5`, over all views.
    """
    logits = np.asarray(sets["val"]["logits"])
    labels = np.repeat(np.asarray(sets["val"]["label"]), logits.shape[1])
    logits = logits.reshape(len(labels), -1)
    scores = {f"top{k}": float(classification.top_k(logits, labels, k)) for k in (1, 5)}
    return {"cross_entropy": float(classification.cross_entropy(logits, labels)), **scores}
