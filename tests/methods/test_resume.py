"""MoCo, BYOL, SimSiam and MAE go on from a checkpoint, with queue and target, on any mesh."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxequi.train import mesh as meshes
from jaxequi.train import optim
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.train.state import initialise
from jaxequi.train.step import make_train_step
from tests.methods import test_mae as masked
from tests.methods import test_siamese as siamese

STEPS, HALF = 4, 2
METHODS = {
    "moco_v2": siamese,  # keys are shuffled, over four statistics groups
    "byol": siamese,
    "simsiam": siamese,
    "mae": masked,
}


@pytest.mark.parametrize("name", METHODS)
def test_resumes_to_the_same_bits_and_over_another_mesh(name, tmp_path, monkeypatch):
    monkeypatch.setattr(meshes, "SMALL", 1)
    tests = METHODS[name]
    method = tests.make() if tests is masked else tests.make(name)
    optimizer = optim.make(
        "sgd",
        learning_rate=0.05,
        momentum=0.9,
        schedule="cosine",
        total_steps=STEPS,
        batch_size=tests.BATCH,
    )

    def init(key):
        return initialise(method, optimizer, key, tests.a_batch())

    shapes = jax.eval_shape(init, jax.random.key(0))
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=STEPS, steps_per_epoch=2
    )

    class Mesh:
        def __init__(self, *shape, rules=()):
            self.mesh = meshes.make_mesh(*shape)
            self.shardings = meshes.shard_state(self.mesh, shapes, rules)
            whole = meshes.replicated(self.mesh)
            self.step = jax.jit(step, out_shardings=(self.shardings, whole))

        def go(self, state, first, stop):
            for i in range(first, stop):
                batch = meshes.to_global(self.mesh, tests.a_batch(i), tests.BATCH)
                state, metrics = self.step(state, batch)
            return state, metrics

    one, eight = Mesh(1, 1), Mesh(4, 2, rules=[("kernel$|queue", "fsdp")])
    start = jax.device_put(jax.jit(init)(jax.random.key(0)), one.shardings)
    half, _ = one.go(start, 0, HALF)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(HALF, half, {}, window=[])
    checkpoints.wait()
    end, metrics = one.go(half, HALF, STEPS)
    resumed, _ = one.go(checkpoints.restore(HALF, shapes, one.shardings)[0], HALF, STEPS)
    for a, b in zip(jax.tree.leaves(_arrays(end)), jax.tree.leaves(_arrays(resumed)), strict=True):
        np.testing.assert_array_equal(a, b)
    own = end.extra.get("own", {})
    assert ("queue" in own) == name.startswith("moco")
    assert ("target" in own) == (name not in ("simsiam", "mae"))
    if "queue" in own:
        assert own["pointer"] == STEPS * tests.BATCH % siamese.QUEUE
        assert not np.array_equal(own["queue"], half.extra["own"]["queue"])

    elsewhere = checkpoints.restore(HALF, shapes, eight.shardings)[0]
    spread, spread_metrics = eight.go(elsewhere, HALF, STEPS)
    checkpoints.close()
    np.testing.assert_allclose(spread_metrics["loss"], metrics["loss"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(_arrays(end)), jax.tree.leaves(_arrays(spread)), strict=True):
        # Sums are taken in another order: two steps add up what one step of f32 differs by.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1, np.abs(a).max()))


def _arrays(state):
    return jax.device_get((state.step, state.params, state.extra, state.opt_state))
