"""Scores of heads on a frozen network, over a whole held-out set at once.

The heads, and what the names mean: `methods._frozen`. Beside each pooled R2 stands its floor: what
the best constant guess scores, which is not 0, since one mean is taken over all columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.evals import _scores


def evaluate(features: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, float]:
    """Score the outputs of the heads.

    Args:
      features: "heads": outputs f32[n, V, C] or f32[n, K] under `<task>-<part>-<kind>`; and the
        targets of the batches, "label" i32[n] and "latent" f32[n, 2, L].
      tasks: name -> `target` and `columns`, see `methods._frozen.Task`.

    Returns:
      `cross_entropy`, `top1`, `top5`, or `mse`, `r2`, `r2_<column>`, `r2_columns` (the mean of
      those); each followed by `/<head>`; and `r2_floor/<task>`.
    """
    scores: dict[str, float] = {}
    for name, output in features["heads"].items():
        asked = name.partition("-")[0]
        target, columns = np.asarray(tasks[asked].target(features)), tasks[asked].columns
        if not columns:
            labels = np.repeat(target, output.shape[1])
            logits = output.reshape(len(labels), -1)
            scores[f"cross_entropy/{name}"] = _scores.cross_entropy(logits, labels)
            for k in (1, 5):
                scores[f"top{k}/{name}"] = _scores.top_k(logits, labels, k)
            continue
        by_column = _scores.r2(output, target, axis=0)
        scores[f"mse/{name}"] = _scores.mean_squared_error(output, target)
        scores[f"r2/{name}"] = float(_scores.r2(output, target))
        scores |= {f"r2_{c}/{name}": float(by_column[i]) for i, c in enumerate(columns)}
        scores[f"r2_columns/{name}"] = float(by_column.mean())
        constant = np.broadcast_to(target.mean(axis=0), target.shape)
        scores[f"r2_floor/{asked}"] = float(_scores.r2(constant, target))
    return scores
