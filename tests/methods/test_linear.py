"""Heads on a frozen network: trained together as if alone, on the right parts, scored by hand."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.methods import linear
from jaxequi.nn.norm import BatchNorm
from jaxequi.nn.stored import Stored
from jaxequi.train import optim
from jaxequi.train.state import initialise
from jaxequi.train.step import make_train_step
from jaxequi.types import OWN

WIDTH, EQUI, CLASSES = 6, 4, 3
TASKS = linear.tasks(("classification", "rotation", "color"), CLASSES)
HEADS = [linear.head(task, part, "linear", WIDTH, EQUI) for task in TASKS for part in linear.PARTS]


class Normed(nn.Module):
    """A linear layer with BatchNorm: a backbone whose statistics may drift."""

    features: int = WIDTH

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.features)(x)
        return BatchNorm(name="norm")(x, use_running_average=not train)


def of(asked, **options):
    return linear.of_heads(asked, TASKS, Stored(WIDTH), **options)


def batch(size=16, seed=0):
    random = np.random.default_rng(seed)
    return {
        "views": random.normal(size=(size, 2, WIDTH)).astype(np.float32),
        "label": random.integers(0, CLASSES, size).astype(np.int32),
        "latent": random.uniform(0, 1, (size, 2, 7)).astype(np.float32),
    }


def trained(method, start=None, steps=3):
    optimizer = optim.make("adam", learning_rate=1e-2, batch_size=16, total_steps=steps)
    step = make_train_step(
        method, optimizer, lambda key, b: b, total_steps=steps, steps_per_epoch=1
    )
    state = initialise(method, optimizer, jax.random.key(0), batch())
    if start is not None:
        params = {name: start[name] for name in state.params}
        state = state.replace(params=params, opt_state=optimizer.init(params))
    first = state.params
    for i in range(steps):
        state, metrics = step(state, batch(seed=i))
    return first, state.params, metrics


def test_heads_trained_together_go_the_way_that_they_go_alone():
    start, together, metrics = trained(of(HEADS))
    for head in HEADS:
        _, alone, scores = trained(of([head]), start)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together[head.name])):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        measured = [name for name in scores if name.endswith(head.name)]
        assert len(measured) >= 3
        for name in measured:
            np.testing.assert_allclose(scores[name], metrics[name], rtol=1e-4, atol=1e-5)


def test_a_head_reads_its_part_and_nothing_else():
    method = of(HEADS)
    params, extra = method.init(jax.random.key(0), batch())

    def output(views, head):
        return method.encode(params, extra, views)["heads"][head.name].sum()

    for head in HEADS:
        felt = np.abs(jax.grad(output)(jnp.asarray(batch()["views"]), head)).sum((0, 1)) > 0
        inv = WIDTH - EQUI
        expected = {
            "all": [True] * WIDTH,
            "invariant": [True] * inv + [False] * EQUI,
            "equivariant": [False] * inv + [True] * EQUI,
        }
        np.testing.assert_array_equal(felt, expected[head.part])


def test_targets():
    given = batch()
    np.testing.assert_array_equal(TASKS["classification"].target(given), given["label"])
    latent = given["latent"]
    hues = np.stack([latent[:, 1, 3] - latent[:, 0, 3], latent[:, 1, 6] - latent[:, 0, 6]], 1)
    np.testing.assert_allclose(TASKS["color"].target(given), hues, rtol=1e-6)
    assert TASKS["rotation"].target(given).shape == (16, 4)
    one = {**given, "latent": np.zeros((2, 2, 7))}
    one["latent"][:, :, 2] = [[np.pi, 0], [0, 1]]  # of the second view nothing is asked
    turned = linear.task("orientation", CLASSES).target(one)
    np.testing.assert_allclose(turned, [[0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-15)


def test_orientation_is_told_of_each_view():
    asked = linear.tasks(("orientation",), CLASSES)
    head = linear.head("orientation", "all", "linear", WIDTH, EQUI)
    method = linear.of_heads([head], asked, Stored(WIDTH))
    params, extra = method.init(jax.random.key(0), batch())
    assert params[head.name]["linear_0"]["kernel"].shape == (WIDTH, 4)
    views = batch()["views"]
    told = method.encode(params, extra, views)["heads"][head.name]
    swapped = method.encode(params, extra, views[:, ::-1])["heads"][head.name]
    assert told.shape == (16, 2, 4)
    np.testing.assert_allclose(told, swapped[:, ::-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rotation", "equi", "deep", 8, 4), "equivariant"),
        (("rotation", "all", "deeep", 8, 4), "deep"),
        (("rotation", "invariant", "deep", 8, 8), "no such part"),
    ],
)
def test_heads_that_do_not_exist(arguments, message):
    with pytest.raises(Refusal, match=message):
        linear.head(*arguments)


def test_what_does_not_fit_is_told():
    method = of(HEADS)
    one_view = batch() | {"views": batch()["views"][:, :1]}
    with pytest.raises(Refusal, match="needs two views"):
        method.init(jax.random.key(0), one_view)
    params, extra = method.init(jax.random.key(0), batch())
    short = batch() | {"latent": batch()["latent"][..., :5]}
    with pytest.raises(Refusal, match="these have 5"):
        method.loss(params, extra, short, None, None)
    without = {name: value for name, value in batch().items() if name != "latent"}
    for name in ("rotation", "euler", "orientation", "color"):
        with pytest.raises(Refusal, match=f"the task '{name}' is told by the latents"):
            linear.task(name, CLASSES).target(without)
    for arguments, message in (
        ({"heads": {"clasification": ("linear",)}}, "Did you mean 'classification'"),
        ({"heads": {"rotation": ("dep",)}}, "Did you mean 'deep'"),
        ({"heads": {"rotation": ("deep",)}, "parts": ("invariant",)}, "no such part"),
        ({"heads": {"rotation": ("deep",)}, "parts": ("every",)}, "unknown part 'every'"),
    ):
        with pytest.raises(Refusal, match=message):
            linear.make(backbone=Stored(WIDTH), num_classes=CLASSES, **arguments)


def test_make_asks_each_task_of_each_part_that_there_is():
    heads = {"classification": ("linear",), "rotation": ("linear", "deep")}

    def names(**options):
        method = linear.make(backbone=Stored(WIDTH), num_classes=CLASSES, heads=heads, **options)
        return set(jax.eval_shape(method.init, jax.random.key(0), batch())[0])

    asked = ("classification-{}-linear", "rotation-{}-linear", "rotation-{}-deep")
    assert names() == {name.format("all") for name in asked}
    assert names(equi=EQUI) == {name.format(p) for name in asked for p in linear.PARTS}
    assert names(equi=EQUI, parts=("equivariant",)) == {n.format("equivariant") for n in asked}
    method = linear.make(backbone=Stored(WIDTH), num_classes=CLASSES, heads={})
    params, extra = method.init(jax.random.key(0), batch())
    assert params == {}
    found = method.encode(params, extra, batch()["views"])
    np.testing.assert_array_equal(found["representation"], batch()["views"])


def a_frozen_one(**options):
    """A method over `Normed`, and its values, the backbone with statistics of its own."""
    method = linear.make(
        backbone=Normed(), num_classes=CLASSES, heads={"classification": ("linear",)}, **options
    )
    params, extra = method.init(jax.random.key(0), batch())
    frozen = extra[OWN]["backbone"]
    frozen["batch_stats"] = {
        "norm": {"mean": jnp.arange(WIDTH) / 10, "var": 1 + jnp.arange(WIDTH) / 5}
    }
    return method, params, extra


def test_the_frozen_network_is_state_and_stands_in_evaluation_mode():
    method, params, extra = a_frozen_one()
    assert set(extra) == {OWN}
    assert set(params) == {"classification-all-linear"}
    _, output = method.loss(params, extra, batch(), None, None)
    jax.tree.map(np.testing.assert_array_equal, output.extra, extra)
    frozen, views = extra[OWN]["backbone"], batch()["views"]
    still = Normed().apply(frozen, views.reshape(-1, WIDTH), False).reshape(views.shape)
    np.testing.assert_allclose(output.features["representation"], still, rtol=1e-5, atol=1e-6)
    encoded = method.encode(params, extra, views)
    np.testing.assert_allclose(encoded["representation"], still, rtol=1e-5, atol=1e-6)
    assert method.mean_over_examples


def test_no_gradient_is_computed_for_the_frozen_network():
    method, params, extra = a_frozen_one()
    grads = jax.grad(lambda extra: method.loss(params, extra, batch(), None, None)[0])(extra)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))


def test_drifting_statistics_take_every_view_in_order():
    method, params, extra = a_frozen_one(drift=True)
    _, output = method.loss(params, extra, batch(), None, None)
    frozen = extra[OWN]["backbone"]
    values, views = frozen["params"]["Dense_0"], batch()["views"]
    mean, var = (frozen["batch_stats"]["norm"][name] for name in ("mean", "var"))
    for view in (0, 1):
        x = views[:, view] @ values["kernel"] + values["bias"]
        normed = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        np.testing.assert_allclose(
            output.features["representation"][:, view], normed, rtol=1e-4, atol=1e-5
        )
        mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)
    after = output.extra[OWN]["backbone"]
    np.testing.assert_allclose(after["batch_stats"]["norm"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["batch_stats"]["norm"]["var"], var, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after["params"], frozen["params"])
    assert not method.mean_over_examples
    # In evaluation nothing drifts.
    still = Normed().apply(frozen, views[:, 0], False)
    found = method.encode(params, extra, views)["representation"][:, 0]
    np.testing.assert_allclose(found, still, rtol=1e-5, atol=1e-6)


def test_a_norm_before_the_head_has_neither_scale_nor_bias():
    """MAE's linear probe: in training by the batch, in evaluation by what it remembers."""
    method = linear.make(
        backbone=Stored(WIDTH),
        num_classes=CLASSES,
        heads={"classification": ("linear",)},
        batch_norm="before",
    )
    params, extra = method.init(jax.random.key(0), batch())
    assert set(params) == {"classification-all-linear"}
    assert not method.mean_over_examples
    loss, output = method.loss(params, extra, batch(), None, None)
    first = batch()["views"][:, 0]  # classes are told of the first view
    normed = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5)
    [layer] = params["classification-all-linear"].values()
    logits = normed @ layer["kernel"] + layer["bias"]
    told = jax.nn.log_softmax(logits)[np.arange(16), batch()["label"]]
    np.testing.assert_allclose(loss, -told.mean(), rtol=1e-4)
    [stats] = output.extra["batch_stats"].values()
    np.testing.assert_allclose(stats["mean"], 0.1 * first.mean(0), rtol=1e-4, atol=1e-6)
    remembered = (batch()["views"] - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    expected = remembered @ layer["kernel"] + layer["bias"]
    found = method.encode(params, output.extra, batch()["views"])["heads"]
    np.testing.assert_allclose(found["classification-all-linear"], expected, rtol=1e-4, atol=1e-5)


def test_a_norm_behind_the_head_scales_and_shifts_what_it_says():
    """revisitAIRL's `--cls-bn`, in two groups of its own; and weights that start small."""
    method = linear.make(
        backbone=Stored(WIDTH),
        num_classes=CLASSES,
        heads={"classification": ("linear",)},
        batch_norm="behind",
        norm_groups=2,
        norm_epsilon=1e-3,
        head_std=0.01,
    )
    params, extra = method.init(jax.random.key(0), batch())
    layer = params["classification-all-linear"]["linear_0"]
    norm = params["classification-all-linear-norm"]
    assert not layer["bias"].any()
    assert 0.003 < np.std(layer["kernel"]) < 0.02
    norm["scale"], norm["bias"] = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, -0.5])
    logits = batch()["views"][:, 0] @ layer["kernel"]
    halves = logits.reshape(2, 8, CLASSES)
    mean, var = halves.mean(1, keepdims=True), halves.var(1, keepdims=True)
    normed = ((halves - mean) / np.sqrt(var + 1e-3)).reshape(16, CLASSES)
    said = normed * np.array([1.0, 2, 3]) + np.array([0.5, 0, -0.5])
    told = jax.nn.log_softmax(said)[np.arange(16), batch()["label"]]
    loss, _ = method.loss(params, extra, batch(), None, None)
    np.testing.assert_allclose(loss, -told.mean(), rtol=1e-4)


