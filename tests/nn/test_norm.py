"""BatchNorm: hand numbers, torch's running statistics, statistics groups, fields, sharding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxequi.nn.norm import BatchNorm, batch_norm, by_segment, moments, normalize, regrouped


@functools.partial(jax.jit, static_argnums=0)
def train(norm, variables, x):
    y, new = norm.apply(variables, x, use_running_average=False, mutable="batch_stats")
    return y, {**variables, **new}


@functools.partial(jax.jit, static_argnums=0)
def start(norm, x):
    return norm.init(jax.random.key(0), x, use_running_average=False)


def test_hand_numbers():
    x = jnp.array([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]])  # means 3, 20; variances 8/3, 200
    norm = BatchNorm(epsilon=0.0)
    y, after = train(norm, start(norm, x), x)
    r = np.sqrt(1.5)
    np.testing.assert_allclose(y, [[-r, -(0.5**0.5)], [0, -(0.5**0.5)], [r, 2**0.5]], rtol=1e-6)
    np.testing.assert_allclose(after["batch_stats"]["mean"], [0.3, 2.0], rtol=1e-6)
    # unbiased variances are 4 and 300; the running variance starts at one
    np.testing.assert_allclose(after["batch_stats"]["var"], [1.3, 30.9], rtol=1e-6)


def test_biased_running_variance():
    x = jnp.array([[0.0], [2.0]])
    norm = BatchNorm(unbiased=False)
    _, after = train(norm, start(norm, x), x)
    np.testing.assert_allclose(after["batch_stats"]["var"], [1.0], rtol=1e-6)


def test_two_calls_update_twice_in_order():
    norm = BatchNorm()
    a, b = jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [8.0]])
    variables = start(norm, a)
    assert variables["batch_stats"]["mean"] == 0  # init leaves them be
    _, variables = train(norm, variables, a)
    _, variables = train(norm, variables, b)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], [0.9 * 0.1 + 0.6], rtol=1e-6)
    np.testing.assert_allclose(
        variables["batch_stats"]["var"], [0.9 * (0.9 + 0.2) + 0.8], rtol=1e-6
    )


def test_evaluation_uses_and_keeps_the_running_statistics():
    norm = BatchNorm(use_running_average=True, epsilon=0.0)
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([1.0])},
        "batch_stats": {"mean": jnp.array([3.0]), "var": jnp.array([4.0])},
    }
    y, new = norm.apply(variables, jnp.array([[5.0]]), mutable="batch_stats")
    assert y == 3.0
    assert new["batch_stats"] == variables["batch_stats"]


@pytest.mark.parametrize("shape", [(8, 3), (8, 4, 5, 3), (8, 2, 3, 2, 3)])
def test_groups_are_independent_and_group_zero_is_kept(shape, keys):
    x = jax.random.normal(next(keys), shape) * 3 + 1
    norm, whole = BatchNorm(groups=4), BatchNorm()
    y, after = train(norm, start(norm, x), x)
    for i in range(4):
        part = x[2 * i : 2 * i + 2]
        expected, statistics = train(whole, start(whole, part), part)
        np.testing.assert_allclose(y[2 * i : 2 * i + 2], expected, atol=1e-6)
        if i == 0:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, statistics
            )


@pytest.mark.parametrize("groups", [1, 2])
def test_fields_share_statistics(groups, keys):
    x = jax.random.normal(next(keys), (4, 3, 5, 2 * 4))
    norm = BatchNorm(groups=groups, field_size=4)
    y, after = train(norm, start(norm, x), x)
    assert after["params"]["scale"].shape == (2,)
    apart = jnp.moveaxis(x.reshape(4, 3, 5, 2, 4), -1, 1)  # [4, g, 3, 5, field]
    plain = BatchNorm(groups=groups)
    expected, statistics = train(plain, start(plain, apart), apart)
    np.testing.assert_allclose(y, jnp.moveaxis(expected, 1, -1).reshape(x.shape), atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, statistics)


def test_large_mean_keeps_its_digits():
    x = jnp.array([1e4 - 1, 1e4 + 1] * 512, jnp.float32)[:, None]
    mean, var = moments(x)
    np.testing.assert_allclose(mean, 1e4, rtol=1e-6)
    np.testing.assert_allclose(var, 1.0, rtol=1e-3)


def test_gradient_is_that_of_the_formula(keys):
    x = jax.random.normal(next(keys), (4, 2, 2, 6))
    scale, bias = jax.random.normal(next(keys), (2, 3))
    weights = [jax.random.normal(next(keys), s) for s in (x.shape, (2, 3), (2, 3))]

    def formula(x, scale, bias):
        mean, var = moments(x, 2, 2)
        return normalize(x, mean, var, scale, bias), mean, var

    def gradient(f):
        def loss(*args):
            return sum(jnp.sum(o * w) for o, w in zip(f(*args), weights))

        return jax.jit(jax.grad(loss, (0, 1, 2)))(x, scale, bias)

    for actual, expected in zip(gradient(lambda *a: batch_norm(*a, 2, 2)), gradient(formula)):
        np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_statistics_are_f32_under_bfloat16(keys):
    x = (100 + jax.random.normal(next(keys), (64, 3))).astype(jnp.bfloat16)
    norm = BatchNorm()
    y, after = train(norm, start(norm, x), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(after["batch_stats"]["mean"], exact.mean(0) * 0.1, rtol=1e-6)
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / exact.std(0), atol=2e-2)


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_sharded_batch_gives_the_same(groups, keys):
    x = jax.random.normal(next(keys), (32, 3, 3, 4))
    w = jax.random.normal(next(keys), x.shape)
    norm = BatchNorm(groups=groups)
    variables = start(norm, x)

    @jax.jit
    def step(variables, x):
        def loss(x):
            y, after = train(norm, variables, x)
            return jnp.sum(y * w), after

        return jax.value_and_grad(loss, has_aux=True)(x)

    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    expected = step(variables, x)
    actual = step(variables, jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp")))))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), actual, expected
    )


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"groups": 3}, (8, 2), "groups=3 does not divide the batch of 8"),
        ({"field_size": 4}, (8, 6), "field_size=4 does not divide the 6 channels"),
        ({"groups": 8}, (8, 2), "no variance"),
    ],
)
def test_bad_sizes(arguments, shape, message):
    norm = BatchNorm(**arguments)
    with pytest.raises(ValueError, match=message):
        train(norm, start(norm, jnp.ones(shape)), jnp.ones(shape))


@pytest.mark.parametrize(
    ("groups", "parts"),
    [(1, [[[1, 4]], [[0, 2, 5, 6, 7]]]), (2, [[[1], [4]], [[0, 2, 5], [6, 7]]])],
)
def test_segments_are_batches_one_after_the_other(groups, parts):
    """As torch sees them, on `groups` devices: each by its own statistics, the running ones of the
    first device in turn."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(1, 2, (8, 3, 3, 4)), jnp.float32)
    segment = np.array([1, 0, 1, 3, 0, 1, 1, 1])  # two, five, none and one
    norm = BatchNorm(field_size=2, groups=groups)
    variables = start(norm, x)

    def by_segments(variables, x):
        with by_segment(jnp.asarray(segment), 4):
            return norm.apply(variables, x, use_running_average=False, mutable="batch_stats")

    y, after = jax.jit(by_segments)(variables, x)
    alone = BatchNorm(field_size=2)
    for of_one in parts:
        stepped = [train(alone, variables, x[np.array(rows)]) for rows in of_one]
        for rows, (wanted, _) in zip(of_one, stepped, strict=True):
            np.testing.assert_allclose(y[np.array(rows)], wanted, rtol=1e-4, atol=1e-5)
        if len(of_one[0]) > 1:
            variables = stepped[0][1]
    for name, found in after["batch_stats"].items():
        np.testing.assert_allclose(found, variables["batch_stats"][name], rtol=1e-5)


