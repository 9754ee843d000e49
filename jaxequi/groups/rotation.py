"""Turning images on the device: by any angle about their centre, or each by its own quarter.

torchvision's RandomRotation on float tensors, as `experiments/rotmnist/trainer.py` of Edixhoven,
Lengyel and van Gemert (2023) uses it in biased training and in every sweep over angles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.types import Array


def act_each(group: planar.Group, elements: Array, images: Array) -> Array:
    """Move each image by an element of its own, as `planar.act`: exactly, by a gather.

    Args:
      group: whose elements all map the pixel grid onto itself, C4 or D4.
      elements: i32[N].
      images: [N, H, H, C] of any dtype.

    Raises:
      ValueError: unequal sides, or a group with other turns.
    """
    side = images.shape[1]
    if images.shape[2] != side:
        raise Refusal(f"quarter turns of {images.shape}: the sides of an image must be equal")
    grid = np.arange(side * side).reshape(side, side)
    moved = [planar.act(group, g, grid, (0, 1)).ravel() for g in range(group.order)]
    places = jnp.asarray(np.stack(moved))[elements]
    rows = images.reshape(len(images), side * side, -1)
    return jnp.take_along_axis(rows, places[..., None], axis=1).reshape(images.shape)


def rotate(images: Array, degrees: Array | float, nearest: bool = False) -> Array:
    """Turn images counter-clockwise about ((H - 1) / 2, (W - 1) / 2); what comes in is 0.

    Bilinear interpolation is multiplied by that of an image of ones, so a border pixel fades with
    the square of its share, as in torchvision. Angles of a quarter turn are exact with `nearest`.

    Args:
      images: f32[B, H, W, C].
      degrees: one angle for all.
      nearest: take the nearest pixel (halves to even) instead.

    Returns:
      f32[B, H, W, C].
    """
    height, width = images.shape[1:3]
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    column = (width - 1) / 2 + x * cos - y * sin
    row = (height - 1) / 2 + x * sin + y * cos
    if nearest:
        return _pick(images, jnp.round(row), jnp.round(column))[0]
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = row - top, column - left
    value, covered = jnp.zeros_like(images), jnp.zeros(images.shape[1:3])[None, :, :, None]
    for r, c, share in (
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ):
        pixels, inside = _pick(images, r, c)
        value += pixels * share[None, :, :, None]
        covered += inside * share[None, :, :, None]
    return value * covered


def _pick(images: Array, row: Array, column: Array) -> tuple[Array, Array]:
    """Pixels at whole rows and columns f32[H, W]: 0 outside, and whether they are inside."""
    height, width = images.shape[1:3]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside[None, :, :, None]
    r = jnp.clip(row, 0, height - 1).astype(jnp.int32)
    c = jnp.clip(column, 0, width - 1).astype(jnp.int32)
    return jnp.where(inside, images[:, r, c], 0), jax.lax.convert_element_type(inside, images.dtype)
