"""Pooling by hand numbers, its gradients at ties, and when it keeps a symmetry."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.nn.pool import avg_pool, coset_max, max_pool


def image(rows):
    return jnp.asarray(rows, jnp.float32)[None, :, :, None]


def test_hand_numbers():
    x = image([[1, 2, 3], [4, -5, 6], [-7, -8, -9]])
    assert max_pool(x, 2).ravel().tolist() == [4]
    assert max_pool(x, 2, 1).ravel().tolist() == [4, 6, 4, 6]
    assert max_pool(x, 2, ceil_mode=True).ravel().tolist() == [4, 6, -7, -9]
    assert max_pool(x, (1, 3)).ravel().tolist() == [3, 6, -7]
    assert max_pool(x, 2, 1, dilation=2).ravel().tolist() == [3]
    # the padding never wins a maximum, and counts as zeros in a mean
    assert max_pool(x, 2, padding=1).ravel().tolist() == [1, 3, 4, 6]
    assert avg_pool(x, 2, padding=1).ravel().tolist() == [0.25, 1.25, -0.75, -4]
    assert avg_pool(x, 3).item() == pytest.approx(-13 / 9)


def test_of_ties_the_first_gets_the_gradient():
    x = image([[0, 1, 1], [0, 1, 0], [0, 0, 0]])
    gradient = jax.grad(lambda x: max_pool(x, 3).sum())(x)
    assert gradient.ravel().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    gradient = jax.grad(lambda x: coset_max(x, cyclic(4)).sum())(jnp.asarray([3.0, 7, 7, 1]))
    assert gradient.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(("n", "window", "strides", "padding"), [(9, 3, 2, 1), (8, 2, 2, 0)])
def test_gradient_is_that_of_xla(n, window, strides, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, n, n, 3)), jnp.float32)

    def native(x):
        ends = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        size, step = (1, window, window, 1), (1, strides, strides, 1)
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, size, step, ends)

    y, vjp = jax.vjp(lambda x: max_pool(x, window, strides, padding), x)
    cotangent = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    expected = jax.vjp(native, x)[1](cotangent)[0]
    np.testing.assert_allclose(vjp(cotangent)[0], expected, atol=1e-6)


@pytest.mark.parametrize("group", [cyclic(4), dihedral(4)], ids=lambda g: g.name)
def test_windows_keep_the_symmetry_only_where_they_fit(group):
    for n, exact in ((8, True), (9, False)):
        x = np.random.default_rng(0).normal(size=(1, n, n, group.order)).astype(np.float32)
        for pool in (max_pool, avg_pool):
            y = np.asarray(pool(jnp.asarray(x), 2))
            moved = pool(jnp.asarray(planar.act_on_field(group, 1, x)), 2)
            error = np.abs(moved - planar.act_on_field(group, 1, y)).max()
            assert error < 1e-6 if exact else error > 0.1


def test_the_coset_maximum_is_invariant_to_the_slices():
    group = dihedral(4)
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 2 * group.order)).astype(np.float32)
    y = np.asarray(coset_max(jnp.asarray(x), group))
    assert y.shape == (1, 5, 5, 2)
    for g in range(group.order):
        moved = coset_max(jnp.asarray(planar.act_on_field(group, g, x)), group)
        np.testing.assert_array_equal(moved, planar.act(group, g, y))


def test_refuses():
    with pytest.raises(ValueError, match="smaller than the window 4"):
        max_pool(jnp.zeros((1, 3, 3, 1)), 4)
    with pytest.raises(ValueError, match="6 channels"):
        coset_max(jnp.zeros((1, 6)), cyclic(4))