@pytest.mark.parametrize(("groups", "rank"), [(1, 4), (2, 4), (4, 4), (8, 4), (4, 2)])
def test_a_batch_that_is_regrouped_is_one_in_another_order(groups, rank):
    random = np.random.default_rng(0)
    shape = (8, 3, 3, 4) if rank == 4 else (8, 4)
    x = jnp.asarray(random.normal(1, 2, shape), jnp.float32)
    order = jnp.asarray([5, 0, 3, 7, 1, 6, 2, 4])
    norm = BatchNorm(groups=groups)
    variables = start(norm, x)

    @jax.jit
    def regrouping(variables, x):
        with regrouped(jnp.argsort(order)):
            return norm.apply(variables, x, use_running_average=False, mutable="batch_stats")

    found, after = regrouping(variables, x)
    wanted, expected = train(norm, variables, x[order])
    np.testing.assert_allclose(found[order], wanted, rtol=1e-4, atol=1e-5)
    for name, value in expected["batch_stats"].items():
        np.testing.assert_allclose(after["batch_stats"][name], value, rtol=1e-5)


def test_groups_that_do_not_divide_a_regrouped_batch():
    norm, x = BatchNorm(groups=3), jnp.ones((8, 4))
    with regrouped(jnp.arange(8)), pytest.raises(ValueError, match="groups=3 does not divide"):
        norm.apply({}, x, use_running_average=False, mutable=True)
