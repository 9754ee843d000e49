"""VICReg's terms: hand numbers, both ways to the covariance, and its divisor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.objectives import vicreg


def test_invariance_by_hand():
    a, b = jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 5.0]])
    np.testing.assert_allclose(vicreg.invariance(a, b), (1 + 9) / 2)


def test_variance_by_hand():
    # deviations sqrt(2 + 1e-4) > 1, which costs nothing, and sqrt(1e-4) = 0.01
    a = jnp.array([[0.0, 5.0], [2.0, 5.0]])
    np.testing.assert_allclose(vicreg.variance(a), (0 + 0.99) / 2 / 2, rtol=1e-5)


def test_covariance_by_hand():
    # centred columns (-1, 0, 1) and (-1, -1, 2): covariance 3 / 2, counted twice, over two columns
    a = jnp.array([[0.0, 0.0], [1.0, 0.0], [2.0, 3.0]])
    np.testing.assert_allclose(vicreg.covariance(a), 2.25, rtol=1e-6)
    np.testing.assert_allclose(vicreg.covariance(a, divisor=6), 2.25 / 9, rtol=1e-6)


@pytest.mark.parametrize(("rows", "width"), [(8, 16), (8, 17), (8, 15), (40, 6), (2, 9)])
def test_covariance_is_that_of_numpy_however_it_is_computed(keys, rows, width):
    scale = jnp.linspace(0.2, 3, width)
    a = 5 + jax.random.normal(next(keys), (rows, width)) * scale

    def direct(a):
        c = (a - a.mean(0)).T @ (a - a.mean(0)) / (rows - 1)
        return jnp.sum((c * (1 - jnp.eye(width))) ** 2) / width

    functions = direct, vicreg.covariance
    both = jax.jit(lambda a: [jax.value_and_grad(function)(a) for function in functions])
    (expected, gradient), (loss, ours) = both(a)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    np.testing.assert_allclose(ours, gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
    off_diagonal = np.cov(np.asarray(a, np.float64).T) * (1 - np.eye(width))
    np.testing.assert_allclose(loss, np.sum(off_diagonal**2) / width, rtol=2e-5)


@pytest.mark.parametrize("rows", [16, 40])  # over the Gram matrix where 2 N <= D, and directly
@pytest.mark.parametrize("scale", [1, 100, 1000, 1e-3])
def test_covariance_keeps_its_digits_if_one_dimension_varies_more_than_the_rest(rows, scale):
    a = np.random.default_rng(0).normal(size=(rows, 64))
    a[:, 5] *= scale
    a = a.astype(np.float32)
    centred = a.astype(np.float64) - a.mean(0, dtype=np.float64)
    c = centred.T @ centred / (rows - 1)
    np.fill_diagonal(c, 0)
    expected = np.sum(c**2) / 64
    # each entry stands twice in the sum, and each of its columns is centred
    gradient = 4 / 64 / (rows - 1) * centred @ c
    loss, ours = jax.jit(jax.value_and_grad(vicreg.covariance))(a)
    np.testing.assert_allclose(loss, expected, rtol=3e-6)
    np.testing.assert_allclose(ours, gradient, rtol=1e-5, atol=3e-6 * np.abs(gradient).max())


def test_regularization_weighs_both_views(keys):
    x, y = (jax.random.normal(next(keys), (6, 4)) / 3 for _ in range(2))

    @jax.jit
    def both(x, y):
        variance = vicreg.variance(x) + vicreg.variance(y)
        covariance = vicreg.covariance(x, 8) + vicreg.covariance(y, 8)
        return vicreg.regularization(x, y, 10.0, 3.0, batch_size=9), variance, covariance

    (loss, terms), variance, covariance = both(x, y)
    np.testing.assert_allclose(terms["variance"], variance, rtol=1e-6)
    np.testing.assert_allclose(terms["covariance"], covariance, rtol=1e-6)
    np.testing.assert_allclose(loss, 10 * variance + 3 * covariance, rtol=1e-6)


def test_one_row_has_no_variance():
    with pytest.raises(ValueError, match="two rows"):
        vicreg.variance(jnp.ones((1, 4)))
