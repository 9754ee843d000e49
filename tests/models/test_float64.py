"""Networks that compute in float64 do so to their end; checked by shapes, nothing is compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxequi.models import convnext, gresnet, mae, octic_vit, torchvision_resnet, vit

SMALL = {"patch": 4, "width": 8, "depth": 1, "heads": 2}
NETWORKS = {
    "convnext": lambda **dtype: convnext.make(width=16, depths=(1, 1), group="d4", **dtype),
    "convnext, invariant": lambda **dtype: convnext.make(
        width=16, depths=(1,), group="d4", invariant=True, **dtype
    ),
    "gresnet": lambda **dtype: gresnet.make("p4resnet18", width=2, **dtype),
    "torchvision_resnet": lambda **dtype: torchvision_resnet.make("resnet18", width=4, **dtype),
    "vit, token": lambda **dtype: vit.make(**SMALL, **dtype),
    "octic_vit": lambda **dtype: octic_vit.make(**SMALL | {"width": 32, "depth": 2}, **dtype),
    "octic_vit, invariant": lambda **dtype: octic_vit.make(
        **SMALL | {"width": 32}, symmetric=1, invariant=True, pool="mean", **dtype
    ),
    "vit, mean": lambda **dtype: vit.make(**SMALL, pool="mean", **dtype),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "expected"), [("float64", "float64"), ("bfloat16", "float32")])
def test_representations(name, dtype, expected):
    with jax.enable_x64(True):
        network = NETWORKS[name](dtype=dtype)
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.dtype(dtype))
        key = jax.random.key(0)
        found = jax.eval_shape(lambda k, x: network.init_with_output(k, x, False)[0], key, images)
    assert found.dtype == expected


def test_pixels_of_a_decoder():
    with jax.enable_x64(True):
        decoder = mae.make(4, width=8, depth=1, heads=2, dtype=jnp.float64)
        latent = jax.ShapeDtypeStruct((2, 5, 8), jnp.float64)
        restore = jax.ShapeDtypeStruct((2, 16), jnp.int32)
        found = jax.eval_shape(
            lambda k, x, r: decoder.init_with_output(k, x, r, 4, 4)[0],
            jax.random.key(0),
            latent,
            restore,
        )
    assert found.dtype == jnp.float64
