"""EqInv in a run: who learns from what, its table, devices, interruptions, and what it refuses."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.methods import eqinv
from jaxequi.nn.norm import BatchNorm
from jaxequi.objectives import environments
from jaxequi.train import mesh as meshes
from jaxequi.types import Progress

BATCH, CLASSES, EXAMPLES, WIDTH = 16, 5, 40, 6


class Backbone(nn.Module):
    """A convolution with BatchNorm."""

    features: int = WIDTH

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.features, (3, 3))(images)
        return nn.relu(BatchNorm()(x, use_running_average=not train)).mean((1, 2))


def make(**more):
    given = {"inv_start": 1, "projector": "6-4", **more}
    return eqinv.make(backbone=Backbone(), num_classes=CLASSES, examples=EXAMPLES, **given)


def a_batch(views=2, seed=0):
    random = np.random.default_rng(seed)
    return {
        "views": random.normal(size=(BATCH, views, 4, 4, 3)).astype(np.float32),
        "label": random.integers(0, CLASSES, BATCH).astype(np.int32),
        "index": random.permutation(EXAMPLES)[:BATCH].astype(np.int32),
    }


def at(epoch):
    return Progress(jnp.int32(0), jnp.float32(epoch), jnp.float32(0))


@functools.cache
def stepped(epoch=1, views=2, **more):
    method = make(**more)
    params, extra = jax.jit(method.init)(jax.random.key(1), a_batch(views))
    table = np.random.default_rng(3).integers(0, 2, (CLASSES, EXAMPLES)).astype(np.int8)
    extra = {**extra, "own": {"environments": jnp.asarray(table)}}
    call = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    return (
        method,
        params,
        extra,
        call,
        call(params, extra, a_batch(views), jax.random.key(2), at(epoch)),
    )


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_the_penalty_begins_with_its_epoch_and_teaches_the_mask_alone():
    _, params, extra, call, ((total, output), grads) = stepped()
    (before, early), grads_before = call(params, extra, a_batch(), jax.random.key(2), at(0.99))
    penalty = output.metrics["loss/penalty"]
    assert penalty > 1e-4
    np.testing.assert_allclose(penalty, early.metrics["loss/penalty"], rtol=1e-6)
    np.testing.assert_allclose(total - before, 10 * penalty, rtol=1e-4)
    parts = {name: jax.tree.map(jnp.subtract, grads[name], grads_before[name]) for name in grads}
    assert largest(parts.pop("mask")) > 1e-5
    assert largest(parts) == 0
    for name, tree in grads_before.items():
        assert largest(tree) > 1e-5, name
    assert {"accuracy", "mask/mean", "mask/spread", "loss/erm", "loss/contrastive"} < set(
        output.metrics
    )
    np.testing.assert_array_equal(output.extra["own"]["environments"], extra["own"]["environments"])
    assert output.features["representation"].shape == (BATCH, 2, WIDTH)
    assert 0 < output.metrics["mask/mean"] < 1


def test_without_weight_there_is_no_penalty():
    _, _, _, _, ((total, output), _) = stepped(inv_weight=0.0, inv_start=7)
    assert "loss/penalty" not in output.metrics
    np.testing.assert_allclose(
        total, output.metrics["loss/erm"] + output.metrics["loss/contrastive"], rtol=1e-6
    )


def test_of_four_views_the_hard_ones_are_named_and_the_projector_sees_the_simple_ones():
    _, params, extra, call, ((_, output), _) = stepped(views=4)
    batch = a_batch(4)
    changed = {**batch, "views": batch["views"].copy()}
    changed["views"][:, 2:] = 0
    (_, other), _ = call(params, extra, changed, jax.random.key(2), at(1))
    for name in ("loss/contrastive", "loss/penalty", "accuracy"):
        np.testing.assert_allclose(other.metrics[name], output.metrics[name], rtol=1e-6)
    assert abs(other.metrics["loss/erm"] - output.metrics["loss/erm"]) > 1e-3
    for part, same in (("projector", True), ("backbone", False)):
        left, right = (o.extra["batch_stats"][part] for o in (other, output))
        assert (largest(jax.tree.map(jnp.subtract, left, right)) == 0) == same


def test_irm_is_another_penalty():
    found = [stepped(inv=inv)[-1][0][1].metrics["loss/penalty"] for inv in ("rex", "irm")]
    assert abs(found[0] - found[1]) > 1e-3


def test_a_hard_mask_is_drawn_in_training_and_decided_in_evaluation():
    method, params, extra, call, ((_, output), grads) = stepped(activation="gumbel")
    assert params["mask"]["values"].shape == (WIDTH, 2)
    assert largest(grads["mask"]) > 1e-5
    (_, other), _ = call(params, extra, a_batch(), jax.random.key(9), at(1))
    assert abs(other.metrics["loss/erm"] - output.metrics["loss/erm"]) > 1e-4
    views = jnp.asarray(a_batch()["views"])
    kept = np.argmax(params["mask"]["values"], axis=1)
    x = jax.jit(method.encode)(params, extra, views)
    masked = kept * x["representation"]
    unit = 10 * masked / np.maximum(np.linalg.norm(masked, axis=-1, keepdims=True), 1e-12)
    head = params["classifier"]
    np.testing.assert_allclose(x["logits"], unit @ head["kernel"] + head["bias"], atol=1e-4)


def test_one_device_equals_eight():
    _, params, extra, call, ((loss, output), grads) = stepped()
    mesh = meshes.make_mesh(data=4, fsdp=2)
    batch = meshes.to_global(mesh, a_batch(), BATCH)
    state = jax.device_put((params, extra), meshes.replicated(mesh))
    (spread, found), spread_grads = call(*state, batch, jax.random.key(2), at(1))
    np.testing.assert_allclose(spread, loss, rtol=2e-5)
    np.testing.assert_allclose(
        found.metrics["loss/penalty"], output.metrics["loss/penalty"], rtol=1e-4
    )
    for one, eight in zip(jax.tree.leaves(grads), jax.tree.leaves(spread_grads)):
        np.testing.assert_allclose(eight, one, rtol=1e-3, atol=2e-5 * largest(grads))


def test_the_refit_fills_the_table_by_the_global_index():
    method, _, extra, _, _ = stepped()
    random = np.random.default_rng(5)
    rows = random.permutation(EXAMPLES)[: EXAMPLES - 2]  # two could not be read
    features = random.normal(size=(len(rows), 1, WIDTH)).astype(np.float32)
    labels = np.arange(len(rows)) % CLASSES
    given = {"representation": features, "label": labels, "index": rows}
    table = method.refit.fn(extra, given, jax.random.key(0))["own"]["environments"]
    expected = environments.assign(features[:, 0], labels, CLASSES)
    np.testing.assert_array_equal(table[:, rows], expected)
    missing = np.setdiff1d(np.arange(EXAMPLES), rows)
    np.testing.assert_array_equal(table[:, missing], environments.OWN_CLASS)
    assert method.refit.every_epochs == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inv": "irmv1"}, "Did you mean 'irm'"),
        ({"activation": "sigmoidal"}, "Did you mean 'sigmoid'"),
        ({"projector": ""}, "such as '512-128'"),
        ({"inv_start": 50, "epochs": 50.0}, "before the end of the run, 50 epochs"),
        ({"inv_start": -1}, "from 0 on"),
        ({"inv_weight": -1.0}, "not below 0"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(Refusal, match=message):
        make(**given)


def test_a_table_of_other_data_or_another_network_is_refused_while_shapes_are_traced(tmp_path):
    file = tmp_path / "table.npz"
    table = environments.assign(
        np.random.default_rng(0).normal(size=(EXAMPLES, 3)).astype(np.float32),
        np.arange(EXAMPLES) % CLASSES,
        CLASSES,
    )
    digests = {"start_digest": "network", "data_digest": "data"}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), a_batch())
    for saved, message in (
        (environments.Saved(table, "network", "other data"), "leave environments_from empty"),
        (environments.Saved(table[:, 1:], "network", "data"), "of 39 examples of 5 classes"),
        (environments.Saved(table, "another", "data"), "made by another network"),
    ):
        environments.save(file, saved)
        method = make(environments_from=str(file), **digests)
        with pytest.raises(Refusal, match=message):
            jax.eval_shape(method.init, jax.random.key(0), shapes)
    for start in ("network", ""):  # "": of no network, such as known contexts
        environments.save(file, environments.Saved(table, start, "data"))
        method = make(environments_from=str(file), **digests)
        _, extra = jax.eval_shape(method.init, jax.random.key(0), shapes)
        given = {"representation": None, "label": np.arange(EXAMPLES) % CLASSES}
        found = method.refit.fn({**extra, "own": {}}, given, jax.random.key(0))
        np.testing.assert_array_equal(found["own"]["environments"], table)


def test_other_numbers_of_views_are_refused():
    with pytest.raises(Refusal, match="two hard ones behind them"):
        make().init(jax.random.key(0), a_batch(views=3))
