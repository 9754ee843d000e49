"""Optimizers against torch's update rules written out, schedules at their corners, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxequi.train import optim

STEPS = 4
RUN = {"batch_size": 64, "total_steps": STEPS}


def a_tree(seed):
    random = np.random.default_rng(seed)
    return {
        "backbone": {"conv": {"kernel": random.normal(size=(3, 2))}},
        "head": {"kernel": random.normal(size=(2, 2)), "bias": random.normal(size=2)},
    }


def run(optimizer, steps=STEPS):
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), a_tree(0))
    state = optimizer.init(params)
    for t in range(steps):
        grads = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), a_tree(t + 1))
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def torch(rule, decayed=lambda path: True, steps=STEPS):
    """Run `rule(p, g, memory, t) -> p` on each leaf, in float64."""

    def leaf(path, p, *gradients):
        memory = {}
        for t, g in enumerate(gradients):
            p = rule(p, g, memory, t, decayed(jax.tree_util.keystr(path)))
        return p

    gradients = [a_tree(t + 1) for t in range(steps)]
    return jax.tree_util.tree_map_with_path(leaf, a_tree(0), *gradients)


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def adam(coupled, decoupled, lr=0.01, b1=0.9, b2=0.99, epsilon=1e-4):
    def rule(p, g, memory, t, decayed):
        g = g + coupled * p if decayed else g
        p = p - lr * decoupled * p if decayed else p
        m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        v = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
        denominator = np.sqrt(v / (1 - b2 ** (t + 1))) + epsilon
        return p - lr * m / (1 - b1 ** (t + 1)) / denominator

    return rule


def sgd(momentum, nesterov, coupled=0.1, lr=0.01):
    def rule(p, g, memory, t, decayed):
        g = g + coupled * p
        if momentum:
            memory["b"] = g if t == 0 else momentum * memory["b"] + g
            g = g + momentum * memory["b"] if nesterov else memory["b"]
        return p - lr * g

    return rule


def test_adam_adds_the_decay_to_the_gradient():
    options = {"betas": (0.9, 0.99), "epsilon": 1e-4}
    ours = optim.make("adam", learning_rate=0.01, weight_decay=0.1, **options, **RUN)
    assert_close(run(ours), torch(adam(coupled=0.1, decoupled=0)))


def test_adamw_takes_the_decay_off_the_parameter():
    options = {"betas": (0.9, 0.99), "epsilon": 1e-4}
    ours = optim.make("adamw", learning_rate=0.01, weight_decay=0.1, **options, **RUN)
    assert_close(run(ours), torch(adam(coupled=0, decoupled=0.1)))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov):
    options = {"momentum": momentum, "nesterov": nesterov}
    ours = optim.make("sgd", learning_rate=0.01, weight_decay=0.1, **options, **RUN)
    assert_close(run(ours), torch(sgd(momentum, nesterov)))


def test_no_decay():
    options = {"betas": (0.9, 0.99), "epsilon": 1e-4, "no_decay": "bias|scale"}
    ours = optim.make("adam", learning_rate=0.01, weight_decay=0.1, **options, **RUN)
    assert_close(run(ours), torch(adam(0.1, 0), decayed=lambda path: "bias" not in path))


def test_frozen_parameters_stay_and_cost_no_moments():
    everything = optim.make("adam", learning_rate=0.01, weight_decay=0.1, **RUN)
    ours = optim.make("adam", learning_rate=0.01, weight_decay=0.1, freeze="^backbone/", **RUN)
    found = run(ours)
    np.testing.assert_array_equal(
        found["backbone"]["conv"]["kernel"],
        np.float32(a_tree(0)["backbone"]["conv"]["kernel"]),
    )
    assert_close(found["head"], run(everything)["head"])
    sizes = [leaf.size for leaf in jax.tree.leaves(ours.init(a_tree(0)))]
    assert sum(sizes) < 2 * 6 + 4


def test_base_lr_is_for_256_examples():
    scaled = optim.make("sgd", base_lr=0.04, **RUN)
    assert_close(run(scaled), run(optim.make("sgd", learning_rate=0.01, **RUN)))


def test_schedules():
    constant = optim.make_schedule("constant", 0.5, 100, warmup_steps=10)
    np.testing.assert_allclose([constant(t) for t in (0, 5, 10, 99)], [0, 0.25, 0.5, 0.5])
    cosine = optim.make_schedule("cosine", 0.5, 110, warmup_steps=10)
    expected = [0, 0.25, 0.5, 0.5 * (2 + 2**0.5) / 4, 0.25, 0]
    np.testing.assert_allclose([cosine(t) for t in (0, 5, 10, 35, 60, 110)], expected, atol=1e-7)
    np.testing.assert_allclose(optim.make_schedule("cosine", 0.5, 100)(0), 0.5)


def test_a_schedule_moves_the_run():
    ours = optim.make("sgd", learning_rate=0.01, warmup_steps=2, **RUN)
    rates = [0, 0.005, 0.01, 0.01]
    expected = torch(lambda p, g, memory, t, decayed: p - rates[t] * g)
    assert_close(run(ours), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamm", "learning_rate": 1.0}, "Did you mean 'adam'"),
        ({"name": "sgd", "learning_rate": 1.0, "betas": (0.9, 0.9)}, "option of sgd 'betas'"),
        ({"name": "adam"}, "give one of the two"),
        ({"name": "adam", "learning_rate": 1.0, "base_lr": 1.0}, "give one of the two"),
        ({"name": "adam", "learning_rate": 1.0, "schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"name": "adam", "learning_rate": 1.0, "warmup_steps": 5}, "warmup_steps=5 of 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.make(**arguments, **RUN)


@pytest.mark.parametrize("mask", [{"freeze": "encoder"}, {"no_decay": "norm"}])
def test_a_mask_that_matches_nothing(mask):
    optimizer = optim.make("adam", learning_rate=1.0, weight_decay=0.1, **mask, **RUN)
    with pytest.raises(ValueError, match="matches the path of no parameter"):
        optimizer.init(a_tree(0))


def test_a_cosine_has_a_start_and_an_end():
    schedule = optim.make_schedule("cosine", 1.0, 12, 4, warmup_from=0.2, end=0.1)
    found = [float(schedule(t)) for t in (0, 2, 4, 8, 12, 15)]
    np.testing.assert_allclose(found, [0.2, 0.6, 1.0, 0.55, 0.1, 0.1], rtol=1e-6)


def test_pieces_hold_the_rate_of_their_first_step():
    moving, held = (optim.make_schedule("cosine", 1.0, 12, pieces=n) for n in (0, 4))
    found = [float(held(t)) for t in range(12)]
    expected = np.repeat([float(moving(t)) for t in (0, 3, 6, 9)], 3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_drop_inside_a_step_comes_before_it():
    schedule = optim.make_schedule("drops", 1.0, 7, drops=(0.6, 1.0))
    np.testing.assert_allclose([schedule(t) for t in (3, 4, 6, 7)], [1, 0.1, 0.1, 0.01], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"pieces": 5}, "pieces=5 do not divide"),
        ("constant", {"end": 0.1}, "for 'cosine'"),
        ("drops", {"warmup_from": 0.1, "drops": (0.5,)}, "for 'constant' and 'cosine'"),
    ],
)
def test_bad_shapes_of_schedules(name, options, message):
    with pytest.raises(ValueError, match=message):
        optim.make_schedule(name, 1.0, 12, **options)
