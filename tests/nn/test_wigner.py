"""The predictor that acts by irreps of SO(3): exact, orthogonal, and composing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

e3nn_jax = pytest.importorskip("e3nn_jax", reason="e3nn-jax is of the extra wigner")

from jaxequi.groups import quaternions
from jaxequi.nn import heads

IRREPS = "3x0e+2x1o+2x2e+1x3o"  # 3 + 6 + 10 + 7 dimensions


def rotations(count, seed=0):
    angles = np.random.default_rng(seed).uniform(-np.pi / 2, np.pi / 2, (count, 3))
    return jnp.asarray(quaternions.from_euler_xyz(angles), jnp.float32)


@jax.jit
def predict(h, z):
    return heads.WignerPredictor(IRREPS).apply({}, h, z)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_matrices_are_those_of_e3nn(degree):
    matrices = jax.jit(quaternions.to_matrix)(rotations(50))
    expected = jax.jit(e3nn_jax.Irrep(degree, 1).D_from_matrix)(matrices)
    found = jax.jit(heads.wigner, static_argnums=0)(degree, matrices)
    # e3nn goes through Euler angles, and keeps half of the digits of f32 near the poles
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_two_rotations_are_one():
    z12, z23 = rotations(40, 1), rotations(40, 2)
    h = jax.random.normal(jax.random.key(0), (40, 26))
    z13 = jax.jit(quaternions.multiply)(z12, z23)
    np.testing.assert_allclose(predict(predict(h, z12), z23), predict(h, z13), atol=5e-6)
    np.testing.assert_allclose(predict(h, -z12), predict(h, z12), atol=5e-6)  # one rotation


def test_no_rotation_changes_nothing_and_none_changes_the_length():
    h = jax.random.normal(jax.random.key(0), (5, 26))
    identity = jnp.tile(jnp.array([0.0, 0.0, 0.0, 1.0]), (5, 1))
    np.testing.assert_allclose(predict(h, identity), h, atol=1e-6)
    turned = predict(h, rotations(5))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(h, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, :3], h[:, :3])  # scalars stay


def test_it_carries_a_vector_seen_in_the_body_from_view_1_to_view_2():
    latent = np.random.default_rng(0).uniform(-1.5, 1.5, (20, 2, 7))
    pose = quaternions.from_euler_xyz(latent[..., :3])
    seen = np.swapaxes(quaternions.to_matrix(pose), -1, -2) @ np.array([0.3, -1.2, 0.5])
    z = quaternions.relative_pose(latent[:, 0], latent[:, 1])
    found = heads.WignerPredictor("1x1o").apply({}, jnp.asarray(seen[:, 0]), jnp.asarray(z))
    np.testing.assert_allclose(found, seen[:, 1], atol=1e-6)


def test_it_has_no_parameters_and_passes_the_gradient_on():
    h, z = jnp.ones((2, 26)), rotations(2)
    assert heads.WignerPredictor(IRREPS).init(jax.random.key(0), h, z) == {}
    gradient = jax.jit(jax.grad(lambda h: jnp.sum(jnp.square(predict(h, z)))))(h)
    np.testing.assert_allclose(gradient, 2 * h, atol=1e-5)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="26 dimensions, the embedding has 8"):
        predict(jnp.ones((2, 8)), rotations(2))
    with pytest.raises(ValueError, match="use relation='rotation'"):
        predict(jnp.ones((2, 26)), jnp.ones((2, 6)))
