"""Where a run stands: exact at every boundary, and what a method is told of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxequi.train import optim
from jaxequi.train.state import initialise
from jaxequi.train.step import make_eval_step, make_train_step, progress
from jaxequi.types import Method, Output

# In float32 step / steps falls short of the epoch that begins at some of their multiples.
UNEVEN = (41, 47, 61, 83, 107)


@pytest.mark.parametrize("steps_per_epoch", UNEVEN)
def test_an_epoch_begins_exactly_at_its_first_step(steps_per_epoch):
    epochs = 400
    step = jnp.arange(epochs * steps_per_epoch, dtype=jnp.int32)
    now = jax.jit(progress, static_argnums=(1, 2))(step, steps_per_epoch, len(step))
    epoch = np.asarray(now.epoch)
    assert epoch.dtype == np.float32
    boundaries = epoch[::steps_per_epoch]
    np.testing.assert_array_equal(boundaries, np.arange(epochs))
    np.testing.assert_array_equal(np.floor(epoch), np.arange(len(step)) // steps_per_epoch)
    np.testing.assert_allclose(epoch, np.arange(len(step)) / steps_per_epoch, rtol=1e-6)
    assert (np.diff(epoch) > 0).all()
    np.testing.assert_allclose(now.fraction, np.arange(len(step)) / len(step), rtol=1e-6)


def test_the_plain_quotient_would_not_do():
    """Why the whole epochs are counted in integers."""
    for steps_per_epoch in UNEVEN:
        step = jnp.arange(400, dtype=jnp.int32) * steps_per_epoch
        reciprocal = step.astype(jnp.float32) * jnp.float32(1 / steps_per_epoch)
        assert (jnp.floor(reciprocal) != jnp.arange(400)).any()


def test_a_run_without_steps_is_at_its_start():
    assert progress(jnp.int32(0), 5, 0).fraction == 0


def remembering():
    """A method whose extra holds the progress that `loss` and `update` were told last."""

    def told(now):
        return jnp.stack([now.step.astype(jnp.float32), now.epoch, now.fraction])

    def loss(params, extra, batch, key, now):
        value = params["w"] * jnp.mean(batch["views"])
        return value, Output({**extra, "loss": told(now)}, {"at": now.step * 1.0}, {})

    return Method(
        init=lambda key, batch: (
            {"w": jnp.ones(())},
            {"loss": jnp.zeros(3), "update": jnp.zeros(3), "w": jnp.zeros(())},
        ),
        loss=loss,
        encode=lambda params, extra, views: {"representation": views, "embedding": 2 * views},
        update=lambda params, extra, now: {**extra, "update": told(now), "w": params["w"]},
        mean_over_examples=True,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_update_comes_after_the_optimizer_with_the_progress_after_the_step(accumulate):
    method, optimizer = remembering(), optim.Optimizer(*optax.sgd(0.5))
    batch = {"views": jnp.ones((4, 3))}
    step = jax.jit(
        make_train_step(
            method,
            optimizer,
            lambda key, batch: batch,
            total_steps=6,
            steps_per_epoch=3,
            accumulate=accumulate,
        )
    )
    state = initialise(method, optimizer, jax.random.key(0), batch)
    for done in range(6):
        state, metrics = step(state, batch)
        assert metrics["at"] == done
        np.testing.assert_allclose(state.extra["loss"], [done, done / 3, done / 6], rtol=1e-6)
        after = done + 1
        np.testing.assert_allclose(state.extra["update"], [after, after / 3, after / 6], rtol=1e-6)
        # the gradient is 1, and the parameters are those after the update
        assert state.extra["w"] == state.params["w"] == 1 - 0.5 * after
        assert state.step == after


def test_evaluation_keeps_what_is_named_and_the_mask():
    method, batch = remembering(), {"views": jnp.ones((2, 3)), "label": jnp.arange(2)}
    step = make_eval_step(
        method, lambda key, b: {**b, "views": 3 * b["views"]}, ("embedding", "label")
    )
    found = step({}, {}, {**batch, "mask": jnp.ones(2, bool)}, jax.random.key(0))
    assert set(found) == {"embedding", "label", "mask"}
    np.testing.assert_array_equal(found["embedding"], np.full((2, 3), 6))
    assert set(step({}, {}, batch, jax.random.key(0))) == {"embedding", "label"}
    with pytest.raises(ValueError, match="reads logits, which neither"):
        make_eval_step(method, lambda key, b: b, ("logits",))({}, {}, batch, jax.random.key(0))
