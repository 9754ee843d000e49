"""What an augmentation on the device is: a sampler of parameters beside the pixel arithmetic.

Pictures are *planes* f32[3, N, H, W] in 8-bit levels, 0 to 255, until `normalise`: with the
colours in front, arithmetic runs over whole rows of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Op(NamedTuple):
    """One step of a pipe.

    Attributes:
      name: what the op is called in a pipe, and its key in `aug`.
      draws: numbers drawn for each picture, k.
      sample: `(key, n) -> f32[n, k]`.
      apply: `(planes f32[3, n, H, W], drawn f32[n, k]) -> planes`.
    """

    name: str
    draws: int
    sample: Callable[[Array, int], Array]
    apply: Callable[[Array, Array], Array]


def fixed(name: str, function: Callable[[Array], Array]) -> Op:
    """Make an op that draws nothing."""
    return Op(
        name,
        0,
        lambda key, n: jnp.zeros((n, 0), jnp.float32),
        lambda planes, drawn: function(planes),
    )


def check_probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability, 0 to 1, not {p}")
    return p


def check_range(name: str, pair: tuple[float, float]) -> tuple[float, float]:
    if len(pair) != 2 or not pair[0] <= pair[1]:
        raise ValueError(f"{name} must be (low, high), not {pair}")
    return pair[0], pair[1]


def where(applied: Array, changed: Array, planes: Array) -> Array:
    """Choose for each picture: `changed` where `applied` f32[n] is 1, else `planes`."""
    return jnp.where(applied[None, :, None, None] > 0, changed, planes)
