"""Heads on a frozen network: trained together as if alone, on the right parts, scored by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.evals import heads
from jaxequi.methods import _frozen
from jaxequi.train import optim
from jaxequi.train.state import initialise
from jaxequi.train.step import make_train_step

WIDTH, EQUI, CLASSES = 6, 4, 3
TASKS = {name: _frozen.task(name, CLASSES) for name in ("classification", "rotation", "color")}
HEADS = [
    _frozen.head(task, part, "linear", WIDTH, EQUI) for task in TASKS for part in _frozen.PARTS
]


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
    start, together, metrics = trained(_frozen.make(HEADS, TASKS))
    for head in HEADS:
        _, alone, scores = trained(_frozen.make([head], TASKS), start)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together[head.name])):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        measured = [name for name in scores if name.endswith(head.name)]
        assert len(measured) >= 3
        for name in measured:
            np.testing.assert_allclose(scores[name], metrics[name], rtol=1e-4, atol=1e-5)


def test_a_head_reads_its_part_and_nothing_else():
    method = _frozen.make(HEADS, TASKS)
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


def test_scores_by_hand():
    label = np.array([0, 1])
    logits = np.array([[[5.0, 1, 0], [0, 1, 5]], [[5, 4, 0], [0, 9, 1]]])
    latent = np.zeros((2, 2, 7))
    latent[:, 1, 3], latent[:, 1, 6] = [0.2, 0.4], [0.0, 0.4]
    hue = np.array([[0.2, 0.0], [0.4, 0.2]])
    scores = heads.evaluate(
        {
            "heads": {"classification-all-linear": logits, "color-all-deep": hue},
            "label": label,
            "latent": latent,
        },
        TASKS,
    )
    assert scores["top1/classification-all-linear"] == 0.5
    assert scores["mse/color-all-deep"] == pytest.approx(0.01)
    # targets .2 0 .4 .4, mean .25: squares about it .11, residual .04
    assert scores["r2/color-all-deep"] == pytest.approx(1 - 0.04 / 0.11)
    assert scores["r2_floor_hue/color-all-deep"] == pytest.approx(1)
    assert scores["r2_light_hue/color-all-deep"] == pytest.approx(1 - 0.04 / 0.08)
    assert scores["r2_columns/color-all-deep"] == pytest.approx(0.75)
    # column means .3 and .2 instead of .25: residual .02 + .08
    assert scores["r2_floor/color"] == pytest.approx(1 - 0.1 / 0.11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rotation", "equi", "deep", 8, 4), "equivariant"),
        (("rotation", "all", "deeep", 8, 4), "deep"),
        (("rotation", "invariant", "deep", 8, 8), "no such part"),
    ],
)
def test_heads_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        _frozen.head(*arguments)


def test_what_does_not_fit_is_told():
    method = _frozen.make(HEADS, TASKS)
    one_view = batch() | {"views": batch()["views"][:, :1]}
    with pytest.raises(ValueError, match="needs two views"):
        method.init(jax.random.key(0), one_view)
    params, extra = method.init(jax.random.key(0), batch())
    short = batch() | {"latent": batch()["latent"][..., :5]}
    with pytest.raises(ValueError, match="these have 5"):
        method.loss(params, extra, short, None, None)
