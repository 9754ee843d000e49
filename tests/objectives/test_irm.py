"""InfoNCE inside environments and on soft partitions: against the formulas as they are written."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.objectives import classification, contrastive, irm, partition
from jaxequi.objectives.contrastive import l2_normalize


@pytest.fixture(autouse=True)
def in_f64():
    with jax.enable_x64(True):
        yield


def views(n, width=5, seed=0):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=(n, width))) for _ in range(2)]


@jax.jit
def cosines(a, b):
    return l2_normalize(a) @ l2_normalize(b).T


def scaled(loss, columns):
    """A loss as a function of the scale of its columns: the penalty as it is defined."""
    return np.sum(np.square(jax.jit(jax.grad(loss))(np.ones(columns))))


ntxent_logits = jax.jit(contrastive.ntxent_logits, static_argnums=2)


@jax.jit
def named(logits, scale):
    return classification.cross_entropy(logits * scale, jnp.zeros(len(logits), int))


def test_each_environment_is_a_batch_of_its_own():
    a, b = views(9)
    where = np.array([2, 0, 2, 2, 0, 3, 2, 0, 2])  # one of 5, of 3, of 1, and of none
    inside = jax.jit(irm.by_environment, static_argnums=(3, 4, 5))
    loss, penalty, count = inside(a, b, jnp.asarray(where), 4, 0.5, 0.3)
    np.testing.assert_array_equal(count, [3, 0, 5, 1])
    for e in (0, 2):
        rows = np.flatnonzero(where == e)
        warm, cold = (ntxent_logits(*(np.asarray(x)[rows] for x in (a, b)), t) for t in (0.5, 0.3))
        np.testing.assert_allclose(loss[e], named(warm, 1), rtol=1e-12)
        expected = scaled(functools.partial(named, cold), cold.shape[1])
        np.testing.assert_allclose(penalty[e], expected, rtol=1e-10)
        np.testing.assert_allclose(jax.jit(irm.column_penalty)(cold), expected, rtol=1e-10)
    np.testing.assert_allclose(np.stack([loss, penalty])[:, 1:4:2], 0, atol=1e-12)


def finite_differences(function, x, step=1e-5):
    """Central differences of a function of an array, one entry after the other."""
    x = np.asarray(x)
    slopes = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        nudge = np.zeros_like(x)
        nudge[place] = step
        slopes[place] = (function(x + nudge) - function(x - nudge)) / (2 * step)
    return slopes


def test_second_order_gradients_of_the_penalties():
    a, b = views(6, 3)
    where = jnp.asarray([1, 0, 1, 1, 0, 0])
    share, partner = jnp.linspace(0.5, 1, 6), jnp.asarray([3, 4, 0, 2, 5, 1])

    def hard(x):
        return irm.by_environment(x, b, where, 2, 0.5, 0.3)[1].sum()

    def mixed(x):
        return irm.mixed_by_environment(x, b, share, partner, where, 2, 0.3)[1].sum()

    losses = partition.infonce(a, b, temperature=0.5, penalty_temperature=0.3)

    def soft(split):
        return partition.risk(losses, split, weight=2.0, constraint="relaxed").risk

    split = jnp.asarray(np.random.default_rng(1).normal(size=(6, 2)))
    for function, x in ((hard, a), (mixed, a), (soft, split)):
        function = jax.jit(function)
        expected = finite_differences(function, x)
        np.testing.assert_allclose(jax.jit(jax.grad(function))(x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("per_example", [False, True])
def test_mixtures_name_both_examples_inside_their_environment(per_example):
    a, b = views(7)
    where = np.array([0, 1, 0, 0, 1, 0, 0])
    partner = np.array([3, 4, 0, 2, 1, 6, 5])
    share = np.random.default_rng(2).uniform(0.5, 1, 7)
    inside = jax.jit(irm.mixed_by_environment, static_argnums=(5, 6, 7))
    loss, penalty, _ = inside(
        a, b, jnp.asarray(share), jnp.asarray(partner), jnp.asarray(where), 2, 0.2, per_example
    )
    for e in (0, 1):
        rows = np.flatnonzero(where == e)
        logits = cosines(*(np.asarray(x)[rows] for x in (a, b))) / 0.2
        own, other = np.arange(len(rows)), np.searchsorted(rows, partner[rows])
        lam = share[rows] if per_example else np.full(len(rows), share[rows].mean())

        @jax.jit
        def mixture(scale, logits=logits, own=own, other=other, lam=lam):
            logs = jax.nn.log_softmax(logits * scale)
            return -jnp.mean(lam * logs[own, own] + (1 - lam) * logs[own, other])

        np.testing.assert_allclose(loss[e], mixture(1.0), rtol=1e-12)
        np.testing.assert_allclose(penalty[e], scaled(mixture, len(rows)), rtol=1e-10)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_soft_partition_weighs_rows_and_columns(normalize, monkeypatch):
    monkeypatch.setattr(partition, "TILE", 3)  # the golden cases are of a single tile
    n = 8
    a, b = views(n)
    shares = jax.jit(jax.nn.softmax)(np.random.default_rng(3).normal(size=(n, 3)))
    losses = partition.infonce(a, b, temperature=0.5, penalty_temperature=0.3, normalize=normalize)
    of_column = np.tile(np.arange(n), 2)
    of_column = [
        [i, *np.delete(of_column, [r, (r + n) % (2 * n)])] for r, i in enumerate(of_column)
    ]
    found = jax.jit(losses)(shares)
    for e in (0, 2):
        weights = np.asarray(shares)[:, e][np.asarray(of_column)]

        def soft(scale, temperature=0.3, weights=weights):
            logits = contrastive.ntxent_logits(a, b, temperature) * scale
            negative = weights[:, 1:] / weights[:, 1:].sum(1, keepdims=True) * (2 * n - 2)
            total = jnp.exp(logits[:, 0]) + (negative * jnp.exp(logits[:, 1:])).sum(1)
            error = (jnp.log(total) - logits[:, 0]) * weights[:, 0]
            return error.sum() / (weights[:, 0].sum() if normalize else 2 * n)

        loss, penalty = (part[e] for part in found)
        np.testing.assert_allclose(loss, jax.jit(soft)(1.0, 0.5), rtol=1e-12)
        np.testing.assert_allclose(penalty, scaled(soft, 2 * n - 1), rtol=1e-10)

    def penalty(shares):
        return losses(shares)[1].sum()

    slopes = jax.jit(jax.grad(penalty))(shares)
    expected = finite_differences(jax.jit(penalty), shares)
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-8)


def test_what_a_search_may_meet_is_finite():
    a, b = views(4)
    one = partition.infonce(a[:1], b[:1], temperature=0.5, penalty_temperature=0.5)
    np.testing.assert_allclose(jax.jit(one)(jnp.full((1, 2), 0.5)), 0, atol=1e-12)
    with jax.enable_x64(False):  # shares that f32 has no number for
        share, partner = jnp.full(4, 0.7), jnp.asarray([1, 2, 3, 0])
        extreme = jnp.asarray([[300.0, 0]] * 4, jnp.float32)
        a32, b32 = (jnp.asarray(np.asarray(x), jnp.float32) for x in (a, b))
        logits = cosines(a32, b32)
        for losses in (
            partition.infonce(a32, b32, temperature=0.5, penalty_temperature=0.5),
            partition.mixed_infonce(logits, share, partner),
            partition.mixed_infonce(logits, share, None),
        ):
            for mode in partition.MODES:

                def risk(split, losses=losses, mode=mode):
                    return partition.risk(losses, split, weight=0.5, mode=mode).risk

                value, slope = jax.jit(jax.value_and_grad(risk))(extreme)
                assert np.isfinite(value)
                assert np.isfinite(slope).all()


def test_the_debiased_loss():
    a, b = views(5)
    debiased = jax.jit(contrastive.debiased_ntxent, static_argnums=(2, 3))
    plain = jax.jit(contrastive.ntxent, static_argnums=2)(a, b, 0.5)
    np.testing.assert_allclose(debiased(a, b, 0.5, 0.0), plain, rtol=1e-12)
    # Rows e1, e2 | e1, e2: the negatives exp(0) twice, less 0.1 * 2 * exp(2), are below the floor.
    eye = jnp.eye(2)
    floor = 2 * np.exp(-2.0)
    expected = np.log(np.exp(2) + floor) - 2
    found = debiased(eye, eye, 0.5, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # With a prior of 0.1 they are not: (2 - 0.2 exp(2)) / 0.9.
    expected = np.log(np.exp(2) + (2 - 0.2 * np.exp(2)) / 0.9) - 2
    found = debiased(eye, eye, 0.5, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
