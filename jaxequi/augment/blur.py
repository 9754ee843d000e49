"""Blurs of the references: Pillow's, which is no true Gaussian, and OpenCV's 3x3.

Pillow's `GaussianBlur(sigma)` is three box blurs of fractional radius along rows and three along
columns, each rounded to whole levels, with the edge pixel repeated outside. Five taps suffice for
sigma up to 2, where a Gaussian kernel needs 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxequi.augment.op import Array, Op, check_probability, check_range
from jaxequi.errors import Refusal

PASSES = 3


def _whole_radius(sigma: float) -> int:
    """Return the whole part of the box radius that three passes need for a deviation."""
    return math.floor((math.sqrt(12 * sigma * sigma / PASSES + 1) - 1) / 2)


def box_weights(sigma: Array, reach: int) -> Array:
    """Return the taps u32[reach + 1] at distance 0, 1, ... of one pass, in 2^-24.

    The box of radius l + a weighs its whole pixels 1 / (2 (l + a) + 1) each and splits the rest
    between the two next ones, a chosen so that three passes have the variance of the Gaussian
    (Gwosdek et al. 2011). The weights are cut to 24 bits, as in Pillow.
    """
    variance = sigma * sigma / PASSES
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1) ** 2))
    inner = (2**24 / (2 * (whole + part) + 1)).astype(jnp.uint32)
    whole = whole.astype(jnp.uint32)
    outer = (2**24 - (2 * whole + 1) * inner) // 2
    distance = jnp.arange(reach + 1, dtype=jnp.uint32)
    taps = jnp.where(distance <= whole, inner, 0)
    return jnp.where(distance == whole + 1, outer, taps)


def _shifts(levels: Array, reach: int, axis: int, edge: str) -> Callable[[int], Array]:
    """Return `at(offset)`: the pixel `offset` further along an axis, for each pixel."""
    pad = [(reach, reach) if axis == i else (0, 0) for i in range(levels.ndim)]
    padded = jnp.pad(levels, pad, mode=edge)
    size = levels.shape[axis]
    return lambda offset: jax.lax.slice_in_dim(
        padded, reach + offset, reach + offset + size, axis=axis
    )


def box_blur(planes: Array, sigma: Array, largest: float) -> Array:
    """Blur as Pillow's `GaussianBlur(sigma)`, sigma not above `largest`."""
    reach = _whole_radius(largest) + 1
    taps = box_weights(sigma, reach)

    def once(axis: int, levels: Array) -> Array:
        at = _shifts(levels, reach, axis, "edge")
        out = levels * taps[0] + 2**23
        for distance in range(1, reach + 1):
            out += (at(-distance) + at(distance)) * taps[distance]
        return out >> 24

    levels = planes.astype(jnp.uint32)
    for axis in (2, 1):  # loops, as a fused chain would compute every pass anew for each tap
        levels = jax.lax.fori_loop(0, PASSES, lambda _, x, axis=axis: once(axis, x), levels)
    return levels.astype(planes.dtype)


def blur_3x3(planes: Array, sigma: Array) -> Array:
    """Blur with a 3x3 Gaussian as OpenCV does; edges are mirrored without the edge pixel."""
    side = jnp.exp(-0.5 / sigma**2)
    centre = 1 / (1 + 2 * side)
    for axis in (2, 1):
        at = _shifts(planes, 1, axis, "reflect")
        planes = centre * (planes + side * (at(-1) + at(1)))
    return jnp.floor(planes + 0.5)


def _blur(
    name: str, p: float, sigma: tuple[float, float], blurred: Callable[[Array, Array], Array]
) -> Op:
    """Make an op that blurs with probability `p`; draws (applied, sigma), sigma uniform."""
    check_probability(p)
    low, high = check_range("sigma", sigma)
    if low <= 0:
        raise Refusal(f"sigma must be above 0, not {sigma}")

    def sample(key: Array, n: int) -> Array:
        chance, spread = jax.random.split(key)
        applied = jax.random.bernoulli(chance, p, (n,)).astype(jnp.float32)
        return jnp.stack([applied, jax.random.uniform(spread, (n,), jnp.float32, low, high)], 1)

    def apply(planes: Array, drawn: Array) -> Array:
        return jax.lax.cond(drawn[0] > 0, lambda x: blurred(x, drawn[1]), lambda same: same, planes)

    return Op(name, 2, sample, apply)


def gaussian_blur(p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> Op:
    """Blur as Pillow's `GaussianBlur` with probability `p`; draws (applied, sigma)."""
    return _blur("gaussian_blur", p, sigma, lambda x, s: box_blur(x, s, sigma[1]))


def gaussian_blur_3x3(p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> Op:
    """Blur with OpenCV's 3x3 Gaussian, as IP-IRM does, with probability `p`; draws as above."""
    return _blur("gaussian_blur_3x3", p, sigma, blur_3x3)
