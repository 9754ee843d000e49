"""Quaternions agree with scipy, sign included, in numpy and in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxequi.groups import quaternions

HALF_PI = np.pi / 2
TOLERANCE = {"numpy": 1e-12, "jax": 2e-6}


def random_angles(n, seed=0, limit=HALF_PI):
    return np.random.default_rng(seed).uniform(-limit, limit, (n, 3))


def random_quaternions(n, seed=0):
    return Rotation.random(n, rng=np.random.default_rng(seed)).as_quat()


@pytest.fixture(params=["numpy", "jax"])
def kind(request):
    return request.param


def as_kind(kind, array):
    return array if kind == "numpy" else jnp.asarray(array, jnp.float32)


def close(kind, actual, expected):
    assert isinstance(actual, np.ndarray if kind == "numpy" else jax.Array)
    assert actual.dtype == (np.float64 if kind == "numpy" else np.float32)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[kind])


def test_from_euler_has_the_sign_of_scipy(kind):
    angles = random_angles(2000)
    expected = Rotation.from_euler("xyz", angles).as_quat()
    actual = quaternions.from_euler_xyz(as_kind(kind, angles))
    close(kind, actual, expected)
    assert np.all(np.asarray(actual)[:, 3] >= 0)


def test_quarter_turns_by_hand():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(quaternions.from_euler_xyz([HALF_PI, 0, 0]), [half, 0, 0, half])
    # x is turned first about the fixed axis x, and only then z: e_y -> e_z -> e_z.
    matrix = quaternions.to_matrix(quaternions.from_euler_xyz([HALF_PI, 0, HALF_PI]))
    np.testing.assert_allclose(matrix @ [0, 1, 0], [0, 0, 1], atol=1e-15)


def test_relative_keeps_the_sign_of_scipy(kind):
    first, second = random_angles(4000, seed=1), random_angles(4000, seed=2)
    one, two = (Rotation.from_euler("xyz", a) for a in (first, second))
    expected = (one.inv() * two).as_quat()
    actual = quaternions.relative(
        *(quaternions.from_euler_xyz(as_kind(kind, a)) for a in (first, second))
    )
    close(kind, actual, expected)
    assert 0.03 < np.mean(np.asarray(actual)[:, 3] < 0) < 0.06


def test_multiply_conjugate_and_matrix(kind):
    p, q = random_quaternions(500, 3), random_quaternions(500, 4)
    a, b = as_kind(kind, p), as_kind(kind, q)
    product = quaternions.multiply(a, b)
    close(kind, quaternions.to_matrix(a), Rotation.from_quat(p).as_matrix())
    close(
        kind,
        quaternions.to_matrix(product),
        (Rotation.from_quat(p) * Rotation.from_quat(q)).as_matrix(),
    )
    identity = np.tile([0.0, 0, 0, 1], (500, 1))
    close(kind, quaternions.multiply(a, quaternions.conjugate(a)), identity)


def test_to_euler_inverts_from_euler(kind):
    angles = random_angles(2000, seed=5) * [2, 0.99, 2]
    actual = quaternions.to_euler_xyz(quaternions.from_euler_xyz(as_kind(kind, angles)))
    if kind == "jax":  # the angles x and z are ill-conditioned near y = pi/2
        np.testing.assert_allclose(actual, angles, atol=2e-4)
    else:
        close(kind, actual, angles)


def test_to_euler_agrees_with_scipy_on_either_sign():
    q = random_quaternions(2000, seed=6)
    expected = Rotation.from_quat(q).as_euler("xyz")
    np.testing.assert_allclose(quaternions.to_euler_xyz(q), expected, atol=1e-10)
    np.testing.assert_allclose(quaternions.to_euler_xyz(-q), expected, atol=1e-10)


@pytest.mark.parametrize("away", [0, 1e-9, 1e-7, 1e-6, 1e-4])
@pytest.mark.parametrize("sign", [1, -1])
def test_to_euler_at_the_gimbal_is_the_same_rotation(kind, sign, away):
    angles = random_angles(500, seed=9, limit=np.pi)
    angles[:, 1] = sign * (HALF_PI - away)
    q = as_kind(kind, quaternions.from_euler_xyz(angles))
    again = quaternions.to_euler_xyz(q)
    expected = Rotation.from_quat(np.asarray(q)).as_matrix()
    actual = Rotation.from_euler("xyz", np.asarray(again)).as_matrix()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[kind])
    if away == 0:  # only x - z or x + z is defined: both share it
        np.testing.assert_allclose(np.abs(again[:, 0]), np.abs(again[:, 2]), atol=1e-6)
        np.testing.assert_allclose(again[:, 1], sign * HALF_PI, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_to_euler_has_a_finite_gradient_everywhere(sign):
    half = np.sqrt(0.5)
    upright = np.array([0.1, sign * half, -0.2, half])
    upright /= np.linalg.norm(upright)
    gimbal = [[0, sign * half, 0, half], [0.5, sign * 0.5, sign * -0.5, 0.5]]
    q = jnp.asarray([gimbal[0], upright, gimbal[1], [0, 0, 0, 1], [1, 0, 0, 0]], jnp.float32)
    gradient = jax.jit(jax.vmap(jax.jacobian(quaternions.to_euler_xyz)))(q)
    assert np.isfinite(gradient).all()
    # that of x - sign z, which is defined at the gimbal too, is an arctangent's
    for (x, y, z, w), slope in zip(q[:2], gradient):
        a, b = w + sign * y, sign * z - x
        along = np.array([a, sign * b, -sign * a, b]) / (a * a + b * b) * 2
        np.testing.assert_allclose(slope[0] - sign * slope[2], along, atol=1e-5)


@pytest.mark.parametrize("form", quaternions.FORMS)
def test_relative_pose_rounds_latents_to_float32_first(form):
    rng = np.random.default_rng(7)
    latents = rng.uniform(-HALF_PI, HALF_PI, (2, 3000, 7))
    one, two = (Rotation.from_euler("xyz", a[:, :3].astype(np.float32)) for a in latents)
    z = one.inv() * two
    expected = z.as_quat() if form == "quaternion" else z.as_euler("xyz")
    actual = quaternions.relative_pose(*latents, form=form)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-7)


def test_relative_pose_under_jit():
    latents = np.random.default_rng(8).uniform(-HALF_PI, HALF_PI, (2, 5, 3, 7))
    expected = quaternions.relative_pose(*latents)
    actual = jax.jit(quaternions.relative_pose)(*latents)
    assert actual.shape == (5, 3, 4)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


def test_relative_pose_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match=r"unknown form 'matrix'.*quaternion, euler"):
        quaternions.relative_pose(np.zeros(7), np.zeros(7), form="matrix")
    with pytest.raises(ValueError, match=r"got shape \(5, 2\)"):
        quaternions.relative_pose(np.zeros((5, 7)), np.zeros((5, 2)))
