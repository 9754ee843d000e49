"""MAE: what it sees, what it is asked for, and that devices do not matter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import names
from jaxequi.methods import mae
from jaxequi.models import vit
from jaxequi.train import mesh as meshes

BATCH, SIZE = 8, 16
WIDE = {"patch": 4, "width": 8, "depth": 2, "heads": 2}


def make(backbone=None, **more):
    backbone = vit.make(**WIDE) if backbone is None else backbone
    small = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    return names.find("methods", "mae")(backbone=backbone, **{**small, **more})


def a_batch(seed=0):
    random = np.random.default_rng(seed)
    return {"views": random.normal(size=(BATCH, 1, SIZE, SIZE, 3)).astype(np.float32)}


@functools.cache
def stepped():
    method = make()
    params, extra = jax.jit(method.init)(jax.random.key(1), a_batch())

    @jax.jit
    def gradient(params, batch):
        loss = jax.value_and_grad(method.loss, has_aux=True)
        return loss(params, extra, batch, jax.random.key(2), None)

    return method, gradient, params, extra, gradient(params, a_batch())


def test_masking_keeps_the_least_noise():
    noise = jnp.array([[0.5, 0.1, 0.9, 0.3]])
    keep, restore = mae.masking(noise, 2)
    np.testing.assert_array_equal(keep, [[1, 3]])
    # patches 0 to 3 stand third, first, last and second in the order of noise
    np.testing.assert_array_equal(restore, [[2, 0, 3, 1]])


def test_loss_features_and_gradient():
    _, _, params, extra, ((loss, output), grads) = stepped()
    assert extra == {}
    assert 0.5 < loss < 2  # of a target with variance 1
    assert output.features["representation"].shape == (BATCH, 1, 8)
    assert set(params) == {"backbone", "decoder"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Of the three parts of attention's bias that of the keys changes no softmax.
        assert np.abs(leaf).max() > 1e-7, name


def test_one_device_equals_eight():
    _, gradient, params, _, ((loss, _), grads) = stepped()
    mesh = meshes.make_mesh(data=4, fsdp=2)
    batch = meshes.to_global(mesh, a_batch(), BATCH)
    (spread, _), spread_grads = gradient(jax.device_put(params, meshes.replicated(mesh)), batch)
    np.testing.assert_allclose(spread, loss, rtol=2e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for one, eight in zip(jax.tree.leaves(grads), jax.tree.leaves(spread_grads)):
        np.testing.assert_allclose(eight, one, rtol=1e-3, atol=2e-5 * largest)


def test_the_encoder_knows_nothing_of_hidden_patches():
    net, keep = vit.make(**WIDE), jnp.tile(jnp.array([[3, 0, 9, 14]]), (BATCH, 1))
    images = jnp.asarray(a_batch()["views"][:, 0])
    encode = jax.jit(
        lambda images: net.apply({"params": stepped()[2]["backbone"]}, images, True, keep)
    )
    latent = encode(images)
    assert latent.shape == (BATCH, 5, 8)
    changed = images.at[:, 4:8, :12].set(7.0)  # row 1 of patches, columns 0 to 2: 4, 5 and 6
    np.testing.assert_array_equal(encode(changed), latent)
    seen = images.at[:, :4, :4].set(7.0)  # patch 0
    assert np.abs(encode(seen) - latent).max() > 1e-3


def test_the_encoder_pays_for_visible_patches_only():
    net = vit.make("tiny", patch=4, depth=2)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(lambda k, x: net.init(k, x, True), jax.random.key(0), images)

    def flops(kept):
        keep = jax.ShapeDtypeStruct((2, kept), jnp.int32)
        lowered = jax.jit(lambda p, x, k: net.apply(p, x, True, k)).lower(params, images, keep)
        return lowered.cost_analysis()["flops"]

    assert flops(16) < 0.27 * flops(64)  # a quarter, the class token, and attention's square


def test_a_few_steps_fill_in_more():
    _, gradient, params, _, ((first, _), _) = stepped()
    for _ in range(20):
        (loss, _), grads = gradient(params, a_batch())
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert loss < 0.97 * first


def test_encode_sees_all_patches_of_each_view():
    method, _, params, extra, _ = stepped()
    views = np.concatenate([a_batch()["views"], a_batch(1)["views"]], axis=1)
    found = jax.jit(method.encode)(params, extra, views)["representation"]
    assert found.shape == (BATCH, 2, 8)
    alone = jax.jit(method.encode)(params, extra, views[:2, 1:])["representation"]
    np.testing.assert_allclose(found[:2, 1], alone[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, "above 0 and below 1"),
        ({"mask_ratio": 0.0}, "above 0 and below 1"),
        ({"backbone": vit.make(**WIDE, pool="mean")}, "pool='token'"),
        ({"decoder_heads": 3}, "must divide the width"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_bad_batches():
    views = a_batch()["views"]
    for given, mask_ratio, message in (
        (np.concatenate([views, views], 1), 0.75, "one view"),
        (views[:, :, :15], 0.75, "resize them to 12x16"),
        (views[:, :, :4, :4], 0.75, "leaves none of 1 patches"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(make(mask_ratio=mask_ratio).init, jax.random.key(0), {"views": given})
