"""Photometry, with Pillow's 8-bit arithmetic: colour jitter, grayscale, solarize.

Every operation yields whole levels, cut or rounded where Pillow cuts or rounds, so that an image
differs from the reference's by the rounding of single precision alone (the measured bounds are in
tests/augment/test_photometry.py). `brightness`, `contrast`, `saturation` and `shift_hue` are the
steps of `color_jitter`.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from jaxequi.augment.op import Array, Op, check_probability, sometimes
from jaxequi.errors import Refusal

PARTS = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(itertools.permutations(range(4)))


def luma(planes: Array) -> Array:
    """Return the grey levels [H, W] of planes, ITU-R 601 in Pillow's 16-bit integers."""
    red, green, blue = planes
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def blend(degenerate: Array, planes: Array, factor: Array) -> Array:
    """Extrapolate from `degenerate` through `planes`; cut to whole levels."""
    return jnp.floor(jnp.clip(degenerate + factor * (planes - degenerate), 0, 255))


def _mean_level(grey: Array) -> Array:
    """Return the rounded mean of grey levels; summed as integers, so that it is exact."""
    total = jnp.sum(grey.astype(jnp.int32))
    return ((2 * total + grey.size) // (2 * grey.size)).astype(grey.dtype)


def brightness(planes: Array, factor: Array) -> Array:
    """Scale towards black."""
    return blend(jnp.zeros_like(planes), planes, factor)


def contrast(planes: Array, factor: Array) -> Array:
    """Scale towards the mean grey level of the image."""
    return blend(_mean_level(luma(planes)), planes, factor)


def saturation(planes: Array, factor: Array) -> Array:
    """Scale towards the image's own grey."""
    return blend(luma(planes)[None], planes, factor)


def _hue(planes: Array, value: Array, spread: Array) -> Array:
    """Return the hue as a byte, to the last bit Pillow's, which sums in double precision."""
    red, green, blue = planes
    is_red, is_green = value == red, value == green
    over = jnp.where(spread > 0, spread, 1)
    plus = (value - jnp.where(is_red, blue, jnp.where(is_green, red, green))) / over
    minus = (value - jnp.where(is_red, green, jnp.where(is_green, blue, red))) / over
    base = jnp.where(is_red, 0, jnp.where(is_green, 2, 4)).astype(planes.dtype)
    # base + plus - minus, rounded once
    difference = plus - minus
    taken = difference - plus
    lost = (plus - (difference - taken)) - (minus + taken)
    total = base + difference
    sector = total + (lost + (difference - (total - base)))
    # Six no constant, as XLA would multiply by the rounded 1 / 6 in its place.
    turn = sector / jnp.where(spread > 0, 6, 1).astype(sector.dtype)
    return jnp.floor(jnp.where(turn < 0, turn + 1, turn) * 255)


def shift_hue(planes: Array, shift: Array) -> Array:
    """Turn the hue by `shift` in [-0.5, 0.5] turns, through 8-bit HSV as Pillow has it."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    spread = value - jnp.minimum(jnp.minimum(red, green), blue)
    chroma = jnp.floor(spread / jnp.maximum(value, 1) * 255) / 255
    hue = _hue(planes, value, spread) + jnp.trunc(shift * 255)
    hue = hue - 256 * jnp.floor(hue / 256)  # an unsigned byte, which wraps
    # Each colour falls from the value to its darkest over the two sectors around its opposite.
    place = jnp.asarray([5.0, 3.0, 1.0])[:, None, None] + hue * (6 / 255)
    place = place - 6 * jnp.floor(place / 6)
    fall = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    return jnp.where(spread > 0, jnp.floor(value * (1 - chroma * fall) + 0.5), value)


def color_jitter(
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    p: float = 1.0,
) -> Op:
    """Change brightness, contrast, saturation and hue, in a fresh random order for each image.

    The first three factors are uniform in [max(0, 1 - x), 1 + x], the hue shift in [-hue, hue]
    turns: torchvision's `ColorJitter`. Draws (applied, brightness, contrast, saturation, hue,
    order), the order an index into `ORDERS`; what is not applied reads (0, 1, 1, 1, 0, order).
    """
    widths = (brightness, contrast, saturation)
    if min(widths) < 0 or not 0 <= hue <= 0.5:
        raise Refusal(f"jitter widths are 0 or more and hue 0 to 0.5, not {(*widths, hue)}")
    check_probability(p)
    low = jnp.asarray([*(max(0.0, 1 - x) for x in widths), -hue], jnp.float32)
    high = jnp.asarray([*(1 + x for x in widths), hue], jnp.float32)
    none = jnp.asarray([1, 1, 1, 0], jnp.float32)

    def sample(key: Array, n: int) -> Array:
        keys = jax.random.split(key, 3)
        applied = jax.random.bernoulli(keys[0], p, (n, 1))
        factors = jax.random.uniform(keys[1], (n, 4), minval=low, maxval=high)
        order = jax.random.randint(keys[2], (n, 1), 0, len(ORDERS))
        return jnp.concatenate([applied, jnp.where(applied, factors, none), order], axis=1)

    return Op("color_jitter", 6, sample, jitter)


def jitter(planes: Array, drawn: Array) -> Array:
    """Apply what `color_jitter` drew, f32[6]."""
    order = jnp.asarray(ORDERS)[drawn[5].astype(jnp.int32)]
    parts = (brightness, contrast, saturation, shift_hue)

    def step(slot: int, planes: Array) -> Array:
        part = order[slot]
        return jax.lax.switch(part, parts, planes, drawn[part + 1])

    def all_parts(planes: Array) -> Array:
        return jax.lax.fori_loop(0, len(parts), step, planes)

    return jax.lax.cond(drawn[0] > 0, all_parts, lambda same: same, planes)


def grayscale(p: float = 0.2) -> Op:
    """Replace an image by its grey levels with probability `p`; draws (applied,)."""
    return sometimes("grayscale", p, lambda planes: jnp.broadcast_to(luma(planes), planes.shape))


def solarize(p: float = 0.2, threshold: int = 128) -> Op:
    """Invert the levels from `threshold` on with probability `p`; draws (applied,)."""
    return sometimes(
        "solarize", p, lambda planes: jnp.where(planes >= threshold, 255 - planes, planes)
    )
