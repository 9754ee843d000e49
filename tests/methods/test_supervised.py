"""The classifier by hand numbers: its loss, its gradient, and the images it turns."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups.rotation import rotate
from jaxequi.methods import supervised
from jaxequi.types import Progress

PROGRESS = Progress(jnp.int32(0), jnp.float32(0), jnp.float32(0))


class FirstPixels(nn.Module):
    """The red of the first row of pixels, after dropout and a count of the training batches."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, images, train):
        seen = self.variable("batch_stats", "seen", lambda: jnp.zeros(()))
        if train:
            seen.value += 1
        return nn.Dropout(self.rate, deterministic=not train)(images[:, 0, :, 0])


def batch():
    """Two images of 2 x 2 pixels, first rows (1, 0) and (0, 2), labels 0 and 1."""
    red = jnp.array([[[1.0, 0], [3, 5]], [[0, 2], [7, 9]]])
    return {"views": red[:, None, :, :, None] * jnp.ones(3), "label": jnp.array([0, 1])}


def values(kernel, bias=(0.0, 0.0)):
    params = {"classifier": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    return params, {"batch_stats": {"backbone": {"seen": jnp.zeros(())}}}


def test_loss_and_gradient_by_hand(keys):
    method = supervised.make(FirstPixels(), 2)
    drawn, _ = method.init(next(keys), batch())
    params, extra = values(np.eye(2, dtype=np.float32))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)

    def loss(params):
        return method.loss(params, extra, batch(), next(keys), PROGRESS)

    (value, output), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    # logits (1, 0) and (0, 2): the wrong class has probability 1 / (1 + e) and 1 / (1 + e^2)
    wrong = 1 / (1 + np.exp([1.0, 2.0]))
    np.testing.assert_allclose(value, -np.log(1 - wrong).mean(), rtol=1e-6)
    towards = np.array([[-wrong[0], wrong[0]], [wrong[1], -wrong[1]]])
    np.testing.assert_allclose(gradient["classifier"]["bias"], towards.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        gradient["classifier"]["kernel"], np.array([[1, 0], [0, 2]]).T @ towards / 2, rtol=1e-5
    )
    assert output.metrics == {"accuracy": 1.0}
    assert output.features["logits"].shape == (2, 1, 2)
    assert output.extra["batch_stats"]["backbone"]["seen"] == 1


def test_accuracy_counts_labels(keys):
    params, extra = values(np.eye(2, dtype=np.float32)[::-1])
    method = supervised.make(FirstPixels(), 2)
    assert method.loss(params, extra, batch(), next(keys), PROGRESS)[1].metrics["accuracy"] == 0


def test_dropout_is_of_the_step_and_of_training_alone(keys):
    params, extra = values(np.eye(2, dtype=np.float32))
    method = supervised.make(FirstPixels(rate=0.5), 2)

    def representation(key):
        output = method.loss(params, extra, batch(), key, PROGRESS)[1]
        return np.asarray(output.features["representation"])

    key = next(keys)
    np.testing.assert_array_equal(representation(key), representation(key))
    seen = np.stack([representation(jax.random.fold_in(key, i)) for i in range(16)])
    assert set(np.unique(seen[:, 0, 0, 0])) == {0, 2}  # dropped, or doubled
    found = method.encode(params, extra, batch()["views"])
    np.testing.assert_array_equal(found["representation"][:, 0], [[1, 0], [0, 2]])


@pytest.mark.parametrize("turns", [1, 4, 8])
def test_turned_logits(turns):
    params, extra = values(np.eye(2, dtype=np.float32))
    views = batch()["views"]
    found = supervised.make(FirstPixels(), 2, turns=turns).encode(params, extra, views)
    assert found["turned_logits"].shape == (2, turns, 2)
    np.testing.assert_array_equal(found["turned_logits"][:, 0], found["logits"][:, 0])
    # counter-clockwise, the right column becomes the first row; then the last row, backwards; ...
    rows = [[[1, 0], [0, 2]], [[0, 5], [2, 9]], [[5, 3], [9, 7]], [[3, 1], [7, 0]]]
    for quarter in range(4 if turns > 1 else 1):
        at = quarter * turns // 4
        np.testing.assert_array_equal(found["turned_logits"][:, at], rows[quarter])
    if turns == 8:
        between = rotate(views[:, 0], 45.0)[:, 0, :, 0]
        np.testing.assert_allclose(found["turned_logits"][:, 1], between, rtol=1e-6)


def test_bad_input(keys):
    with pytest.raises(ValueError, match="turns=0"):
        supervised.make(FirstPixels(), 2, turns=0)
    two = {"views": jnp.zeros((2, 2, 2, 2, 3)), "label": jnp.zeros(2, int)}
    with pytest.raises(ValueError, match=r"one view .* not \(2, 2, 2, 2, 3\)"):
        supervised.make(FirstPixels(), 2).init(next(keys), two)


def test_shares_of_the_classes_take_the_labels_place(keys):
    method = supervised.make(FirstPixels(), 2)
    params, extra = values(np.eye(2, dtype=np.float32))
    shares = jnp.array([[0.25, 0.75], [1.0, 0.0]])
    mixed = {**batch(), "target": shares}
    value, output = method.loss(params, extra, mixed, next(keys), PROGRESS)
    wrong = 1 / (1 + np.exp([1.0, 2.0]))  # the first class's complement, the second's
    first = -0.25 * np.log(1 - wrong[0]) - 0.75 * np.log(wrong[0])
    np.testing.assert_allclose(value, (first - np.log(wrong[1])) / 2, rtol=1e-6)
    assert output.metrics == {"accuracy": 1.0}  # of the labels


def test_a_classifier_may_start_near_zero(keys):
    start = supervised.make(FirstPixels(), 500, head_std=2e-5).init(next(keys), batch())[0]
    np.testing.assert_allclose(start["classifier"]["kernel"].std(), 2e-5, rtol=0.1)
    assert not start["classifier"]["bias"].any()
