"""Scores of the heads that were trained beside a method, over a whole held-out set at once.

The heads, and what the numbers mean: `methods._probe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.evals import _scores
from jaxequi.groups import quaternions

COLUMNS = ("x", "y", "z", "w")  # of the relative pose of two views


def evaluate(features: Mapping[str, Any]) -> dict[str, float]:
    """Score the outputs of the heads.

    Args:
      features: "probe" with `logits/<feature>` f32[N, V, C] and `relation/<feature>` f32[N, 4], as
        `with_probe` adds them to `Method.encode`; "label" i32[N]; "latent" f32[N, 2, L].

    Returns:
      `cross_entropy`, `top1` and `top5` (shares of the N * V views), `mse`, `r2`, and for each
      column of the relative pose `r2_x`, `r2_y`, `r2_z`, `r2_w`; each followed by `/<feature>`.

    Raises:
      ValueError: a method without heads, or heads for more than the rotation.
    """
    if "probe" not in features:
        raise ValueError(
            "the evaluation 'online' scores the heads of `with_probe`, and this method has none; "
            "train with a probe, or leave this evaluation out"
        )
    scores: dict[str, float] = {}
    for name, output in features["probe"].items():
        kind, feature = name.split("/")
        output = np.asarray(output)
        if kind == "logits":
            labels = np.repeat(np.asarray(features["label"]), output.shape[1])
            logits = output.reshape(len(labels), -1)
            scores[f"cross_entropy/{feature}"] = _scores.cross_entropy(logits, labels)
            for k in (1, 5):
                scores[f"top{k}/{feature}"] = _scores.top_k(logits, labels, k)
        else:
            latent = np.asarray(features["latent"])
            pose = quaternions.relative_pose(latent[:, 0], latent[:, 1])
            if output.shape != pose.shape:
                raise ValueError(
                    f"heads for {output.shape[1:]} numbers; this evaluation knows the "
                    f"{len(COLUMNS)} of the relation 'rotation'"
                )
            scores[f"mse/{feature}"] = _scores.mean_squared_error(output, pose)
            scores[f"r2/{feature}"] = float(_scores.r2(output, pose))
            by_column = _scores.r2(output, pose, axis=0)
            scores |= {f"r2_{c}/{feature}": float(by_column[i]) for i, c in enumerate(COLUMNS)}
    return scores
