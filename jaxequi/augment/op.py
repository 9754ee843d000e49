"""What an augmentation on the device is: a sampler of parameters beside the pixel arithmetic.

An image on its way is `planes` f32[3, H, W] in 8-bit levels, 0 to 255, until `normalise`: with
the colours in front, arithmetic runs over whole rows of memory. Ops are written for one image
and branch freely (`lax.cond`); `each` runs them over a batch as suits the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.nn.spread import by_rows

Array = jax.Array


class Op(NamedTuple):
    """One step of a pipe.

    Attributes:
      name: what the op is called in a pipe, and its key in `aug`.
      draws: numbers drawn for each image, k.
      sample: `(key, n) -> f32[n, k]`.
      apply: `(planes f32[3, H, W], drawn f32[k]) -> planes`.
    """

    name: str
    draws: int
    sample: Callable[[Array, int], Array]
    apply: Callable[[Array, Array], Array]


def fixed(name: str, function: Callable[[Array], Array]) -> Op:
    """Make an op that draws nothing."""
    return Op(name, 0, lambda key, n: jnp.zeros((n, 0)), lambda planes, drawn: function(planes))


def sometimes(name: str, p: float, function: Callable[[Array], Array]) -> Op:
    """Make an op that is applied with probability `p`; draws (applied,)."""
    check_probability(p)

    def sample(key: Array, n: int) -> Array:
        return jax.random.bernoulli(key, p, (n, 1)).astype(jnp.float32)

    def apply(planes: Array, drawn: Array) -> Array:
        return jax.lax.cond(drawn[0] > 0, function, lambda same: same, planes)

    return Op(name, 1, sample, apply)


def each(function: Callable[..., Array], *batched: Array) -> Array:
    """Map a function of one image over the first axis; each device takes its own images.

    On a CPU image by image, so that branches not taken cost nothing and an image stays in
    the cache; elsewhere all at once, where a branch becomes a choice between both results.
    """

    def own(batched: tuple[Array, ...], _: tuple[()]) -> Array:
        return jax.lax.platform_dependent(
            *batched,
            cpu=lambda *x: jax.lax.map(lambda one: function(*one), x),
            default=lambda *x: jax.vmap(function)(*x),
        )

    return by_rows(own, batched, ())


def check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise Refusal(f"p is a probability, 0 to 1, not {p}")


def check_range(name: str, pair: tuple[float, float]) -> tuple[float, float]:
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
        raise Refusal(f"{name} must be 0 <= low <= high, not {pair}")
    return pair[0], pair[1]
