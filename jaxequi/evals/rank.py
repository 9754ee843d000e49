"""How many directions a representation uses: RankMe, which needs no label.

Garrido, Balestriero, Najman, LeCun, "RankMe: assessing the downstream performance of pretrained
self-supervised representations by their rank" (ICML 2023), equation 1: the exponential of the
entropy of the singular values, each over their sum. Between 1 and min(rows, D).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SETS = ("val",)
EPSILON = 1e-7  # added to each share, as in the paper
ROWS = 25_600  # as many as the paper takes; more change nothing


def reads(feature: str = "representation", **options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return (feature,)


def evaluate(
    sets: Mapping[str, Mapping[str, np.ndarray]], feature: str = "representation"
) -> dict[str, float]:
    """RankMe of all views of "val": `effective_rank`."""
    values = np.asarray(sets["val"][feature])
    return {"effective_rank": effective_rank(values.reshape(-1, values.shape[-1])[:ROWS])}


def effective_rank(rows: np.ndarray) -> float:
    """RankMe of f32[n, D], computed in float64.

    >>> round(effective_rank(np.eye(4)), 3), round(effective_rank(np.ones((4, 4))), 3)
    (4.0, 1.0)
    """
    values = np.linalg.svd(np.asarray(rows, np.float64), compute_uv=False)
    share = values / (np.sum(values) or 1.0) + EPSILON
    return float(np.exp(-np.sum(share * np.log(share))))
