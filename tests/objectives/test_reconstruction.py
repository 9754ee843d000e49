"""Hidden patches, by hand; and cosines and shared targets beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.nn import transformer
from jaxequi.objectives import classification, reconstruction, regression


def test_only_hidden_patches_count():
    patches = jnp.array([[[0.0, 2.0], [1.0, 1.0]], [[5.0, 5.0], [0.0, 4.0]]])
    prediction = jnp.zeros_like(patches)
    hidden = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    error = reconstruction.masked_patch_error(prediction, patches, hidden, normalize=False)
    np.testing.assert_allclose(error, (2.0 + 8.0) / 2)


def test_a_normalised_target_has_mean_0_and_variance_1():
    patches = jnp.array([[[0.0, 2.0, 4.0]]])  # variance 4 with n - 1
    ones = jnp.ones((1, 1))
    exact = jnp.array([[[-1.0, 0.0, 1.0]]])
    error = reconstruction.masked_patch_error(exact, patches, ones)
    np.testing.assert_allclose(error, 0, atol=1e-12)
    blank = reconstruction.masked_patch_error(exact, jnp.ones((1, 1, 3)), ones)
    np.testing.assert_allclose(blank, 2 / 3, rtol=1e-6)


def test_patches_by_hand():
    image = jnp.arange(4 * 4 * 3.0).reshape(1, 4, 4, 3)
    patches = transformer.patchify(image, 2)
    np.testing.assert_array_equal(patches[0, 1], image[0, :2, 2:].ravel())
    np.testing.assert_array_equal(transformer.unpatchify(patches, 4, 4), image)
    with pytest.raises(ValueError, match="resize them to 3x3"):
        transformer.patchify(image, 3)


def test_cosine_similarity_knows_no_length():
    a, b = jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(regression.cosine_similarity(a, b), 0.5**0.5 / 2, rtol=1e-6)
    assert np.isfinite(jax.grad(regression.cosine_similarity)(a, b)).all()


def test_a_target_of_one_class_is_its_label():
    logits = jnp.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
    labels = jnp.array([2, 0])
    np.testing.assert_allclose(
        classification.soft_cross_entropy(logits, jax.nn.one_hot(labels, 3)),
        classification.cross_entropy(logits, labels),
        rtol=1e-6,
    )
