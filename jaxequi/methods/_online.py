"""Heads that learn beside a method, on its stopped features: the online evaluator.

A linear layer names the class of each view of a feature, and where a relation is asked for an MLP
reads it off two views. A feature that the method splits is asked as a whole and in its parts
(`-inv`, `-equi`): equivariant parts not for classes, invariant ones not for the relation, unless
`every_part` asks all of them for both, which shows what a part has *lost*. A part that is the whole
is asked once. facebookresearch/SIE, `src/models.py`, `OnlineEvaluator`, asks no part for what it
should not know, and a whole part twice (`whole_parts`).

Logged, over the training batch, with <feature> = representation, representation-inv, ... :

    online/loss                     sum of all cross-entropies and squared errors
    online/cross_entropy/<feature>  mean over the views
    online/top1/<feature>           share of views, 0 to 1; also online/top5
    online/mse/<feature>            mean over examples and columns of z
    online/r2/<feature>             with one mean for all columns: 0.229 is chance for rotations
    online/r2_<column>/<feature>    of one column against its own mean: 0 is chance

`evals.online` gives the same numbers over a held-out set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import relation as relations
from jaxequi.nn import heads
from jaxequi.nn.norm import at_least_f32
from jaxequi.objectives import classification, regression
from jaxequi.types import (
    Array,
    Batch,
    Features,
    Method,
    Metrics,
    Output,
    Progress,
    PyTree,
    Relation,
)


class OnlineHeads(nn.Module):
    """Features f32[B, V, D] to `logits/<feature>` f32[B, V, C], `relation/<feature>` f32[B, L].

    Relations are read off two views; of other numbers of views only the classes are told.

    Attributes:
      features: names of the features that are asked.
      parts: widths (invariant, equivariant) of those that split.
      classes: C.
      columns: L; 0 asks for no relation.
      every_part: ask invariant parts for the relation and equivariant ones for the classes too.
      whole_parts: ask a part that is the whole feature, too.
    """

    features: Sequence[str]
    parts: Mapping[str, tuple[int, int]]
    classes: int
    columns: int = 0
    every_part: bool = False
    whole_parts: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features) -> dict[str, Array]:
        outputs = {}
        for name in self.features:
            whole, (inv, equi) = features[name], self.parts.get(name, (0, 0))
            labelled, related = {name: whole}, {name: whole}
            if inv and (equi or self.whole_parts):
                labelled[f"{name}-inv"] = whole[..., :inv]
            if equi and (inv or self.whole_parts):
                related[f"{name}-equi"] = whole[..., inv:]
            if self.every_part:
                labelled = related = labelled | related
            for part, x in labelled.items():
                head = heads.Linear(self.classes, dtype=self.dtype, name=f"label_{part}")
                outputs[f"logits/{part}"] = at_least_f32(head(x))
            for part, x in related.items():
                if self.columns and x.shape[1] == 2:
                    both = x.reshape(len(x), -1)
                    widths = (both.shape[-1], both.shape[-1], self.columns)
                    mlp = heads.MLP(widths, self.dtype, name=f"relation_{part}")
                    outputs[f"relation/{part}"] = at_least_f32(mlp(both))
        return outputs


def score(
    outputs: Mapping[str, Array], label: Array, z: Any, columns: Sequence[str]
) -> tuple[Array, Metrics]:
    """Sum the losses of the outputs of `OnlineHeads`, and measure each of them.

    Args:
      outputs: as `OnlineHeads` returns them, of B examples.
      label: i32[B].
      z: f32[B, L]; None where no relation is asked for.
      columns: the names of the L numbers.

    Returns:
      f32[], and the metrics of the module's docstring without `online/`.
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


def with_online_heads(
    method: Method,
    *,
    num_classes: int,
    features: Sequence[str] = ("representation",),
    relation: str | Relation | None = None,
    every_part: bool = False,
    whole_parts: bool = False,
    last_view: bool = False,
    dtype: Any = jnp.float32,
) -> Method:
    """Train heads on a method's features, without a gradient to the method.

    The method's own gradients, state and metrics stay as they are; its loss is logged as `loss`.
    The heads' parameters are `params["online"]`. `encode` gives their outputs too, under "online".

    Args:
      method: any whose `loss` and `encode` give features f32[B, V, D] of these names.
      num_classes: C.
      features: names of the features that are asked.
      relation: the L numbers that the heads tell of two views, see `groups.relation`; None tells
        classes alone.
      every_part: ask every part for classes and relation; the published evaluator does not.
      whole_parts: ask a part that is the whole feature, too, as the published evaluator does.
      last_view: learn from the last view that the method saw alone, as revisitAIRL's classifier
        does; in evaluation every view is asked.
      dtype: of the heads' computations.

    Raises:
      ValueError: unknown relation, or one of the last view alone; no class; while tracing, a
        feature that the method lacks.
    """
    target = relations.relation(relation) if relation is not None else None
    if num_classes < 1:
        raise Refusal(f"num_classes={num_classes}: the online heads tell at least one class")
    if last_view and target:
        raise Refusal(
            f"online.last_view=True and online.relation={relation!r}: a relation is read off two "
            "views; take one of the two"
        )
    columns = target.columns if target else ()
    heads_of = OnlineHeads(
        tuple(features),
        dict(method.parts),
        num_classes,
        len(columns),
        every_part,
        whole_parts,
        dtype,
    )

    def without(params: PyTree) -> PyTree:
        return {name: tree for name, tree in params.items() if name != "online"}

    def asked(found: Features) -> Features:
        missing = [name for name in features if name not in found]
        if missing:
            raise Refusal(
                f"online.features names {', '.join(missing)}, which this method does not give; "
                f"there is {', '.join(found)}"
            )
        return {name: jax.lax.stop_gradient(found[name]) for name in features}

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        own_key, head_key = jax.random.split(key)
        params, extra = method.init(own_key, batch)
        shapes = asked_shapes(method, params, extra, batch["views"])
        blank = {name: jnp.zeros((1, *shapes[name].shape[1:])) for name in features}
        return {**params, "online": heads_of.init(head_key, blank)["params"]}, extra

    def asked_shapes(method: Method, params: PyTree, extra: PyTree, views: Array) -> Features:
        return jax.eval_shape(lambda *values: asked(method.encode(*values)), params, extra, views)

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        own, output = method.loss(without(params), extra, batch, key, progress)
        features = asked(output.features)
        if last_view:
            features = {name: feature[:, -1:] for name, feature in features.items()}
        outputs: Any = heads_of.apply({"params": params["online"]}, features)
        z = target.between(batch) if target else None
        more, scores = score(outputs, batch["label"], z, columns)
        metrics = {"loss": own, **output.metrics}
        metrics |= {f"online/{name}": value for name, value in scores.items()}
        return own + more, output._replace(metrics=metrics)

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        found = method.encode(without(params), extra, views)
        outputs = heads_of.apply({"params": params["online"]}, asked(found))
        return {**found, "online": outputs}

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
