"""The Pallas kernel equals transform, function and transform back; run by Pallas' interpreter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups.fourier import planes
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.nn import fourier, fused
from jaxequi.nn.transformer import gelu
from jaxequi.train import mesh as meshes


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def cube(x):
    return x * x * x


# Tokens that fill no block, more than one block of them, blocks of channels, images. Of millions of
# numbers in several blocks XLA's CPU compiler gets a few wrong: GELU's slope, where the kernel
# is interpreted, by 1e-4 in two of a million (JAX 0.12; the same numbers are right elsewhere).
CASES = [(gelu, dihedral(4), (2, 5, 3)), (cube, dihedral(4), (1, 2, 275, 512))]
CASES += [(gelu, cyclic(4), (2, 3, 20, 128))]
GROUPS = (Group(1), dihedral(1), cyclic(3), dihedral(2), dihedral(8))
CASES += [(gelu, g, (2, 18, 4)) for g in GROUPS]


def named(value):
    return getattr(value, "name", None) or getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("function", "group", "shape"), CASES, ids=named)
def test_kernel_equals_the_layer_with_its_gradient(function, group, shape):
    x, cotangent = (normal(group.order, *shape, seed=seed) for seed in (0, 1))

    def both(layer):
        y, pull = jax.vjp(layer, x)
        return y, *pull(cotangent)

    found = both(lambda x: fused.pointwise(function, x, group, interpret=True))
    expected = both(lambda x: fourier.pointwise(function, x, group))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_half_precision_errs_by_its_rounding_of_the_result_alone():
    x = normal(8, 2, 7, 16, dtype=jnp.bfloat16)
    expected = fourier.pointwise(gelu, x.astype(jnp.float32), dihedral(4))
    found = fused.pointwise(gelu, x, dihedral(4), interpret=True)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("group", "additions"),
    [(Group(1), 0), (dihedral(1), 2), (cyclic(4), 6), (dihedral(2), 8), (dihedral(4), 24)],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_butterfly_is_the_transform_in_few_additions(group, additions):
    factors = fused._factors(group)
    product = functools.reduce(lambda done, factor: factor @ done, factors)
    np.testing.assert_allclose(product, planes(group).matrix, rtol=0, atol=1e-14)
    assert sum(np.count_nonzero(f) - len(f) for f in factors) == additions


def mlp(fuse):
    return fourier.MLP(32, dihedral(4), fuse=fuse)


def test_where_there_is_no_tpu_nothing_is_different():
    x = normal(8, 2, 5, 16)
    params = mlp(False).init(jax.random.key(0), x)
    np.testing.assert_array_equal(mlp(True).apply(params, x), mlp(False).apply(params, x))


@pytest.mark.parametrize(("devices", "kernels"), [(1, 1), (2, 1), (3, 0)])
def test_each_device_of_tpus_runs_the_kernel_on_its_own_examples(devices, kernels):
    """XLA cannot split it; where the batch does not divide, XLA's own form is taken."""
    x = normal(8, 2, 5, 16)
    params = mlp(True).init(jax.random.key(0), x)
    mesh = meshes.make_mesh(devices=devices)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(mlp(True).apply).trace(params, x)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == kernels
    if kernels:
        rows = 2 // devices
        assert f"tensor<8x{rows}x5x32xf32>) -> tensor<8x{rows}x5x32xf32>" in text
