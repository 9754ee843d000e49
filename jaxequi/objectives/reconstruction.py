"""How well the hidden parts of an image are filled in (MAE)."""

from __future__ import annotations

import jax.numpy as jnp

from jaxequi.types import Array


def masked_patch_error(
    prediction: Array, patches: Array, hidden: Array, normalize: bool = True
) -> Array:
    """Mean squared error over the hidden patches of the whole batch.

    He et al., CVPR 2022, section 3; facebookresearch/mae, `models_mae.py`, `forward_loss`.

    Args:
      prediction, patches: f32[N, L, P].
      hidden: f32[N, L], 1 where the encoder did not see a patch, else 0.
      normalize: take the mean off each patch, and divide by its deviation (with P - 1, and 1e-6
        added to the variance).

    Returns:
      f32[].
    """
    if normalize:
        mean = jnp.mean(patches, axis=-1, keepdims=True)
        variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
        patches = (patches - mean) / jnp.sqrt(variance + 1e-6)
    error = jnp.mean(jnp.square(prediction - patches), axis=-1)
    return jnp.sum(error * hidden) / jnp.sum(hidden)
