"""Classes named and targets explained: hand numbers, ties, and the same over a whole set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.objectives import classification, collapse, regression

kinds = pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])


@kinds
def test_cross_entropy_by_hand(kind):
    logits = kind(np.log(np.float32([[1.0, 3.0], [1.0, 1.0]])))
    loss = classification.cross_entropy(logits, kind([1, 0]))
    np.testing.assert_allclose(loss, -np.log([3 / 4, 1 / 2]).mean(), rtol=1e-6)


@kinds
def test_logits_of_any_size_have_a_finite_loss(kind):
    logits = kind(np.float32([[1e30, 0.0], [-1e30, 0.0], [500.0, 0.0]]))
    loss = classification.cross_entropy(logits, kind([0, 1, 1]))
    np.testing.assert_allclose(loss, 500 / 3, rtol=1e-6)


@kinds
def test_top_k(kind):
    logits = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [0.0, 1.0, 2.0]], np.float32)
    labels = np.array([2, 0, 0])
    shares = [classification.top_k(kind(logits), kind(labels), k) for k in (1, 2, 3)]
    np.testing.assert_allclose(shares, [1 / 3, 2 / 3, 1])


@kinds
def test_neither_a_constant_guess_nor_a_nan_scores(kind):
    labels, constant = kind(np.arange(10)), kind(np.zeros((10, 10), np.float32))
    np.testing.assert_allclose(classification.top_k(constant, labels, 3), 0.3)
    with jax.debug_nans(False):
        ruin = kind(np.full((10, 10), np.nan, np.float32))
        assert classification.top_k(ruin, labels, 3) == 0


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


def test_scores_of_a_set_are_those_of_a_batch_in_float64(keys):
    logits, labels = jax.random.normal(next(keys), (30, 7)), jnp.arange(30) % 7
    prediction, target = (jax.random.normal(next(keys), (30, 4)) for _ in range(2))
    for score, arguments in (
        (classification.cross_entropy, (logits, labels)),
        (functools.partial(classification.top_k, k=2), (logits, labels)),
        (regression.mean_squared_error, (prediction, target)),
        (regression.r2, (prediction, target)),
        (regression.r2_per_column, (prediction, target)),
    ):
        of_batch, of_set = score(*arguments), score(*map(np.asarray, arguments))
        assert isinstance(of_batch, jax.Array)
        assert of_batch.dtype == jnp.float32
        assert not isinstance(of_set, jax.Array)
        assert of_set.dtype == np.float64
        np.testing.assert_allclose(of_batch, of_set, rtol=1e-5)


def test_a_whole_set_loses_no_digits():
    """A million of float32 numbers, a tenth each: in float32 their sum would be 100,958."""
    prediction = np.full((1_000_000, 1), 0.1, np.float32)
    mean = regression.mean_squared_error(prediction, np.zeros_like(prediction))
    np.testing.assert_allclose(mean, float(np.float32(0.1)) ** 2, rtol=1e-12)
    # A mean far from 0: the deviations of a thousandth are all that is to be explained.
    far = np.float64([[1e6], [1e6 + 1e-3]] * 2)
    np.testing.assert_allclose(regression.r2(far, far), 1)
    np.testing.assert_allclose(regression.r2_per_column(far[::-1], far), 1 - 4, rtol=1e-6)


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


def test_correlation_of_a_large_batch_is_traced():
    # 1023 * 2048 * 2047 pairs are more than a 32-bit integer holds.
    large = jax.ShapeDtypeStruct((1024, 2048), np.float32)
    assert jax.eval_shape(jax.jit(collapse.correlation), large).shape == ()
