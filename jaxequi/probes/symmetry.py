"""Make any function equivariant: average it over a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.types import Array


def symmetrize(
    fn: Callable[[Array], Any], group: Group, regular: bool = False
) -> Callable[[Array], Any]:
    """Average g^-1 fn(g x) over the elements g of a group.

    The Reynolds operator; frame averaging over the whole group (Puny et al. 2022). The result
    commutes with the group, to rounding where every element maps the grid onto itself (C1, C2, C4,
    D1, D2, D4), and as far as interpolation allows elsewhere. A function that did already is left
    as it is.

    Args:
      fn: images f32[B, H, W, C] -> arrays with B rows. What is [B, H', W', C'] is a map, and its
        pixels are moved back; all else is averaged as it is, and becomes invariant.
      group: the group.
      regular: whether the channels of maps are regular fields of the group; False leaves each
        channel where it is.

    Returns:
      A function as `fn`, which calls it once, with B G images.

    Raises:
      ValueError: images that a turn does not map onto themselves, or channels that are no whole
        number of fields.
    """
    back = planar.act_on_field if regular else planar.transform

    def averaged(images: Array) -> Any:
        if group.rotations > 2 and images.shape[1] != images.shape[2]:
            raise Refusal(
                f"images of {images.shape[1]} x {images.shape[2]} pixels: a turn by "
                f"{360 / group.rotations:g} degrees needs square ones. Crop them."
            )
        moved = [planar.transform(group, g, images) for g in range(group.order)]

        def mean(y: Array) -> Array:
            parts = jnp.split(y, group.order)
            if y.ndim == 4:
                parts = [back(group, int(group.inverse[g]), p) for g, p in enumerate(parts)]
            return sum(parts[1:], parts[0]) / group.order

        return jax.tree.map(mean, fn(jnp.concatenate(moved)))

    return averaged