def test_numbers_are_told_of_pairs_of_views():
    """Of five views, 1 with 2 and 3 with 4; classes of each of them."""
    method = of(HEADS)
    params, extra = method.init(jax.random.key(0), batch())
    views = np.random.default_rng(3).normal(size=(2, 5, WIDTH)).astype(np.float32)
    found = method.encode(params, extra, views)["heads"]
    assert found["classification-all-linear"].shape == (2, 5, CLASSES)
    assert found["rotation-all-linear"].shape == (2, 2, 4)
    alone = method.encode(params, extra, views[:, 2:4])["heads"]["rotation-all-linear"]
    np.testing.assert_allclose(alone[:, 0], found["rotation-all-linear"][:, 1], rtol=1e-5)


def test_loss_is_the_sum_over_heads_of_the_first_view_and_the_first_pair():
    method = of(HEADS)
    params, extra = method.init(jax.random.key(0), batch())
    params = jax.tree.map(lambda a: a + 0.1, params)
    loss, output = method.loss(params, extra, batch(), None, None)
    found = method.encode(params, extra, batch()["views"])["heads"]
    expected = 0.0
    for head in HEADS:
        target = np.asarray(TASKS[head.task].target(batch()))
        if head.task == "classification":
            told = jax.nn.log_softmax(found[head.name][:, 0])[np.arange(16), target]
            term = -told.mean()
            name = f"cross_entropy/{head.name}"
        else:
            term = np.mean((found[head.name][:, 0] - target) ** 2)
            name = f"mse/{head.name}"
        np.testing.assert_allclose(output.metrics[name], term, rtol=1e-4, atol=1e-6)
        expected += term
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
