"""One battery for all methods that train a backbone from pairs of views, and for online heads."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import names
from jaxequi.groups import relation as relations
from jaxequi.methods import with_online_heads
from jaxequi.nn.norm import BatchNorm
from jaxequi.train import mesh as meshes
from jaxequi.types import Progress, collections

BATCH, SIZE, FEATURES, CLASSES = 16, 6, 8, 5
NTXENT, VICREG = {"name": "ntxent"}, {"name": "vicreg"}
METHODS = {
    "sie": ("sie", {"equi": 3, "relation": "rotation+color"}),
    "sie_mlp": ("sie", {"equi": 3, "predictor": {"name": "mlp"}, "vary_prediction": False}),
    "only_equi": ("only_equi", {"objective": {**VICREG, "vary_prediction": True}}),
    "vicreg": ("vicreg", {"free": 4}),
    "simclr": ("simclr", {}),
    "equimod": ("equimod", {"objective": VICREG, "equivariance_factor": 0.5}),
    "equimod_ntxent": ("equimod", {"objective": NTXENT, "relation": "all"}),
    "augself": ("augself", {"objective": NTXENT}),
}
ELSEWHERE = {
    **dict.fromkeys(
        ("moco", "byol", "simsiam"), "views pass networks of their own: methods/test_siamese.py"
    ),
    **dict.fromkeys(
        ("ipirm", "ipirm_mixup"), "it keeps an environment of each example: methods/test_ipirm.py"
    ),
    "eqinv": "it has labels and a table: methods/test_eqinv.py, experiment/test_before.py",
    "mae": "it has one view, of which it hides parts: methods/test_mae.py",
    "linear": "it trains no backbone: tests/methods/test_linear.py",
    "supervised": "it has one view and no embedding: tests/methods/test_supervised.py",
}
every_method = pytest.mark.parametrize("name", METHODS)
PROGRESS = Progress(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))


class Backbone(nn.Module):
    """A convolution with BatchNorm, of width 8."""

    features: int = FEATURES

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.features, (3, 3))(images)
        return nn.relu(BatchNorm()(x, use_running_average=not train)).mean((1, 2))


def make(name, **more):
    file, arguments = METHODS[name]
    make = names.find("methods", file)
    return make(backbone=Backbone(), projector="12-10", **arguments, **more)


def a_batch(size=BATCH, seed=0):
    random = np.random.default_rng(seed)
    return {
        "views": random.normal(size=(size, 2, SIZE, SIZE, 3)).astype(np.float32),
        "label": random.integers(0, CLASSES, size).astype(np.int32),
        "latent": random.uniform(-1, 1, (size, 2, 7)).astype(np.float32),
    }


@functools.cache
def method_of(name, kind="float32"):
    """A method of the battery; of kind "bfloat16", or "online", with heads beside it."""
    if kind == "online":
        return with_online_heads(
            method_of(name),
            num_classes=CLASSES,
            features=("representation", "embedding"),
            relation="rotation",
        )
    return make(name, dtype=jnp.dtype(kind))


@functools.cache
def gradient(name, kind="float32"):
    """(params, extra, batch) -> ((loss, output), gradient), compiled once."""

    def step(params, extra, batch):
        loss = jax.value_and_grad(method_of(name, kind).loss, has_aux=True)
        return loss(params, extra, batch, jax.random.key(2), PROGRESS)

    return jax.jit(step)


@functools.cache
def stepped(name):
    """A method, its start, and loss, output and gradient on the first batch."""
    method = method_of(name)
    params, extra = jax.jit(method.init)(jax.random.key(1), a_batch())
    return method, params, extra, gradient(name)(params, extra, a_batch())


def test_every_file_is_in_the_battery_or_covered_elsewhere():
    files = {file for file, _ in METHODS.values()}
    assert files | set(ELSEWHERE) == set(names.choices("methods"))
    assert not files & set(ELSEWHERE)


@every_method
def test_loss_features_and_state(name):
    method, params, extra, ((loss, output), grads) = stepped(name)
    assert loss.dtype == jnp.float32
    assert np.isfinite(loss)
    assert all(np.isfinite(value) and value.shape == () for value in output.metrics.values())
    features = {name: feature.shape for name, feature in output.features.items()}
    assert features["representation"] == (BATCH, 2, FEATURES)
    assert features["embedding"][:2] == (BATCH, 2)
    assert set(method.parts) <= set(features)
    for feature, (inv, equi) in method.parts.items():
        assert features[feature][-1] == inv + equi
    assert all(feature.dtype == jnp.float32 for feature in output.features.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, grads)))
    # Of any dtype, but the same after every step: a queue has a pointer, a table may be of bits.
    assert jax.tree.structure(output.extra) == jax.tree.structure(extra)
    for before, after in zip(jax.tree.leaves(extra), jax.tree.leaves(output.extra)):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    # What is not the method's own can be handed to flax.
    assert set(collections(extra)) <= {"batch_stats"}


@every_method
def test_gradient_reaches_every_module(name):
    grads = stepped(name)[-1][1]
    assert {"backbone"} < set(grads)
    for module, tree in grads.items():
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree)) > 1e-5, module


@every_method
def test_running_statistics_take_both_views_in_order(name):
    _, params, _, ((_, output), _) = stepped(name)
    views = a_batch()["views"]
    conv = params["backbone"]["Conv_0"]
    expected = np.zeros(FEATURES)
    for view in (0, 1):
        maps = nn.Conv(FEATURES, (3, 3)).apply({"params": conv}, views[:, view])
        expected = 0.9 * expected + 0.1 * maps.mean((0, 1, 2))
    found = output.extra["batch_stats"]["backbone"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@every_method
def test_one_device_equals_eight(name):
    _, params, extra, ((loss, output), grads) = stepped(name)
    mesh = meshes.make_mesh(data=4, fsdp=2)
    batch = meshes.to_global(mesh, a_batch(), BATCH)
    state = jax.device_put((params, extra), meshes.replicated(mesh))
    (spread_loss, spread_output), spread_grads = gradient(name)(*state, batch)
    np.testing.assert_allclose(spread_loss, loss, rtol=2e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for one, eight in zip(jax.tree.leaves(grads), jax.tree.leaves(spread_grads)):
        np.testing.assert_allclose(eight, one, rtol=1e-3, atol=2e-5 * largest)
    for one, eight in zip(jax.tree.leaves(output.extra), jax.tree.leaves(spread_output.extra)):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-6)


@every_method
def test_encode_sees_each_view_alone_and_changes_nothing(name):
    method, params, extra, _ = stepped(name)
    views = jnp.asarray(a_batch()["views"])
    encode = jax.jit(method.encode)
    both = encode(params, extra, views)
    assert {"representation", "embedding"} <= set(both)
    assert ("predictable" in both) == (method.predict is not None)
    for feature in both:
        assert both[feature].shape[:2] == (BATCH, 2)
        for view in (0, 1):
            alone = encode(params, extra, views[:4, view : view + 1])[feature]
            np.testing.assert_allclose(alone[:, 0], both[feature][:4, view], atol=1e-6)


@every_method
def test_predict_is_what_the_loss_compares(name):
    method, params, extra, ((_, output), _) = stepped(name)
    predicts = {"sie", "only_equi", "equimod"} & {METHODS[name][0]}
    assert (method.predict is not None) == (method.relation is not None) == bool(predicts)
    if predicts:
        inv, equi = method.parts["embedding"]
        embedding = output.features["embedding"][:, :, inv:]
        z = relation_of(name).between({k: jnp.asarray(v) for k, v in a_batch().items()})
        prediction = method.predict(params, extra, embedding[:, 0], z)
        assert prediction.shape == (BATCH, equi)
        if "ntxent" not in name:
            error = np.mean(np.square(prediction - embedding[:, 1]))
            np.testing.assert_allclose(error, output.metrics["loss/equivariance"], rtol=1e-4)


def relation_of(name):
    return relations.relation(METHODS[name][1].get("relation", "rotation"))


@every_method
def test_pairs_draw_together_in_twenty_steps(name):
    """Or, without an invariant part, the prediction and what it predicts."""
    _, params, extra, _ = stepped(name)
    shown = "loss/equivariance" if METHODS[name][0] == "only_equi" else "loss/invariance"
    momentum, seen = jax.tree.map(jnp.zeros_like, params), []
    for _ in range(20):
        (_, output), grads = gradient(name)(params, extra, a_batch())
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        params = jax.tree.map(lambda p, m: p - 0.01 * m, params, momentum)
        extra = output.extra
        seen.append(float(output.metrics[shown]))
    assert min(seen[-3:]) < 0.9 * seen[0]


@every_method
def test_online_heads_leave_the_method_as_it_was(name):
    method, params, extra, ((loss, output), grads) = stepped(name)
    with_heads = method_of(name, "online")
    batch = a_batch()
    shapes, _ = jax.eval_shape(with_heads.init, jax.random.key(1), batch)
    assert set(shapes) == {*params, "online"}
    random = np.random.default_rng(0)
    heads = jax.tree.map(
        lambda a: random.normal(size=a.shape).astype(np.float32) / 3, shapes["online"]
    )
    whole = {**params, "online": heads}
    (total, seen), found = gradient(name, "online")(whole, extra, batch)
    np.testing.assert_allclose(seen.metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(total, loss + seen.metrics["online/loss"], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for module, tree in grads.items():
        for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(found[module])):
            np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-5 * largest)
    assert set(output.metrics) < set(seen.metrics)
    asked = {f"label_{f}" for f in ("representation", "embedding")}
    asked |= {f"relation_{f}" for f in ("representation", "embedding")}
    for feature, (inv, equi) in method.parts.items():
        if inv and equi:  # a part that is the whole is asked once
            asked |= {f"label_{feature}-inv", f"relation_{feature}-equi"}
    assert set(found["online"]) == asked
    for leaf in jax.tree.leaves(found["online"]):
        assert np.abs(leaf).max() > 0
    if method.predict is not None:
        embedding = output.features["embedding"][:, 0, -method.parts["embedding"][1] :]
        z = relation_of(name).between({k: jnp.asarray(v) for k, v in batch.items()})
        np.testing.assert_allclose(
            with_heads.predict(whole, extra, embedding, z),
            method.predict(params, extra, embedding, z),
            rtol=1e-6,
        )


@pytest.mark.parametrize("name", ["sie", "simclr"])
def test_bfloat16_is_near(name):
    _, params, extra, ((loss, _), _) = stepped(name)
    (half, output), grads = gradient(name, "bfloat16")(params, extra, a_batch())
    np.testing.assert_allclose(half, loss, rtol=0.05)
    assert output.features["embedding"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@every_method
def test_bad_batches(name):
    method, batch = method_of(name), a_batch()
    with pytest.raises(ValueError, match="two views"):
        jax.eval_shape(method.init, jax.random.key(0), {**batch, "views": batch["views"][:, :1]})
    if METHODS[name][0] not in ("vicreg", "simclr"):
        for latent in (batch["latent"][:, :, :5], batch["latent"][:, 0], None):
            with pytest.raises(ValueError, match=r"\[B, 2, 7\]"):
                jax.eval_shape(method.init, jax.random.key(0), {**batch, "latent": latent})


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("sie", {"equi": 0}, "equi=0 .* use 1 to 7"),
        ("sie", {"equi": 8}, "equi=8 .* use 1 to 7"),
        ("sie", {"equi": 3, "projector": "12-x"}, "layer widths '12-x'"),
        ("sie", {"equi": 3, "projector": ""}, "at least one layer"),
        ("sie", {"equi": 1, "projector": "12-3"}, "part of 1 in 8"),
        ("sie", {"equi": 3, "relation": "rotations"}, "Did you mean 'rotation'"),
        ("sie", {"equi": 3, "predictor": {"name": "hypernet"}}, "Did you mean 'hypernetwork'"),
        ("sie", {"equi": 3, "predictor": {"name": "mlp", "layers": 0}}, "layers=0"),
        ("sie", {"equi": 3, "predictor": {"name": "mlp", "depth": 1}}, "argument of predictor"),
        ("vicreg", {"free": 10}, "use 0 to 9"),
        ("simclr", {"temperature": 0.0}, "temperature=0.0"),
        ("equimod", {"objective": {"name": "simclr"}}, "objective 'simclr'"),
        ("augself", {"objective": {"name": "ntxent", "tau": 1.0}}, "argument of objective"),
    ],
)
def test_bad_arguments(file, arguments, message):
    with pytest.raises(ValueError, match=message):
        names.find("methods", file)(backbone=Backbone(), **{"projector": "12-10", **arguments})


def test_a_share_of_a_projector_is_rounded_half_to_even():
    method = names.find("methods", "sie")(backbone=Backbone(16), equi=8, projector="27-25-21")
    params = jax.eval_shape(method.init, jax.random.key(0), a_batch())[0]
    widths = {
        part: [params[f"projector_{part}"][f"linear_{i}"]["kernel"].shape[-1] for i in range(3)]
        for part in ("inv", "equi")
    }
    assert widths == {"inv": [14, 12, 10], "equi": [14, 12, 10]}
    assert method.parts == {"representation": (8, 8), "embedding": (10, 10)}


class Dropping(nn.Module):
    """Drops half of its numbers, as a transformer drops paths."""

    features: int = FEATURES

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(self.features)(images.mean((1, 2)))
        return nn.Dropout(0.5, deterministic=not train)(x)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("simclr", {"projector": "12-10"}),
        ("moco", {"projector": "12-10", "queue": 32}),
        ("byol", {"projector": "12-10", "predictor": "12-10"}),
        ("simsiam", {"projector": "12-10", "predictor": "12-10"}),
    ],
)
def test_what_a_network_drops_is_drawn_with_the_key(name, arguments):
    method = names.find("methods", name)(backbone=Dropping(), **arguments)
    batch = a_batch()
    params, extra = method.init(jax.random.key(0), batch)

    @jax.jit
    def loss(key):
        return method.loss(params, extra, batch, key, PROGRESS)[0]

    first, again, other = (float(loss(jax.random.key(seed))) for seed in (1, 1, 2))
    assert first == again
    assert np.isfinite(first)
    assert first != other
    encoded = [method.encode(params, extra, batch["views"])["representation"] for _ in range(2)]
    np.testing.assert_array_equal(*encoded)  # nothing is dropped where it is judged
