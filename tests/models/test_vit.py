"""Vision transformers: sizes, positions, stochastic depth, rematerialisation, layer decay."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.models import mae, torchvision_resnet, vit
from jaxequi.nn import transformer

SMALL = {"patch": 4, "width": 8, "depth": 2, "heads": 2}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(net, side=224, **more):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda k, x: net.init(k, x, False, **more), jax.random.key(0), images)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("base", 85_647_360, 26_008_320),
        ("large", 303_099_904, 26_139_392),
        ("huge", 630_435_840, 26_178_124),
    ],
)
def test_published_sizes(name, encoder, decoder):
    net = vit.make(name)
    assert count(shapes(net)) == encoder
    latent = jax.ShapeDtypeStruct((1, 10, net.features), jnp.float32)
    side = 224 // net.patch
    restore = jax.ShapeDtypeStruct((1, side * side), jnp.int32)
    head = mae.make(net.patch)
    learnt = jax.eval_shape(
        lambda k, x, r: head.init(k, x, r, side, side), jax.random.key(0), latent, restore
    )
    assert count(learnt) == decoder


def test_published_sizes_of_classifiers():
    # 86 567 656 with a layer of 1000 classes
    net = vit.make("base", pool="mean", positions="learned")
    assert count(shapes(net)) == 86_567_656 - 769_000


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet50", 23_508_032), ("wide_resnet50_2", 66_834_240)]
)
def test_published_sizes_of_residual_networks(name, parameters):
    assert count(shapes(torchvision_resnet.make(name))["params"]) == parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage_widths": (8, 8)}, "one for each of 4 stages"),
        ({"dilate": (True,)}, "stages 2 to 4"),
        ({"architecture": "resnet18", "dilate": (False, False, True)}, "basic blocks cannot"),
        ({"architecture": "resnet51"}, "Did you mean"),
    ],
)
def test_bad_residual_networks(arguments, message):
    with pytest.raises(ValueError, match=message):
        torchvision_resnet.make(**arguments)


def test_positions_by_hand():
    table = transformer.sincos_positions(8, 2, 3)
    assert table.shape == (7, 8)
    assert not table[0].any()
    # row 1, column 2: sines and cosines of 2 and 2 / 100, then those of 1 and 1 / 100
    expected = [f(x) for at in (2, 1) for f in (np.sin, np.cos) for x in (at, at / 100)]
    np.testing.assert_allclose(table[1 + 5], expected, rtol=1e-6)


def test_resizing_to_the_same_grid_changes_nothing():
    table = jnp.asarray(transformer.sincos_positions(8, 5, 5))
    np.testing.assert_allclose(transformer.resize_positions(table, 5, 5), table, atol=1e-6)
    # Twice as wide, the fifth column stands at 1.75, whose neighbours 0 to 3 weigh so:
    weights = [-0.03515625, 0.26171875, 0.87890625, -0.10546875]
    ramp = jnp.concatenate([jnp.zeros((1, 1)), jnp.tile(jnp.arange(8.0), 8)[:, None]])
    wide = transformer.resize_positions(ramp, 8, 16)[1:].reshape(8, 16)
    np.testing.assert_allclose(wide[3, 4], weights @ np.arange(4), rtol=1e-6)
    # Beyond the edge it goes on: the first column stands at -0.25, between 0 and 0, 0 and 1.
    np.testing.assert_allclose(wide[3, 0], weights[3], rtol=1e-6)


def test_a_learned_table_starts_as_the_fixed_one_of_its_grid():
    images = jnp.zeros((1, 24, 16, 3))

    def started(**more):
        net = vit.make(**SMALL, positions="learned", **more)
        variables = jax.jit(lambda key: net.init(key, images, False))(jax.random.key(0))
        return variables["params"]["pos_embed"]

    table = started()
    np.testing.assert_array_equal(table[0], transformer.sincos_positions(8, 6, 4))
    table = started(position_grid=3)
    coarse = jnp.asarray(transformer.sincos_positions(8, 3, 3))
    np.testing.assert_allclose(table[0], transformer.resize_positions(coarse, 6, 4), atol=1e-6)


@pytest.mark.parametrize("pool", vit.POOLS)
def test_rematerialisation_and_bfloat16(pool, keys):
    images = jax.random.normal(next(keys), (2, 16, 16, 3))
    net = vit.make(**SMALL, pool=pool)
    variables = jax.jit(lambda key: net.init(key, images, True))(next(keys))

    def gradient(net):
        def loss(variables):
            features = net.apply(variables, images, True)
            return jnp.sum(jnp.sin(features)), features

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    grads, features = gradient(net)
    assert features.shape == (2, net.features)
    again, same = gradient(vit.make(**SMALL, pool=pool, remat=True))
    np.testing.assert_allclose(same, features, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), again, grads)
    rough = vit.make(**SMALL, pool=pool, dtype=jnp.bfloat16)
    half = jax.jit(lambda images: rough.apply(variables, images, True))(images)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, features, atol=0.1)


def test_stochastic_depth_drops_whole_branches_of_single_examples(keys):
    block = transformer.Block(heads=2, drop_path=0.5)
    x = jnp.tile(jax.random.normal(next(keys), (1, 3, 8)), (64, 1, 1))
    variables = block.init(next(keys), x, False)
    y = block.apply(variables, x, True, rngs={"dropout": next(keys)})
    moved = np.asarray(y - x)
    untouched = np.sum(np.abs(moved).max((1, 2)) == 0)
    assert 6 < untouched < 28  # a quarter of 64
    # An example is one of four: with both branches, either, or none.
    assert len({tuple(np.round(m.ravel(), 4)) for m in moved}) == 4
    np.testing.assert_array_equal(
        block.apply(variables, x, False), transformer.Block(heads=2).apply(variables, x, True)
    )


def test_layer_decay():
    factors = vit.layer_decay(depth=2, decay=0.5)

    def of(path):
        return next(factor for pattern, factor in factors if re.search(pattern, path))

    assert of("backbone/pos_embed") == of("backbone/patch_embed/kernel") == 0.125
    assert of("backbone/blocks_0/attn/qkv/kernel") == 0.25
    assert of("backbone/blocks_1/norm1/scale") == 0.5
    assert of("backbone/fc_norm/scale") == of("classifier/kernel") == 1


def test_ten_blocks_are_told_apart():
    factors = vit.layer_decay(depth=12, decay=0.5)
    first = next(f for p, f in factors if re.search(p, "backbone/blocks_1/norm1/scale"))
    tenth = next(f for p, f in factors if re.search(p, "backbone/blocks_11/norm1/scale"))
    assert (first, tenth) == (0.5**11, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "bace"}, "Did you mean 'base'"),
        ({"pool": "max"}, "There is: mean, token"),
        ({"positions": "none"}, "There is: fixed, learned"),
        ({"heads": 5}, "must divide the width"),
        ({"drop_path": 1.0}, "probability below 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        vit.make(**arguments)


def test_hidden_patches_ask_for_a_norm_of_every_token():
    net = vit.make(**SMALL, pool="mean")
    keep = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match="pool='token'"):
        jax.eval_shape(
            lambda k: net.init(k, jnp.zeros((1, 8, 8, 3)), True, keep), jax.random.key(0)
        )
