"""MoCo, BYOL and SimSiam: one battery, and the laws of queue, target network and shuffling."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import names
from jaxequi.methods import _siamese
from jaxequi.nn.norm import BatchNorm
from jaxequi.train import mesh as meshes
from jaxequi.train import optim
from jaxequi.train.state import initialise
from jaxequi.train.step import make_train_step
from jaxequi.types import Progress

BATCH, SIZE, FEATURES, QUEUE = 16, 6, 8, 40
PLUS = {
    "projector": "12-10",
    "predictor": "12-10",
    "batch_norm": True,
    "symmetric": True,
    "shuffle": False,
    "momentum": 0.99,
    "momentum_schedule": "cosine",
}
METHODS = {
    "moco_v1": ("moco", {"queue": QUEUE, "projector": "10", "temperature": 0.07}),
    "moco_v2": ("moco", {"queue": QUEUE, "projector": "12-10"}),
    "moco_v2plus": ("moco", {"queue": QUEUE, **PLUS}),
    "s_moco_v2plus": ("moco", {"queue": QUEUE, **PLUS, "last_bias": False, "predict_keys": True}),
    "byol": ("byol", {"projector": "12-10", "predictor": "12-10"}),
    "simsiam": ("simsiam", {"projector": "12-12-10", "predictor": "6-10"}),
}
TARGETS = [name for name in METHODS if name != "simsiam"]
TWO = [name for name in METHODS if name not in ("moco_v1", "moco_v2")]
every_method = pytest.mark.parametrize("name", METHODS)


def progress(fraction):
    return Progress(jnp.int32(0), jnp.float32(0), jnp.float32(fraction))


class Backbone(nn.Module):
    """A convolution with BatchNorm of four groups, of width 8."""

    features: int = FEATURES
    groups: int = 4

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.features, (3, 3))(images)
        return nn.relu(BatchNorm(groups=self.groups)(x, not train)).mean((1, 2))


def make(name, groups=4, **more):
    file, arguments = METHODS[name]
    backbone = Backbone(groups=groups)
    return names.find("methods", file)(backbone=backbone, **{**arguments, **more})


def a_batch(seed=0):
    random = np.random.default_rng(seed)
    return {"views": random.normal(size=(BATCH, 2, SIZE, SIZE, 3)).astype(np.float32)}


@functools.cache
def stepped(name):
    """A method, its gradient, its start, and what the gradient gives on the first batch."""
    method = make(name)
    params, extra = jax.jit(method.init)(jax.random.key(1), a_batch())

    @jax.jit
    def gradient(params, extra, batch):
        loss = jax.value_and_grad(method.loss, has_aux=True)
        return loss(params, extra, batch, jax.random.key(2), progress(0))

    return method, gradient, params, extra, gradient(params, extra, a_batch())


@every_method
def test_loss_features_and_state(name):
    _, _, _, extra, ((loss, output), _) = stepped(name)
    assert np.isfinite(loss)
    assert all(np.isfinite(value) and value.shape == () for value in output.metrics.values())
    views = 2 if name in TWO else 1
    assert output.features["representation"].shape == (BATCH, views, FEATURES)
    assert output.features["embedding"].shape == (BATCH, views, 10)
    before, after = (jax.tree.map(lambda a: (a.shape, a.dtype), e) for e in (extra, output.extra))
    assert before == after


@every_method
def test_gradient_reaches_every_parameter_and_no_other_network(name):
    method, _, params, extra, (_, grads) = stepped(name)
    # What a bias adds to a Linear that a norm follows, the norm takes off again; and a projector's
    # last bias reaches nothing but such a Linear.
    unlearnt = {"projector/linear_0/bias", "projector/linear_1/bias", "predictor/linear_0/bias"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        dead = (path in unlearnt and name in TWO) or "Conv_0/bias" in path
        largest = np.abs(leaf).max()
        assert largest < 5e-5 if dead else largest > 1e-6, path
    floats = {k: v for k, v in extra.get("own", {}).items() if k != "pointer"}

    def of_own(own):
        more = {"own": {**extra["own"], **own}} if "own" in extra else {}
        return method.loss(params, {**extra, **more}, a_batch(), jax.random.key(2), progress(0))[0]

    for leaf in jax.tree.leaves(jax.jit(jax.grad(of_own))(floats)):
        assert not np.any(leaf)


@every_method
def test_one_device_equals_eight(name):
    _, gradient, params, extra, ((loss, output), grads) = stepped(name)
    mesh = meshes.make_mesh(data=4, fsdp=2)
    batch = meshes.to_global(mesh, a_batch(), BATCH)
    state = jax.device_put((params, extra), meshes.replicated(mesh))
    (spread_loss, spread_output), spread_grads = gradient(*state, batch)
    np.testing.assert_allclose(spread_loss, loss, rtol=2e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for one, eight in zip(jax.tree.leaves(grads), jax.tree.leaves(spread_grads)):
        np.testing.assert_allclose(eight, one, rtol=1e-3, atol=2e-5 * largest)
    for one, eight in zip(jax.tree.leaves(output.extra), jax.tree.leaves(spread_output.extra)):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=2e-6)


@every_method
def test_encode_is_evaluation_of_the_online_network(name):
    method, _, params, extra, _ = stepped(name)
    views = jnp.asarray(a_batch()["views"])
    encode = jax.jit(method.encode)
    both = encode(params, extra, views)
    assert both["representation"].shape == (BATCH, 2, FEATURES)
    assert both["embedding"].shape == (BATCH, 2, 10)
    alone = encode(params, extra, views[:3, 1:])
    for feature, found in alone.items():
        np.testing.assert_allclose(found[:, 0], both[feature][:3, 1], atol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_network_starts_as_the_online_one_and_follows_it(name):
    method, _, params, extra, ((_, output), _) = stepped(name)
    target = extra["own"]["target"]
    modules = {"backbone", "projector"} | ({"predictor"} if name == "s_moco_v2plus" else set())
    assert set(target["params"]) == modules
    for module in modules:
        jax.tree.map(np.testing.assert_array_equal, target["params"][module], params[module])
    # What it saw has changed its own statistics, and the optimizer nothing of it.
    after = output.extra["own"]["target"]
    jax.tree.map(np.testing.assert_array_equal, after["params"], target["params"])
    seen = after["batch_stats"]["backbone"]["BatchNorm_0"]["mean"]
    assert np.abs(seen).max() > 1e-3

    ones = jax.tree.map(jnp.ones_like, params)
    zero = {**output.extra["own"], "target": jax.tree.map(jnp.zeros_like, after)}
    m, cosine = (0.999, False) if name in ("moco_v1", "moco_v2") else (0.99, True)
    for fraction, expected in ((0.0, m), (0.5, (1 + m) / 2 if cosine else m), (1.0, 1.0)):
        expected = expected if cosine else m
        moved = method.update(ones, {**output.extra, "own": zero}, progress(fraction))
        for leaf in jax.tree.leaves(moved["own"]["target"]["params"]):
            np.testing.assert_allclose(leaf, 1 - expected, rtol=1e-4, atol=1e-9)
        assert not any(np.any(v) for v in jax.tree.leaves(moved["own"]["target"]["batch_stats"]))


def test_the_last_move_of_a_cosine_is_none():
    assert 1 - _siamese.share(0.99, "cosine", jnp.float32(1)) == 1


def test_the_queue_turns_around():
    _, gradient, params, extra, _ = stepped("moco_v2")
    queue = np.asarray(extra["own"]["queue"])
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-5)
    for step in range(3):
        (_, output), _ = gradient(params, extra, a_batch(step))
        own = output.extra["own"]
        rows = (step * BATCH + np.arange(BATCH)) % QUEUE
        assert own["pointer"] == (step + 1) * BATCH % QUEUE
        others = np.setdiff1d(np.arange(QUEUE), rows)
        np.testing.assert_array_equal(own["queue"][others], extra["own"]["queue"][others])
        np.testing.assert_allclose(np.linalg.norm(own["queue"][rows], axis=1), 1, rtol=1e-5)
        assert not np.any(np.isclose(own["queue"][rows], extra["own"]["queue"][rows]).all(1))
        extra = output.extra


def test_either_view_goes_into_the_queue():
    method, _, params, extra, _ = stepped("moco_v2plus")

    @jax.jit
    def kept(key):
        _, output = method.loss(params, extra, a_batch(), key, progress(0))
        return output.extra["own"]["queue"][0]

    rows = {tuple(np.round(kept(jax.random.key(seed)), 3).tolist()) for seed in range(12)}
    assert len(rows) == 2


def test_shuffling_matters_to_statistics_groups_only():
    _, _, params, extra, _ = stepped("moco_v2")

    def loss(groups, shuffle):
        method = make("moco_v2", groups, shuffle=shuffle)
        state = params, extra, a_batch(), jax.random.key(2), progress(0)
        return float(jax.jit(lambda *state: method.loss(*state)[0])(*state))

    losses = {(g, shuffle): loss(g, shuffle) for g in (1, 4) for shuffle in (False, True)}
    np.testing.assert_allclose(losses[1, True], losses[1, False], rtol=1e-5)
    assert abs(losses[4, True] / losses[4, False] - 1) > 1e-3


@pytest.mark.parametrize("name", ["moco_v2", "byol"])
def test_the_target_pass_keeps_nothing_for_the_backward_pass(name):
    """Neither if its parameters are asked for a gradient, nor more maps than its online views."""
    method, _, params, extra, _ = stepped(name)
    batch, own = a_batch(), extra["own"]
    others = {k: v for k, v in own.items() if k != "target"}

    def residuals(loss, *arguments):
        backward = jax.eval_shape(lambda *a: jax.vjp(loss, *a)[1], *arguments)
        return sorted(leaf.shape for leaf in jax.tree.leaves(backward))

    def loss(params, target):
        state = {**extra, "own": {**others, "target": target}}
        return method.loss(params, state, batch, jax.random.key(2), progress(0))[0]

    target = own["target"]
    alone = residuals(lambda p: loss(p, target), params)
    assert residuals(loss, params, target) == alone
    maps = (BATCH, SIZE, SIZE, FEATURES)

    def backbone_alone(p):
        variables = {"params": p["backbone"], "batch_stats": extra["batch_stats"]["backbone"]}
        images = batch["views"][:, 0]
        return Backbone().apply(variables, images, True, mutable=["batch_stats"])[0].sum()

    views = 2 if name in TWO else 1
    assert 0 < alone.count(maps) <= views * residuals(backbone_alone, params).count(maps)


@pytest.mark.parametrize("name", ["moco_v2plus", "simsiam"])
def test_a_state_may_be_donated_step_by_step(name):
    """No two leaves of a new state share a buffer, and views come closer in a few steps."""
    method = stepped(name)[0]
    optimizer = optim.make(
        "sgd", learning_rate=0.05, momentum=0.9, total_steps=20, batch_size=BATCH
    )
    state = jax.jit(lambda key: initialise(method, optimizer, key, a_batch()))(jax.random.key(0))
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=20, steps_per_epoch=5
    )
    step = jax.jit(step, donate_argnums=0)
    losses = []
    for _ in range(20):
        state, metrics = step(state, jax.tree.map(jnp.asarray, a_batch()))
        losses.append(float(metrics["loss"]))
    if name == "simsiam":  # a queue that fills makes a loss rise
        assert -1 <= min(losses[-3:]) < losses[0] - 0.2


def test_the_last_bias_of_simsiam_is_out_of_reach():
    _, _, params, extra, ((_, output), _) = stepped("simsiam")
    assert set(params["projector"]["linear_2"]) == {"kernel"}
    assert "norm_2" not in params["projector"]
    (bias,) = jax.tree.leaves(extra["frozen"])
    assert bias.shape == (10,)
    assert np.abs(bias).max() > 0
    jax.tree.map(np.testing.assert_array_equal, output.extra["frozen"], extra["frozen"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("moco_v2", {"temperature": 0}, "temperature=0"),
        ("moco_v2", {"queue": 0}, "queue=0"),
        ("moco_v2", {"momentum": 1.5}, "momentum=1.5"),
        ("moco_v2", {"momentum_schedule": "linear"}, "constant, cosine"),
        ("moco_v2", {"predict_keys": True}, "asks for a predictor"),
        ("moco_v2plus", {"predictor": "12-9"}, "end differently"),
        ("byol", {"projector": ""}, "at least one"),
        ("byol", {"predictor": "12-9"}, "end differently"),
        ("simsiam", {"predictor": "6-9"}, "end differently"),
        ("simsiam", {"predictor": "6-x"}, "layer widths '6-x'"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)


def test_bad_batches():
    method, batch = make("moco_v2", queue=BATCH - 1), a_batch()
    with pytest.raises(ValueError, match="two views"):
        jax.eval_shape(method.init, jax.random.key(0), {"views": batch["views"][:, :1]})
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="batch of 16 keys does not fit a queue of 15"):
        jax.eval_shape(method.loss, params, extra, batch, jax.random.key(0), progress(0))
