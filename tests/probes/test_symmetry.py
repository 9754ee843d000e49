"""Any function of images, of whatever library: predicted, measured, and made equivariant."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.probes import certify, check, symmetrize

STRIDE = {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))}


def pure():
    """A 3x3 convolution with stride 2, ReLU, and the mean over pixels."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)

    def fn(x):
        layout = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        y = jax.lax.conv_general_dilated(x, kernel, **STRIDE, dimension_numbers=layout)
        return jax.nn.relu(y).mean((1, 2))

    return fn


def linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Conv(8, (3, 3), 2, 1)(x)).mean((1, 2))

    model = Model()
    return functools.partial(model.apply, model.init(jax.random.key(0), jnp.zeros((1, 9, 9, 3))))


def of_nnx():
    conv = nnx.Conv(3, 8, (3, 3), 2, padding=1, rngs=nnx.Rngs(0))
    return lambda x: nnx.relu(conv(x)).mean((1, 2))


def of_equinox():
    eqx = pytest.importorskip(
        "equinox", reason="equinox is another library, asked only whether ours works on it"
    )
    conv = eqx.nn.Conv2d(3, 8, 3, 2, 1, key=jax.random.key(0))

    def one(x):
        return jax.nn.relu(conv(jnp.moveaxis(x, -1, 0))).mean((1, 2))

    return jax.vmap(one)


@pytest.mark.parametrize("make", [pure, linen, of_nnx, of_equinox])
def test_any_library(make):
    fn, group = make(), dihedral(4)
    images = np.random.default_rng(1).normal(size=(2, 9, 9, 3)).astype(np.float32)
    assert certify(fn, images.shape, group).exact
    even = certify(fn, (2, 8, 8, 3), group)
    assert not even.exact
    assert even.breaks[0].reads == (8, 8)
    assert even.larger == 9
    # its strides fit, its filters have no symmetry
    before, after = (check(f, images, group, regular=False) for f in (fn, symmetrize(fn, group)))
    assert before.relative[-1].max() > 1e-2
    assert after.relative[-1].max() < 1e-6


def convnext():
    models = pytest.importorskip(
        "equimo.models.convnext", reason="equimo is another library, asked only whether ours works"
    )
    return models.ConvNeXt(3, depths=[1, 1], dims=[4, 8], num_classes=5, key=jax.random.PRNGKey(0))


def vision_transformer():
    models = pytest.importorskip(
        "equimo.models.vit", reason="equimo is another library, asked only whether ours works"
    )
    size = {"img_size": 16, "patch_size": 8, "dim": 8, "num_heads": 2, "depths": [1]}
    return models.VisionTransformer(
        in_channels=3, num_classes=5, reg_tokens=0, key=jax.random.PRNGKey(0), **size
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [(convnext, "exact if its filters are"), (vision_transformer, "not judged: the network")],
)
def test_models_of_another_library(make, says):
    """Networks of Equimo, with random weights: nothing of ours is in them."""
    model, group = make(), cyclic(4)

    @jax.jit
    def fn(images):
        see = functools.partial(model, key=jax.random.PRNGKey(0), inference=True)
        return jax.vmap(see)(jnp.moveaxis(images, -1, 1))

    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    assert says in str(certify(fn, (1, 16, 16, 3), group))
    averaged = symmetrize(fn, group)
    before, after = (check(f, images, group) for f in (fn, averaged))
    assert before.relative[-1][1:].min() > 0.1
    assert after.relative[-1].max() < 1e-6
    turned = [fn(np.rot90(images, k, (1, 2))) for k in range(4)]
    np.testing.assert_allclose(averaged(images), np.mean(turned, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group", [cyclic(2), dihedral(1), cyclic(4), dihedral(4)])
@pytest.mark.parametrize("regular", [False, True])
def test_maps_and_numbers_at_once(group, regular):
    random = np.random.default_rng(0)
    wide, tall = (9, 7) if group.rotations < 4 else (7, 7)
    mix = random.normal(size=(3, group.order)).astype(np.float32)
    slope = random.normal(size=(wide, tall, 1)).astype(np.float32)

    def fn(x):  # knows where it is, and what is before and behind
        y = (x * slope) @ mix + jnp.roll(x, 1, 2) @ mix
        return {"map": y, "sum": jnp.sum(y * slope, (1, 2))}

    averaged = jax.jit(symmetrize(fn, group, regular))
    x = random.normal(size=(2, wide, tall, 3)).astype(np.float32)
    y = averaged(x)
    assert y["map"].shape == (2, wide, tall, group.order)
    act = planar.act_on_field if regular else planar.act
    for g in range(1, group.order):
        moved = averaged(planar.act(group, g, x))
        np.testing.assert_allclose(moved["map"], act(group, g, np.asarray(y["map"])), atol=2e-6)
        np.testing.assert_allclose(moved["sum"], y["sum"], rtol=1e-5, atol=1e-5)
    again = jax.jit(symmetrize(averaged, group, regular))(x)
    np.testing.assert_allclose(again["map"], y["map"], atol=2e-6)


def test_refuses():
    with pytest.raises(ValueError, match="6 x 7 pixels: a turn by 90 degrees needs square ones"):
        symmetrize(lambda x: x, cyclic(4))(jnp.zeros((1, 6, 7, 1)))
    with pytest.raises(ValueError, match="3 channels are no whole number"):
        symmetrize(lambda x: x, cyclic(4), regular=True)(jnp.zeros((1, 6, 6, 3)))
