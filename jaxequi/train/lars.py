"""Layer-wise rates, in the three forms that the references of self-supervised learning have.

A tensor's step is scaled by its norm over that of its gradient: You et al., arXiv 1708.03888. The
forms differ in whose norm, in what they leave out, and in whether the momentum sees the learning
rate. Each is `FORMS[name](rate, weight_decay, decays, **options)`:

    rate           learning rate by the number of updates done
    weight_decay   times the parameter, added to the gradient
    decays         parameters -> a tree of booleans, which of them decay; None for all
    momentum       of torch's SGD, without dampening
    nesterov       look ahead, as torch
    trust          what a scaled step is of its parameter, times the learning rate
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxequi.types import Array, PyTree

Decays = Callable[[PyTree], PyTree] | None
Rule = Callable[[Array, Array, bool], Array]


def lars(
    rate: optax.ScalarOrSchedule,
    weight_decay: float,
    decays: Decays,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 0.001,
) -> optax.GradientTransformation:
    """The paper's form, whose momentum holds steps: a new rate leaves those made before alone.

    megvii-research/revisitAIRL, `solver/optimizer.py`, `LARS`. A parameter that does not decay is
    not scaled either, and with a weight decay of 0 none is.
    """

    def rule(g: Array, w: Array, decayed: bool) -> Array:
        if not decayed or not weight_decay:
            return g
        size, slope = _norm(w), _norm(g)
        scale = _quotient(trust * size, slope + weight_decay * size, (size > 0) & (slope > 0))
        return scale * (g + weight_decay * w)

    scaled = _each(rule, decays)
    return optax.chain(
        scaled, optax.scale_by_learning_rate(rate), optax.trace(momentum, nesterov=nesterov)
    )


def lars_mocov3(
    rate: optax.ScalarOrSchedule,
    weight_decay: float,
    decays: Decays,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 0.001,
) -> optax.GradientTransformation:
    """The form of MoCo v3 and MAE: the gradient's norm is taken after the decay was added.

    facebookresearch/mae, `util/lars.py`. Vectors and scalars are neither decayed nor scaled.
    """

    def rule(g: Array, w: Array, decayed: bool) -> Array:
        if w.ndim < 2:
            return g
        g = g + weight_decay * w if decayed else g
        size, slope = _norm(w), _norm(g)
        return _quotient(trust * size, slope, (size > 0) & (slope > 0)) * g

    return _outside(rule, decays, rate, momentum, nesterov)


def larc(
    rate: optax.ScalarOrSchedule,
    weight_decay: float,
    decays: Decays,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 0.001,
) -> optax.GradientTransformation:
    """The form of SimSiam's linear evaluation: apex, `parallel/LARC.py`, without clipping.

    Every tensor is scaled, biases too; one of norm 0, or with such a gradient, is neither scaled
    nor decayed.
    """

    def rule(g: Array, w: Array, decayed: bool) -> Array:
        size, slope = _norm(w), _norm(g)
        decay, live = weight_decay if decayed else 0.0, (size > 0) & (slope > 0)
        scale = _quotient(trust * size, slope + decay * size + 1e-8, live)
        return jnp.where(live, scale * (g + decay * w), g)

    return _outside(rule, decays, rate, momentum, nesterov)


FORMS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "larc": larc,
    "lars": lars,
    "lars_mocov3": lars_mocov3,
}


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def _quotient(a: Array, b: Array, where: Array) -> Array:
    """a / b, and 1 where that may not be had."""
    return jnp.where(where, a / jnp.where(where, b, 1.0), 1.0)


def _each(rule: Rule, decays: Decays) -> optax.GradientTransformation:
    def update(updates: PyTree, params: PyTree) -> PyTree:
        decayed = decays(params) if decays else jax.tree.map(lambda _: True, params)
        return jax.tree.map(rule, updates, params, decayed)

    return optax.stateless(update)


def _outside(
    rule: Rule,
    decays: Decays,
    rate: optax.ScalarOrSchedule,
    momentum: float,
    nesterov: bool,
) -> optax.GradientTransformation:
    """Momentum before the learning rate, as torch's SGD."""
    trace = optax.trace(momentum, nesterov=nesterov)
    return optax.chain(_each(rule, decays), trace, optax.scale_by_learning_rate(rate))
