"""Scores of the heads that were trained beside a method, over a whole held-out set at once.

The heads, and what the numbers mean: `methods._online`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import relation as relations
from jaxequi.objectives import classification, regression

SETS = ("val",)


def reads(relation: str | None = None, **options: Any) -> tuple[str, ...]:
    """Names of the features that the evaluation reads."""
    del options
    return ("online", "label", *(("latent",) if relation else ()))


def evaluate(
    sets: Mapping[str, Mapping[str, Any]], relation: str | None = None
) -> dict[str, float]:
    """Score the outputs of the heads.

    Args:
      sets: "val": "online" with `logits/<feature>` f32[N, V, C] and `relation/<feature>` f32[N, L],
        as `with_online_heads` adds them to `Method.encode`; "label" i32[N]; "latent" f32[N, 2, 7].
      relation: that the heads tell, see `groups.relation`.

    Returns:
      `cross_entropy`, `top1` and `top5` (shares of the N * V views), `mse`, `r2`, and for each
      column of the relation `r2_<column>`; each followed by `/<feature>`.

    Raises:
      ValueError: heads of another relation.
    """
    features, scores = sets["val"], dict[str, float]()
    target = relations.relation(relation) if relation else None
    for name, output in features["online"].items():
        kind, feature = name.split("/")
        output = np.asarray(output)
        if kind == "logits":
            labels = np.repeat(np.asarray(features["label"]), output.shape[1])
            logits = output.reshape(len(labels), -1)
            scores[f"cross_entropy/{feature}"] = float(classification.cross_entropy(logits, labels))
            for k in (1, 5):
                scores[f"top{k}/{feature}"] = float(classification.top_k(logits, labels, k))
            continue
        z = np.asarray(target.between(features)) if target else np.zeros((len(output), 0))
        if target is None or output.shape != z.shape:
            raise Refusal(
                f"the heads tell {output.shape[-1]} numbers of a pair; the relation {relation!r} "
                f"has {z.shape[-1]}. Set evals.online.relation to that of the heads"
            )
        scores[f"mse/{feature}"] = float(regression.mean_squared_error(output, z))
        scores[f"r2/{feature}"] = float(regression.r2(output, z))
        by_column = regression.r2_per_column(output, z)
        scores |= {f"r2_{c}/{feature}": float(by_column[i]) for i, c in enumerate(target.columns)}
    return scores
