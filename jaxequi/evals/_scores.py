"""Scores of a whole set at once: numpy, in float64 whatever comes in.

The training step has the same numbers of a batch in `objectives`.
"""

from __future__ import annotations

import numpy as np


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log softmax(logits)[label]: logits [N, C], labels i[N]."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    own = logits[np.arange(len(labels)), labels]
    return float(np.mean(np.log(np.exp(logits).sum(axis=-1)) - own))


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows whose label is among the k largest logits; of equal ones the first is larger.

    Everything counts as larger than a NaN, or than a label beside one.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[-1]) < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    return float(np.mean(ahead.sum(axis=-1) < k))


def mean_squared_error(prediction: np.ndarray, target: np.ndarray) -> float:
    """Mean squared difference over all elements."""
    return float(np.mean(np.square(np.subtract(prediction, target, dtype=np.float64))))


def r2(prediction: np.ndarray, target: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Coefficient of determination of [N, K]; 0 where the target is constant.

    Args:
      axis: None for one number, against one mean over all elements (the references' score, whose
        chance level is not 0); 0 for each column against its own mean, [K].
    """
    prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    residual = np.square(prediction - target).sum(axis=axis)
    total = np.square(target - target.mean(axis=axis)).sum(axis=axis)
    constant = total == 0
    return np.where(constant, 0.0, 1 - residual / np.where(constant, 1.0, total))
