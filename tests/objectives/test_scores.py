"""Classes named and targets explained: hand numbers, ties, and the same over a whole set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.evals import _scores
from jaxequi.objectives import classification, collapse, regression


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
    loss = classification.cross_entropy(logits, jnp.array([1, 0]))
    np.testing.assert_allclose(loss, -np.log([3 / 4, 1 / 2]).mean(), rtol=1e-6)


@pytest.mark.parametrize("top_k", [classification.top_k, _scores.top_k])
def test_top_k(top_k):
    logits = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [0.0, 1.0, 2.0]], np.float32)
    labels = np.array([2, 0, 0])
    np.testing.assert_allclose([top_k(logits, labels, k) for k in (1, 2, 3)], [1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("top_k", [classification.top_k, _scores.top_k])
def test_neither_a_constant_guess_nor_a_nan_scores(top_k):
    labels = np.arange(10)
    np.testing.assert_allclose(top_k(np.zeros((10, 10), np.float32), labels, 3), 0.3)
    with jax.debug_nans(False):
        assert top_k(np.full((10, 10), np.nan, np.float32), labels, 3) == 0


def test_r2_by_hand():
    target = jnp.array([[0.0, 4.0], [2.0, 6.0]])
    prediction = target + jnp.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(regression.r2(prediction, target), 1 - 1 / 20, rtol=1e-6)
    np.testing.assert_allclose(regression.r2_per_column(prediction, target), [0.5, 1], rtol=1e-6)


def test_a_constant_guess_scores_above_0_only_where_columns_share_a_mean(keys):
    target = jax.random.normal(next(keys), (50, 3)) + jnp.array([0.0, 0.0, 5.0])
    guess = jnp.broadcast_to(target.mean(0), target.shape)
    assert regression.r2(guess, target) > 0.5
    np.testing.assert_allclose(regression.r2_per_column(guess, target), 0, atol=1e-5)


def test_a_constant_target_leaves_nothing_to_explain():
    target = jnp.array([[1.0, 1.0], [1.0, 3.0]])
    per_column = regression.r2_per_column(target + 1, target)
    np.testing.assert_allclose(per_column, [0, 1 - 2 / 2])
    assert regression.r2(jnp.ones((2, 2)), jnp.zeros((2, 2))) == 0


def test_scores_of_a_set_are_those_of_a_batch(keys):
    logits, labels = jax.random.normal(next(keys), (30, 7)), jnp.arange(30) % 7
    prediction, target = (jax.random.normal(next(keys), (30, 4)) for _ in range(2))
    pairs = [
        (_scores.cross_entropy, classification.cross_entropy, (logits, labels)),
        (_scores.mean_squared_error, regression.mean_squared_error, (prediction, target)),
        (_scores.r2, regression.r2, (prediction, target)),
    ]
    for ours, theirs, arguments in pairs:
        np.testing.assert_allclose(ours(*map(np.asarray, arguments)), theirs(*arguments), rtol=1e-5)
    columns = _scores.r2(np.asarray(prediction), np.asarray(target), axis=0)
    np.testing.assert_allclose(columns, regression.r2_per_column(prediction, target), rtol=1e-5)


def test_correlation_is_the_mean_off_the_diagonal(keys):
    v = jax.random.normal(next(keys), (20, 6)) + jax.random.normal(next(keys), (20, 1))
    expected = np.corrcoef(np.asarray(v).T)[~np.eye(6, dtype=bool)].mean()
    np.testing.assert_allclose(collapse.correlation(v), expected, rtol=1e-4)


def test_spread_tells_a_collapse():
    assert collapse.spread(jnp.ones((8, 4))) < 1e-6
    every_way = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    np.testing.assert_allclose(collapse.spread(every_way), np.sqrt(2 / 7), rtol=1e-6)


def test_statistics_pass_no_gradient(keys):
    v = jax.random.normal(next(keys), (8, 4))
    for statistic in (collapse.correlation, collapse.spread):
        np.testing.assert_array_equal(jax.grad(statistic)(v), 0)
