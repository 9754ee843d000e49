"""Measure how far each layer of a network is from equivariance, and its output from invariance.

Edixhoven, Lengyel and van Gemert (2023); `classification/pcam/calculate_pcam_eq_errors.py`,
calc_eq_error. A layer F is compared with itself on the moved image: mean |g F(x) - F(g x)|, where g
moves pixels and, in a network over the group, the slices of each field.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.probes import layers
from jaxequi.types import Array

ROUNDING = 1e-4
"""Relative error above which a layer is not exact in f32."""


class Errors(NamedTuple):
    """Errors of L layers under the G elements of a group; element 0 is the identity.

    Attributes:
      layers: names, in order; the last is `output`.
      absolute: f64[L, G], mean |g F(x) - F(g x)| over all entries and images.
      relative: f64[L, G], the same divided by mean |F(x)|.
    """

    layers: Sequence[str]
    absolute: np.ndarray
    relative: np.ndarray

    def first_above(self, tolerance: float = ROUNDING) -> str | None:
        """Name the first layer with a relative error above a tolerance, or None."""
        above = np.flatnonzero(self.relative.max(1) > tolerance)
        return self.layers[above[0]] if above.size else None

    def summed(self) -> np.ndarray:
        """f64[L]: errors added up over the elements, as the reference reports them (E_d)."""
        return self.absolute.sum(1)


def measure(
    fn: Callable[[Array], Any],
    images: Array | np.ndarray,
    group: Group,
    regular: bool = True,
    batch_size: int = 64,
    keep: Callable[[str], bool] | None = None,
) -> Errors:
    """Measure every layer of a network, and the invariance of its output.

    Args:
      fn: images f32[B, H, W, C] -> f32[B, K] or a feature map, by Linen modules.
      images: f32[N, H, W, C].
      group: whose elements move the images; they map the grid onto itself.
      regular: whether maps are regular fields of the group (a network over it); False compares
        every channel with itself (a plain network).
      batch_size: images at a time.
      keep: names of layers to measure; None measures all.

    Returns:
      The errors. An output without pixels should be invariant.

    Raises:
      ValueError: a group off the grid, images that a quarter turn does not map onto themselves, or
        channels that are no whole number of fields.
    """
    planar.check_on_grid(group)
    if group.rotations == 4 and images.shape[1] != images.shape[2]:
        raise Refusal(
            f"images of {images.shape[1]} x {images.shape[2]} pixels: a quarter turn needs square "
            "ones. Crop them, or measure a group of half turns and mirrors."
        )
    recorder = layers.recorder(fn, (1, *images.shape[1:]), keep)
    difference = jax.jit(_differences, static_argnums=(2, 3, 4))
    total = np.zeros((len(recorder.names), group.order))
    scale = np.zeros(len(recorder.names))
    for start in range(0, len(images), batch_size):
        x = jnp.asarray(images[start : start + batch_size])
        upright = recorder.run(x)
        scale += len(x) * np.array(jax.tree.map(lambda a: jnp.mean(jnp.abs(a)), upright))
        for g in range(1, group.order):
            moved = recorder.run(planar.act(group, g, x))
            total[:, g] += len(x) * np.array(difference(upright, moved, group, g, regular))
    absolute, size = total / len(images), scale / len(images)
    return Errors(recorder.names, absolute, absolute / np.maximum(size, 1e-30)[:, None])


def _differences(upright: Any, moved: Any, group: Group, g: int, regular: bool) -> list[Array]:
    act = planar.act_on_field if regular else planar.act
    move = functools.partial(act, group, g)
    return [jnp.mean(jnp.abs((move(a) if a.ndim == 4 else a) - b)) for a, b in zip(upright, moved)]
