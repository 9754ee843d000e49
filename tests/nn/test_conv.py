"""The CPU's matrix product is XLA's convolution, in values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.nn import conv

FEATURES = 25


@pytest.mark.parametrize(
    ("size", "k", "stride", "padding", "dilation"),
    [
        ((2, 2), 3, 1, (1, 1), 1),
        ((2, 1), 3, 1, (1, 1), 1),
        ((4, 3), 3, 2, (0, 1), 1),
        ((4, 4), 3, 2, (1, 1), 1),
        ((3, 4), 3, 1, (0, 0), 1),
        ((7, 8), 7, 2, (2, 3), 1),
        ((6, 6), 3, 1, (0, 0), 2),
        ((2, 2), 2, 2, (1, 1), 1),
        ((5, 4), 1, 1, (0, 0), 1),
        ((5, 4), 1, 2, (0, 0), 1),
        ((5, 4), 1, 1, (1, 0), 1),
        ((7, 3), 3, 2, (1, 1), 1),
    ],
)
def test_of_what_a_cpu_takes_for_a_product(size, k, stride, padding, dilation):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, *size, 4))
    kernel = jax.random.normal(keys[1], (k, k, 4, FEATURES))
    rows = conv.Window(stride, padding, dilation)
    columns = conv.Window(stride, padding[::-1], dilation)

    def native(x, kernel):
        return conv._native(x, kernel, (rows, columns), groups=1)

    def tiny(x, kernel):
        return conv.conv2d(x, kernel, rows, columns)

    @jax.jit
    def both(x, kernel):
        expected, expected_vjp = jax.vjp(native, x, kernel)
        got, got_vjp = jax.vjp(tiny, x, kernel)
        dy = jax.random.normal(keys[2], expected.shape)
        return (got, *got_vjp(dy)), (expected, *expected_vjp(dy))

    found = both(x, kernel)
    expected = found[1][0]
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    primitives = {eqn.primitive.name for eqn in jax.make_jaxpr(tiny)(x, kernel).eqns}
    few = max(expected.shape[1:3]) <= 2 or expected.size <= FEATURES**2
    assert (few or k == 1) == ("cond" in primitives)  # a choice by platform


@pytest.mark.parametrize(
    ("size", "k", "padding", "dilation"),
    [((6, 7), (7, 7), (3, 3), 1), ((6, 5), (3, 2), (0, 4), 1), ((9, 8), (3, 3), (1, 2), 2)],
)
def test_of_what_a_cpu_takes_for_a_sum_of_taps(size, k, padding, dilation):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, *size, 5))
    kernel = jax.random.normal(keys[1], (*k, 1, 5))
    windows = conv.Window(1, padding, dilation), conv.Window(1, padding[::-1], dilation)

    def native(x, kernel):
        return conv._native(x, kernel, windows, groups=5)

    def taps(x, kernel):
        return conv.conv2d(x, kernel, *windows, groups=5)

    @jax.jit
    def both(x, kernel):
        expected, expected_vjp = jax.vjp(native, x, kernel)
        got, got_vjp = jax.vjp(taps, x, kernel)
        dy = jax.random.normal(keys[2], expected.shape)
        return (got, *got_vjp(dy)), (expected, *expected_vjp(dy))

    for a, b in zip(*both(x, kernel)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    program = jax.make_jaxpr(taps)(x, kernel)
    assert "cond" in {eqn.primitive.name for eqn in program.eqns}  # a choice by platform
    rough = jax.jit(taps)(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert rough.dtype == jnp.bfloat16
    # sums are f32, and rounded once
    close = taps(*(a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, kernel)))
    np.testing.assert_array_equal(rough, close.astype(jnp.bfloat16))


def test_by_hand():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    window = conv.Window(stride=2)
    y = conv.conv2d(x, kernel, window, window)
    first = 0 * 1 + 1 * 2 + 4 * 3 + 5 * 4  # each step adds 2 or 8 to four pixels
    assert y[0, ..., 0].tolist() == [[first, first + 20], [first + 80, first + 100]]
