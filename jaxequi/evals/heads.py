"""Scores of heads on a frozen network, over a whole held-out set at once.

The heads, and what the names mean: `methods.linear`. Beside each pooled R2 stands its floor: what
the best constant guess scores, which is not 0, since one mean is taken over all columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.objectives import classification, regression

SETS = ("val",)


def reads(tasks: Mapping[str, Any], **options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    numbers = any(task.columns for task in tasks.values())
    return ("heads", "label", *(("latent",) if numbers else ()))


def evaluate(sets: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Any]) -> dict[str, float]:
    """Score the outputs of the heads.

    Args:
      sets: "val": "heads": outputs f32[n, V, C] or, of each `views` views together,
        f32[n, V // views, K] under `<task>-<part>-<kind>`; "label" i32[n]; "latent" f32[n, V, L].
      tasks: name -> `target`, `columns` and `views`, see `methods.linear.Task`.

    Returns:
      `cross_entropy`, `top1`, `top5`, or `mse`, `r2`, `r2_<column>`, `r2_columns` (the mean of
      those); each followed by `/<head>`; and `r2_floor/<task>`.
    """
    features, scores = sets["val"], dict[str, float]()
    for name, output in features["heads"].items():
        asked, output = name.partition("-")[0], np.asarray(output)
        task, columns = tasks[asked], tasks[asked].columns
        if not columns:
            labels = np.repeat(np.asarray(task.target(features)), output.shape[1])
            logits = output.reshape(len(labels), -1)
            scores[f"cross_entropy/{name}"] = float(classification.cross_entropy(logits, labels))
            for k in (1, 5):
                scores[f"top{k}/{name}"] = float(classification.top_k(logits, labels, k))
            continue
        output = output.reshape(-1, output.shape[-1])
        target = np.asarray(task.target(_together(features, task.views)))
        by_column = regression.r2_per_column(output, target)
        scores[f"mse/{name}"] = float(regression.mean_squared_error(output, target))
        scores[f"r2/{name}"] = float(regression.r2(output, target))
        scores |= {f"r2_{c}/{name}": float(by_column[i]) for i, c in enumerate(columns)}
        scores[f"r2_columns/{name}"] = float(by_column.mean())
        constant = np.broadcast_to(target.mean(axis=0), target.shape)
        scores[f"r2_floor/{asked}"] = float(regression.r2(constant, target))
    return scores


def _together(features: Mapping[str, Any], views: int) -> dict[str, Any]:
    """The targets of so many views together: f32[n V // views, views, L] of "latent"."""
    if "latent" not in features:
        return dict(features)
    latent = np.asarray(features["latent"])
    count = latent.shape[1] // views
    return {**features, "latent": latent[:, : views * count].reshape(-1, views, latent.shape[-1])}
