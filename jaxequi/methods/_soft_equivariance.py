"""Soft equivariance: a map in the midst of a network follows quarter turns and flips of its input.

Lee et al., ICLR 2026, arXiv 2603.06693; aitrics-chris/SER. Of the last pairs of a batch both views
are cut from the same place of an image and moved by two elements of D4 (`augment.turned_pairs`);
moved back, the maps of a layer should be the same. The maps are those of the method's own passes:
there is no second one. The paper's term is "ntxent", its layer the third block of twelve of a
vision transformer, its pairs a hundredth of a batch of 2048; "l2" is the distance alone, which
nothing but the method keeps from collapse. The paper inserts the class token behind that layer, and
resamples maps as well; here the token is left out of the map, and nothing is resampled.

Logged: `loss/soft_equivariance`, before its weight.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups.planar import dihedral
from jaxequi.groups.rotation import act_each
from jaxequi.names import unknown
from jaxequi.nn.norm import at_least_f32
from jaxequi.objectives import equivariance
from jaxequi.types import Array, Batch, Method, Output, Progress, PyTree

OBJECTIVES = ("l2", "ntxent")


def with_soft_equivariance(
    method: Method,
    *,
    layer: str,
    weight: float = 1.0,
    pairs: int = 16,
    objective: str = "l2",
    temperature: float = 0.3,
) -> Method:
    """Ask a method's network for maps that follow its input.

    Args:
      method: any that sees two views in its online network, one after the other. A batch must be
        that of `augment.turned_pairs`.
      layer: name of a module whose output is a square map, f32[B, h, w, C], or tokens of one,
        f32[B, 1 + h w, C]: "layer2_0" of a residual network, "blocks_2" of a vision transformer.
      weight: of the term in the loss.
      pairs: how many of a batch are moved.
      objective: "l2" or "ntxent", see `objectives.equivariance`.
      temperature: of "ntxent".

    Raises:
      ValueError: unknown objective, a number out of its range, a method whose predictor needs the
        relation of stored views; while tracing, a layer that is not there, is there
        several times or has no square map, or a method that sees one view.
    """
    if objective not in OBJECTIVES:
        raise unknown("soft_equivariance.objective", objective, OBJECTIVES)
    if not 0 < weight < math.inf or not 0 < temperature < math.inf:
        raise Refusal(
            f"soft_equivariance.weight={weight}, temperature={temperature}: both are above 0"
        )
    if method.relation is not None:
        raise Refusal(
            "soft_equivariance: this method learns what carries one stored view to the other, and "
            "moved views are not carried by it; take a method without a predictor of relations"
        )

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        maps, paths, there = [], [], set()

        def catch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            found = call(*args, **kwargs)
            if context.method_name == "__call__" and getattr(found, "ndim", 0) in (3, 4):
                there.add(context.module.name or "")
                if context.module.name == layer:
                    maps.append(found)
                    paths.append(context.module.path)
            return found

        with nn.intercept_methods(catch):
            total, output = method.loss(params, extra, batch, key, progress)
        if not maps:
            raise unknown("soft_equivariance.layer, a module with maps,", layer, there - {""})
        seen = next(iter(output.features.values())).shape[1]
        if seen != 2 or len(maps) < 2:
            raise Refusal(
                f"soft_equivariance compares the maps of two views, and this method sees {seen} in "
                "the network that learns; take one that sees both (method.symmetric=True of moco)"
            )
        if paths[0] != paths[1]:
            one, other = ("/".join(path) for path in paths[:2])
            raise Refusal(
                f"soft_equivariance.layer={layer!r} is the name of several modules, such as {one} "
                f"and {other}; name a layer that is there once"
            )
        # The first two passes are those of the online network, in the order of the views.
        back = jnp.asarray(dihedral(4).inverse)
        upright = []
        for view, given in enumerate(maps[:2]):
            element = batch["aug"]["turn"][-pairs:, view, 0].astype(jnp.int32)
            square = _square(given[-pairs:], layer)
            moved = act_each(dihedral(4), back[element], square)
            upright.append(at_least_f32(moved.reshape(pairs, -1, moved.shape[-1])))
        first, second = upright
        if objective == "l2":
            term = equivariance.squared_distance(first, second)
        else:
            term = equivariance.ntxent_of_places(first, second, temperature)
        metrics = {**output.metrics, "loss/soft_equivariance": term}
        return total + weight * term, output._replace(metrics=metrics)

    return dataclasses.replace(method, loss=loss, mean_over_examples=False)


def _square(given: Array, layer: str) -> Array:
    """f[n, s, s, C] of a map, or of tokens with or without a class token."""
    if given.ndim == 4 and given.shape[1] == given.shape[2]:
        return given
    for tokens in (given, given[:, 1:]) if given.ndim == 3 else ():
        side = round(tokens.shape[1] ** 0.5)
        if side * side == tokens.shape[1]:
            return tokens.reshape(len(tokens), side, side, -1)
    raise Refusal(
        f"soft_equivariance.layer={layer!r} gives {given.shape}, which is no square map; give "
        "square images, and a layer before they are pooled"
    )
