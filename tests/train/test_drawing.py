"""Drawing in loops: the same numbers from fewer generators."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.groups.planar import cyclic
from jaxequi.models.steerable_resnet import SteerableResNet
from jaxequi.train import drawing


def agree(init):
    """Draw a tree both ways, compare, and count the loops of the program."""
    key = jax.random.key(3)
    program = drawing.program(init, key, "cpu")
    found, expected = program.compile()(key), jax.jit(init)(key)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-6)
    return expected, str(jax.make_jaxpr(drawing.in_loops(init))(key)).count("random_bits")


class Stack(nn.Module):
    """Three layers that differ in key and scale alone, and others."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = nn.Dense(4, kernel_init=nn.initializers.normal(i + 1))(x)
        x = nn.remat(nn.Dense)(4)(x)
        noise = self.param("noise", lambda key: jax.random.randint(key, (3,), 0, 9))
        return nn.LayerNorm()(nn.Dense(2)(x)) + noise.sum()


def test_equal_layers_are_drawn_in_one_loop():
    def init(key):
        params = Stack().init(key, jnp.ones((1, 4)))["params"]
        # a copy, a queue that no layer knows, and a tree of constants
        queue = jax.random.normal(jax.random.fold_in(key, 7), (5, 2))
        normalised = queue / jnp.linalg.norm(queue, axis=1, keepdims=True)
        return params, params["Dense_0"], normalised, (key, jnp.zeros((), jnp.int32))

    expected, generators = agree(init)
    assert expected[0]["Dense_2"]["kernel"].std() > expected[0]["Dense_0"]["kernel"].std()
    # three alike, the one of a remat, the last, the queue, the integers
    assert generators == 5


def test_a_network_of_equal_blocks():
    network, x = SteerableResNet(cyclic(4), 2, (3,)), jnp.zeros((1, 9, 9, 3))
    assert agree(lambda key: network.init(key, x, False))[1] == 2  # the stem, and six layers
