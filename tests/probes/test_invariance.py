"""Accuracy over the circle, and the turning itself."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxequi.groups.rotation import rotate
from jaxequi.probes.invariance import sweep


def test_the_sweep_turns_the_images():
    # an image is right where its brightest side is the top: the four quarters differ
    image = np.zeros((2, 5, 5, 1), np.float32)
    image[0, 0, 1:4] = 1  # top
    image[1, 1:4, 0] = 1  # left

    def classify(x):
        top, left = x[:, 0].sum((1, 2)), x[:, :, 0].sum((1, 2))
        return jnp.stack([top > 1.5, left > 1.5], -1).astype(jnp.float32)

    labels = np.array([0, 1])
    found = sweep(classify, image, labels, (0, 90, 180, 270), nearest=True, batch_size=1)
    # at 90 degrees the top goes left; with neither side lit the guess is class 0
    np.testing.assert_array_equal(found, [1, 0, 0.5, 0.5])


def test_quarter_turns_are_exact():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 3)), jnp.float32)
    for k in range(4):
        turned = np.rot90(x, k, (1, 2))
        np.testing.assert_array_equal(rotate(x, 90 * k, nearest=True), turned)
        np.testing.assert_allclose(rotate(x, 90 * k), turned, atol=1e-5)
