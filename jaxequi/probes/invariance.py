"""Accuracy over the whole circle: the same images turned by angle after angle.

Edixhoven, Lengyel and van Gemert (2023); the sweeps of `rotmnist/trainer.py` and
`imagenet/evaluate_rotated`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.groups.rotation import rotate
from jaxequi.types import Array

CIRCLE = tuple(range(0, 360, 10))


def sweep(
    classify: Callable[[Array], Array],
    images: np.ndarray,
    labels: np.ndarray,
    degrees: Sequence[float] = CIRCLE,
    nearest: bool = False,
    batch_size: int = 512,
) -> np.ndarray:
    """Measure the accuracy at each angle of a circle.

    Args:
      classify: images f32[B, H, W, C] -> logits f32[B, K]; jitted here.
      images: f32[N, H, W, C], normalised: what a turn brings in is 0.
      labels: i32[N].
      degrees: angles, counter-clockwise.
      nearest: turn by the nearest pixel, exact for quarter turns.
      batch_size: images at a time.

    Returns:
      f64[A], shares in [0, 1].
    """

    @jax.jit
    def right(x: Array, y: Array, angle: Array) -> Array:
        return jnp.sum(jnp.argmax(classify(rotate(x, angle, nearest)), -1) == y)

    total = np.zeros(len(degrees))
    for start in range(0, len(images), batch_size):
        x = jnp.asarray(images[start : start + batch_size])
        y = jnp.asarray(labels[start : start + batch_size])
        total += np.array([right(x, y, jnp.float32(a)) for a in degrees])
    return total / len(images)
