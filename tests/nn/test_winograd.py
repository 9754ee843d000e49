"""Winograd's products are XLA's convolution, in values and gradients, where they are taken."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups.planar import cyclic
from jaxequi.models import gresnet
from jaxequi.nn import conv, gconv, winograd
from jaxequi.probes.exactness import judge_network


def native(x, kernel, padding):
    windows = tuple(conv.Window(padding=pads) for pads in padding)
    return conv._native(x, kernel, windows, groups=1)


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.fixture
def eager(monkeypatch):
    """Take them from one channel and one tile on."""
    monkeypatch.setattr(conv, "_WIDE", 1)
    monkeypatch.setattr(conv, "_TILES", 1)


@pytest.mark.parametrize(
    ("sides", "padding"),
    [
        ((5, 6), ((1, 1), (1, 1))),
        ((4, 7), ((0, 0), (2, 1))),
        ((3, 3), ((0, 0), (0, 0))),
        ((8, 2), ((2, 0), (1, 0))),
    ],
)
def test_is_the_convolution_with_its_gradients(sides, padding):
    @jax.jit
    def both(x, kernel, dy):
        y, pull = jax.vjp(functools.partial(native, padding=padding), x, kernel)
        dx = winograd.image_gradient(dy, kernel, padding)
        dkernel = winograd.kernel_gradient(x, dy, padding)
        return (winograd.conv(x, kernel, padding), dx, dkernel), (y, *pull(dy))

    x, kernel = normal(2, *sides, 3), normal(3, 3, 3, 4, seed=1)
    made = [n + sum(pads) - 2 for n, pads in zip(sides, padding, strict=True)]
    with jax.enable_x64(True):
        for found, expected in zip(*both(x, kernel, normal(2, *made, 4, seed=2)), strict=True):
            assert found.shape == expected.shape
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_makes_16_products_of_the_36_of_a_tile():
    program = jax.jit(functools.partial(winograd.conv, padding=((1, 1), (1, 1))))
    text = program.lower(jnp.zeros((2, 6, 6, 5)), jnp.zeros((3, 3, 5, 7))).as_text()
    assert text.count("stablehlo.dot_general") == 16
    assert text.count("tensor<18x5xf32>, tensor<5x7xf32>") == 16  # 18 tiles of 2 x 2


def test_rounds_like_the_convolution():
    x, kernel = normal(2, 16, 16, 64), normal(3, 3, 64, 64, seed=1) / 24
    pads = ((1, 1), (1, 1))
    with jax.enable_x64(True):
        exact = np.asarray(native(x, kernel, pads))
    largest = np.abs(exact).max()
    for dtype, allowed in ((jnp.float32, 2e-6), (jnp.bfloat16, 5e-3)):
        given = x.astype(dtype), kernel.astype(dtype)
        found, rounded = winograd.conv(*map(jnp.asarray, given), pads), native(*given, pads)
        assert found.dtype == dtype
        error, usual = (np.abs(np.asarray(a, np.float64) - exact).max() for a in (found, rounded))
        assert error < allowed * largest
        assert error < 4 * usual


def test_a_cpu_takes_them_where_they_pay():
    window = conv.Window(padding=(1, 1))
    pays = functools.partial(conv.winograd_pays, windows=(window, window))
    assert pays((16, 32, 32, 64), (3, 3, 64, 64))
    assert not pays((16, 32, 32, 32), (3, 3, 32, 64))
    assert not pays((16, 8, 8, 256), (3, 3, 256, 256))  # 256 tiles
    assert not pays((16, 32, 32, 64), (5, 5, 64, 64))
    assert not pays(("b", 32, 32, 64), (3, 3, 64, 64))
    assert not pays((512, 1, 1, 64), (3, 3, 64, 64), windows=(conv.Window(),) * 2)
    for other in (conv.Window(2), conv.Window(dilation=2), conv.Window(padding=(3, 3))):
        assert not pays((16, 32, 32, 64), (3, 3, 64, 64), windows=(window, other))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_the_domain_of_a_layer_takes_them(eager, dtype):
    layer = gconv.GroupConv(2, cyclic(4), padding=1, dtype=dtype)
    x = jnp.asarray(normal(1, 5, 5, 4), dtype)
    params = layer.init(jax.random.key(0), x)

    def gradient(domain):
        def both(params, x):
            y, pull = jax.vjp(layer.clone(domain=domain).apply, params, x)
            return y, pull(y)

        return jax.jit(both)

    assert "custom_vjp" in str(jax.make_jaxpr(layer.clone(domain="fourier").apply)(params, x))
    assert "custom_vjp" not in str(jax.make_jaxpr(layer.apply)(params, x))
    found, expected = (jax.tree.leaves(gradient(d)(params, x)) for d in gconv.DOMAINS[::-1])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        b = np.asarray(b, np.float32)
        rounding = 1e-6 if dtype == np.float32 else 2e-2
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=rounding * np.abs(b).max())


def test_the_exactness_verdict_reads_through_them(eager):
    found = []
    for domain in gconv.DOMAINS:
        network = gresnet.GResNet(cyclic(4), (1, 1), (1, 1), domain=domain)
        verdicts = [judge_network(network, (1, n, n, 3), cyclic(4)) for n in (9, 8)]
        found.append([str(verdict) for verdict in verdicts])
    assert found[0] == found[1]
    assert "exact" in found[0][0]
    assert found[0][0] != found[0][1]


def test_one_device_equals_eight(eager):
    group = cyclic(4)
    x = normal(8, 5, 5, 4, dtype=np.float32)
    kernel = jnp.asarray(normal(3, 3, 4, 1, 2, dtype=np.float32))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    def gradient(kernel, x):
        def loss(kernel):
            return jnp.sum(jnp.sin(gconv.group_conv(x, kernel, group, domain="fourier")))

        return jax.grad(loss)(kernel)

    one = gradient(kernel, x)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        eight = gradient(kernel, split)
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5 * np.abs(one).max())
