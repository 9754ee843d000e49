"""The relation z: the numbers that say how view 2 differs from view 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import quaternions
from jaxequi.names import unknown
from jaxequi.types import Array, Batch, Relation

# The latents of a view of 3DIEBench, in their order.
LATENTS = ("rotation_x", "rotation_y", "rotation_z", "floor_hue", "theta", "phi", "light_hue")

# Latents whose difference follows the rotation in z.
_DIFFERENCES = {
    "rotation": (),
    "rotation+color": ("floor_hue", "light_hue"),
    "all": ("floor_hue", "theta", "phi", "light_hue"),
}


def relation(given: str | Relation) -> Relation:
    """Find the relation of a name; a `Relation` is passed through.

    Those of facebookresearch/SIE, `src/dataset.py`, of two views of a scene:

      "rotation"        relative pose as a quaternion x, y, z, w (sign kept as it comes): L = 4
      "rotation+color"  and the differences of floor hue and light hue, not wrapped around: L = 6
      "all"             and the differences of all four latents of floor and light: L = 8

    They read `batch["latent"]` f32[B, 2, 7], numpy or JAX, and raise `ValueError` at another shape.

    Raises:
      ValueError: unknown name.
    """
    if isinstance(given, Relation):
        return given
    if given not in _DIFFERENCES:
        raise unknown("relation", given, _DIFFERENCES)
    differences = _DIFFERENCES[given]
    at = np.array([LATENTS.index(name) for name in differences], int)

    def between(batch: Batch) -> Array:
        latent = batch.get("latent")
        if latent is None or latent.ndim != 3 or latent.shape[1:] != (2, len(LATENTS)):
            raise Refusal(
                f"the relation {given!r} needs batch['latent'] of shape [B, 2, {len(LATENTS)}] "
                f"({', '.join(LATENTS)} of both views), not "
                f"{None if latent is None else latent.shape}. Use a source with latents, such as "
                "'scenes' or 'threedie', with two views of each example."
            )
        first, second = latent[:, 0], latent[:, 1]
        pose = quaternions.relative_pose(first, second)
        xp = jnp if isinstance(latent, jax.Array) else np
        return xp.concatenate([pose, second[:, at] - first[:, at]], axis=-1)

    return Relation(("x", "y", "z", "w", *differences), between)
