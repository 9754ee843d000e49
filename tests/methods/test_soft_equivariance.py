"""Soft equivariance: moved pairs, the terms by hand, and maps that follow their input."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import augment, names
from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.rotation import act_each
from jaxequi.methods import with_soft_equivariance
from jaxequi.nn.norm import BatchNorm
from jaxequi.objectives import equivariance
from jaxequi.types import Progress

BATCH, PAIRS, SIZE = 8, 6, 6
D4 = planar.dihedral(4)
NOW = Progress(jnp.int32(0), jnp.float32(0), jnp.float32(0))
HEADS = {"byol": {"predictor": "6-6"}, "simsiam": {"predictor": "6-6"}, "simclr": {}, "moco": {}}


class Backbone(nn.Module):
    """A convolution that looks `side` pixels wide, with a map "layer"; its tokens are "tokens"."""

    side: int = 3
    features: int = 8

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.features, (self.side,) * 2, name="layer")(images)
        x = Tokens(name="tokens")(x)[:, 1:]
        return nn.relu(BatchNorm()(x, use_running_average=not train)).mean(1)


class Tokens(nn.Module):
    def __call__(self, x):
        rows = x.reshape(len(x), -1, x.shape[-1])
        return jnp.concatenate([jnp.full_like(rows[:, :1], 1e6), rows], axis=1)


def make(name="byol", side=3, layer="layer", **options):
    more = {"queue": 32} if name == "moco" else {}
    method = names.find("methods", name)(
        backbone=Backbone(side), projector="6-6", **HEADS[name], **more
    )
    return with_soft_equivariance(method, layer=layer, pairs=PAIRS, **options)


def a_batch(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (BATCH, 2, SIZE, SIZE, 3), dtype=np.uint8)
    moved = augment.turned_pairs(augment.make(["normalise('unit')"]), PAIRS)
    return jax.jit(moved)(jax.random.key(seed), {"views": pixels, "aug": host()}), pixels


def host():
    return {"flip": np.arange(2 * BATCH, dtype=np.float32).reshape(BATCH, 2, 1)}


def test_each_image_is_moved_by_its_own_element():
    images = np.random.default_rng(0).integers(0, 256, (8, 5, 5, 2), dtype=np.uint8)
    found = act_each(D4, jnp.arange(8), images)
    for element in range(8):
        expected = planar.act(D4, element, images[element])
        np.testing.assert_array_equal(found[element], expected)
    back = act_each(D4, jnp.asarray(D4.inverse), found)
    np.testing.assert_array_equal(back, images)
    with pytest.raises(Refusal, match="must be equal"):
        act_each(D4, jnp.zeros(1, int), np.zeros((1, 4, 5, 3)))


def test_the_last_pairs_are_moved_and_the_first_stay():
    batch, pixels = a_batch()
    views, turn = np.asarray(batch["views"]), np.asarray(batch["aug"]["turn"][..., 0], int)
    plain = augment.make(["normalise('unit')"])(jax.random.key(0), {"views": pixels})["views"]
    alone = BATCH - PAIRS
    np.testing.assert_array_equal(views[:alone], plain[:alone])
    assert not turn[:alone].any()
    for row in range(alone, BATCH):
        assert turn[row, 0] != turn[row, 1]
        for view in (0, 1):  # both are the first view's pixels
            expected = planar.act(D4, turn[row, view], np.asarray(plain[row, 0]))
            np.testing.assert_array_equal(views[row, view], expected)
    flip = np.asarray(batch["aug"]["flip"])
    np.testing.assert_array_equal(flip[:alone], host()["flip"][:alone])
    np.testing.assert_array_equal(flip[alone:, 1], host()["flip"][alone:, 0])


def test_terms_by_hand():
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(3, 2, 4)) for _ in range(2))
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    found = equivariance.squared_distance(7 * jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, np.mean(2 - 2 * np.sum(a * b, -1)), rtol=1e-5)
    terms = []
    for x, y in ((a, b), (b, a)):
        for i in range(3):
            for j in range(2):
                positive = np.exp(x[i, j] @ y[i, j] / 0.3)
                others = [m for m in range(3) if m != i]
                rest = sum(
                    np.exp(x[i, j] @ z[m, n] / 0.3) for z in (x, y) for m in others for n in (0, 1)
                )
                terms.append(-np.log(positive / (positive + rest)))
    found = equivariance.ntxent_of_places(jnp.asarray(a), jnp.asarray(b), 0.3)
    np.testing.assert_allclose(found, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize("layer", ["layer", "tokens"])
def test_maps_of_a_network_that_looks_at_single_pixels_follow(layer):
    """Its convolution is equivariant as it is; one that looks at neighbours is not."""
    batch, _ = a_batch()
    terms = {}
    for side in (1, 3):
        method = make(side=side, layer=layer)
        params, extra = jax.jit(method.init)(jax.random.key(1), batch)
        _, output = jax.jit(method.loss)(params, extra, batch, jax.random.key(2), NOW)
        terms[side] = float(output.metrics["loss/soft_equivariance"])
    assert terms[1] < 1e-6 < 0.01 < terms[3]


@pytest.mark.parametrize(
    ("name", "objective"), [("byol", "l2"), ("simsiam", "ntxent"), ("simclr", "l2")]
)
def test_the_term_adds_to_the_loss_and_falls(name, objective):
    batch, _ = a_batch()
    method = make(name, objective=objective, weight=2.0)
    params, extra = jax.jit(method.init)(jax.random.key(1), batch)
    alone = names.find("methods", name)(backbone=Backbone(), projector="6-6", **HEADS[name])

    @jax.jit
    def gradient(params):
        loss = jax.value_and_grad(method.loss, has_aux=True)
        (total, output), grads = loss(params, extra, batch, jax.random.key(2), NOW)
        return total, output.metrics["loss/soft_equivariance"], grads

    before = jax.jit(alone.loss)(params, extra, batch, jax.random.key(2), NOW)[0]
    total, first, _ = gradient(params)
    np.testing.assert_allclose(total, before + 2 * first, rtol=1e-5)
    for _ in range(30):
        _, last, grads = gradient(params)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    assert last < 0.9 * first


def test_there_is_no_second_pass():
    batch, _ = a_batch()
    batch = {**batch, "aug": {"turn": batch["aug"]["turn"]}}

    def flops(method):
        params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)

        def loss(params, extra, batch):
            return method.loss(params, extra, batch, jax.random.key(0), NOW)[0]

        lowered = jax.jit(jax.grad(loss)).lower(params, extra, batch)
        return lowered.cost_analysis()["flops"]

    wide = {"projector": "6-6", "predictor": "6-6"}
    alone = names.find("methods", "byol")(backbone=Backbone(features=64), **wide)
    softly = with_soft_equivariance(alone, layer="layer", pairs=PAIRS)
    assert 1 < flops(softly) / flops(alone) < 1.1  # a pass is a quarter of it


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("byol", {"layer": "layr"}, "Did you mean 'layer'"),
        ("byol", {"objective": "l1"}, "l2, ntxent"),
        ("byol", {"weight": 0.0}, "above 0"),
        ("moco", {}, "symmetric=True"),
    ],
)
def test_bad_input(name, options, message):
    def traced():
        batch, _ = a_batch()
        method = make(name, **options)
        params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
        jax.eval_shape(method.loss, params, extra, batch, jax.random.key(0), NOW)

    with pytest.raises(Refusal, match=message):
        traced()


class Twice(nn.Module):
    """Two layers of one name."""

    features: int = 8

    @nn.compact
    def __call__(self, images, train):
        return Backbone(name="b")(images, train) + Backbone(name="a")(images, train)


def test_a_layer_that_is_there_twice_is_refused():
    batch, _ = a_batch()
    byol = names.find("methods", "byol")(backbone=Twice(), projector="6-6", **HEADS["byol"])
    method = with_soft_equivariance(byol, layer="layer", pairs=PAIRS)
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    with pytest.raises(Refusal, match="backbone/b/layer and backbone/a/layer"):
        jax.eval_shape(method.loss, params, extra, batch, jax.random.key(0), NOW)


def test_pairs_that_a_batch_has_not():
    for views, pairs in (((2, 2, 4, 4, 3), 3), ((2, 1, 4, 4, 3), 1), ((2, 2, 4, 5, 3), 1)):
        moved = augment.turned_pairs(augment.make(["normalise('unit')"]), pairs)
        with pytest.raises(Refusal, match="soft_equivariance"):
            moved(jax.random.key(0), {"views": np.zeros(views, np.uint8)})


def test_a_predictor_of_relations_is_refused():
    sie = names.find("methods", "sie")(backbone=Backbone(), equi=3, projector="12-10")
    with pytest.raises(Refusal, match="not carried by it"):
        with_soft_equivariance(sie, layer="layer")
