"""Every backbone is used from NNX through Flax's bridge, `flax.nnx.bridge.ToNNX`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from jaxequi import names

TINY = {
    "convnext": {"width": 16, "depths": (1, 1), "group": "d4", "drop_path": 0.1},
    "gresnet": {"architecture": "p4mresnet18", "width": 2},
    "octic_vit": {"patch": 8, "width": 32, "depth": 2, "heads": 2},
    "one_gconv": {},
    "resnet": {"architecture": "resnet10", "width": 4, "stem": "small"},
    "rotmnist": {"planes": 2},
    "steerable_resnet": {"architecture": "c4resnet18", "width": 8},
    "torchvision_resnet": {"architecture": "resnet18", "width": 4},
    "vit": {"patch": 8, "width": 16, "depth": 1, "heads": 2, "positions": "learned"},
}
NOT_OF_IMAGES = {"mae"}  # a decoder: tokens in, patches out
IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def test_the_list_is_whole():
    assert {*TINY, *NOT_OF_IMAGES} == {*names.choices("models")}


@pytest.mark.parametrize("name", TINY)
def test_shapes_of_linen(name):
    module = names.made("models", {"name": name, **TINY[name]})

    def wrapped(x):
        model = bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x, False)
        trained = model(x, True, mutable=["batch_stats"], rngs=nnx.Rngs(dropout=1))
        states = [nnx.state(model, kind) for kind in (nnx.Param, nnx.BatchStat)]
        return model(x, False), trained, *states

    def linen(x):
        return module.init_with_output(jax.random.key(0), x, False)

    seen, trained, params, statistics = jax.eval_shape(wrapped, IMAGES)
    expected, variables = jax.eval_shape(linen, IMAGES)
    assert seen == trained == expected
    for state, collection in ((params, "params"), (statistics, "batch_stats")):
        assert nnx.to_pure_dict(state) == variables.get(collection, {})


def test_values_of_linen():
    module = names.made("models", {"name": "vit", **TINY["vit"]})
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    variables = jax.jit(lambda x: module.init(jax.random.key(3), x, False))(images)

    @jax.jit
    def by_nnx(variables, x):
        model = bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x, False)
        nnx.update(model, bridge.variables.linen_vars_to_nnx_attrs(variables))
        return model(x, False)

    expected = jax.jit(lambda v, x: module.apply(v, x, False))(variables, images)
    np.testing.assert_allclose(by_nnx(variables, images), expected, rtol=1e-5, atol=1e-6)
    assert jnp.std(expected) > 0.1
