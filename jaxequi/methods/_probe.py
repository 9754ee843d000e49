"""Heads that learn beside a method, on its stopped features: the online evaluator of SIE.

For the `representation` and the `embedding`, as a whole and in their parts (`-inv`, `-equi`, where
the method has such a part), a linear layer names the class of a view, and an MLP reads the
relation off both views. Equivariant parts are not asked for classes, invariant ones not for the
relation, unless `every_part` asks all of them for both, which shows what a part has *lost*.
facebookresearch/SIE, `src/models.py`, `OnlineEvaluator` (which asks no part for what it should not
know).

Logged, over the training batch, with <feature> = representation, representation-inv, ... :

    probe/loss                      sum of all cross-entropies and squared errors
    probe/cross_entropy/<feature>   mean over both views
    probe/top1/<feature>            share of views, 0 to 1; also probe/top5
    probe/mse/<feature>             mean over examples and columns of z
    probe/r2/<feature>              with one mean for all columns: 0.229 is chance for rotations
    probe/r2_<column>/<feature>     of one column against its own mean: 0 is chance

`evals.online` gives the same numbers, without `probe/`, over a held-out set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.methods import _relation
from jaxequi.nn import heads
from jaxequi.objectives import classification, regression
from jaxequi.types import Array, Batch, Features, Method, Metrics, Output, Progress, PyTree


class Probe(nn.Module):
    """Features f32[B, V, D] to `logits/<feature>` f32[B, V, C], `relation/<feature>` f32[B, L].

    Relations are read off two views; of other numbers of views only the classes are told.

    Attributes:
      parts: widths (invariant, equivariant) of each feature.
      classes: C.
      columns: L.
      every_part: ask invariant parts for the relation and equivariant ones for the classes too.
    """

    parts: Mapping[str, tuple[int, int]]
    classes: int
    columns: int
    every_part: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features) -> dict[str, Array]:
        outputs = {}
        for name, (inv, equi) in self.parts.items():
            whole = features[name]
            labelled, related = {name: whole}, {name: whole}
            if inv:
                labelled[f"{name}-inv"] = whole[..., :inv]
            if equi:
                related[f"{name}-equi"] = whole[..., inv:]
            if self.every_part:
                labelled = related = labelled | related
            for part, x in labelled.items():
                head = heads.Linear(self.classes, dtype=self.dtype, name=f"label_{part}")
                outputs[f"logits/{part}"] = head(x).astype(jnp.float32)
            for part, x in related.items():
                if x.shape[1] == 2:
                    both = x.reshape(len(x), -1)
                    widths = (both.shape[-1], both.shape[-1], self.columns)
                    mlp = heads.MLP(widths, self.dtype, name=f"relation_{part}")
                    outputs[f"relation/{part}"] = mlp(both).astype(jnp.float32)
        return outputs


def score(
    outputs: Mapping[str, Array], label: Array, z: Array, columns: Sequence[str]
) -> tuple[Array, Metrics]:
    """Sum the losses of a `Probe`'s outputs, and measure each of them.

    Args:
      outputs: as `Probe` returns them, of B examples.
      label: i32[B].
      z: f32[B, L].
      columns: the names of the L numbers.

    Returns:
      f32[], and the metrics of the module's docstring without `probe/`.
    """
    loss, metrics = jnp.zeros(()), {}
    for name, output in outputs.items():
        kind, feature = name.split("/")
        if kind == "logits":
            labels = jnp.broadcast_to(label[:, None], output.shape[:2])
            term = metrics[f"cross_entropy/{feature}"] = classification.cross_entropy(
                output, labels
            )
            for k in (1, 5):
                metrics[f"top{k}/{feature}"] = classification.top_k(output, labels, k)
        else:
            term = metrics[f"mse/{feature}"] = regression.mean_squared_error(output, z)
            metrics[f"r2/{feature}"] = regression.r2(output, z)
            by_column = regression.r2_per_column(output, z)
            metrics |= {f"r2_{c}/{feature}": by_column[i] for i, c in enumerate(columns)}
        loss += term
    return loss, {"loss": loss, **metrics}


def with_probe(
    method: Method,
    *,
    num_classes: int,
    relation: str | _relation.Relation = "rotation",
    every_part: bool = False,
    dtype: Any = jnp.float32,
) -> Method:
    """Train heads on a method's features, without a gradient to the method.

    The method's own gradients, state and metrics stay as they are; its loss is logged as `loss`.
    The heads' parameters are `params["probe"]`. `encode` gives their outputs too, under "probe".

    Args:
      method: any whose loss returns features f32[B, 2, D] for each name in its `parts`.
      num_classes: C.
      relation: the L numbers that the heads tell of two views, see `_relation`.
      every_part: ask every part for classes and relation; the published evaluator does not.
      dtype: of the heads' computations.

    Raises:
      ValueError: unknown relation, or a method without `parts`.
    """
    target = _relation.relation(relation)
    if not method.parts or num_classes < 1:
        raise ValueError(
            f"a probe needs a method that says its `parts` and at least one class, not "
            f"parts={dict(method.parts)}, num_classes={num_classes}"
        )
    probe = Probe(method.parts, num_classes, len(target.columns), every_part, dtype)

    def without(params: PyTree) -> PyTree:
        return {name: tree for name, tree in params.items() if name != "probe"}

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        own_key, probe_key = jax.random.split(key)
        params, extra = method.init(own_key, batch)
        blank = {name: jnp.zeros((1, 2, inv + equi)) for name, (inv, equi) in method.parts.items()}
        return {**params, "probe": probe.init(probe_key, blank)["params"]}, extra

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        own, output = method.loss(without(params), extra, batch, key, progress)
        features = jax.lax.stop_gradient(output.features)
        outputs: Any = probe.apply({"params": params["probe"]}, features)
        more, scores = score(outputs, batch["label"], target.between(batch), target.columns)
        metrics = {"loss": own, **output.metrics}
        metrics |= {f"probe/{name}": value for name, value in scores.items()}
        return own + more, output._replace(metrics=metrics)

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        features = method.encode(without(params), extra, views)
        outputs = probe.apply({"params": params["probe"]}, features)
        return {**features, "probe": outputs}

    changed: dict[str, Any] = {}
    if method.predict is not None:
        changed["predict"] = lambda params, *args: method.predict(without(params), *args)
    return dataclasses.replace(
        method,
        init=init,
        loss=loss,
        encode=encode,
        update=lambda params, *args: method.update(without(params), *args),
        **changed,
    )
