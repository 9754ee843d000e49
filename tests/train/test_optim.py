"""Optimizers against torch's update rules written out, schedules at their corners, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxequi.errors import Refusal
from jaxequi.train import optim
from jaxequi.train.state import initialise
from jaxequi.train.step import make_train_step
from jaxequi.types import Method, Output

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


HEAD_SGD = {"match": "^head/", "name": "sgd", "learning_rate": 0.05, "momentum": 0.9}


def test_each_group_follows_its_own_optimizer():
    options = {"betas": (0.9, 0.99), "epsilon": 1e-4}
    ours = optim.make(
        "adam", learning_rate=0.01, weight_decay=0.1, groups={"heads": HEAD_SGD}, **options, **RUN
    )
    found = run(ours)
    assert_close(found["backbone"], torch(adam(coupled=0.1, decoupled=0))["backbone"])
    # It takes over neither the decay nor the learning rate of the main group.
    assert_close(found["head"], torch(sgd(0.9, False, coupled=0.0, lr=0.05))["head"])
    labels = ours.groups(a_tree(0))
    assert labels == {
        "backbone": {"conv": {"kernel": "main"}},
        "head": {"kernel": "heads", "bias": "heads"},
    }


def test_a_group_has_a_schedule_and_a_base_lr_of_its_own():
    heads = {"match": "^head/", "name": "sgd", "base_lr": 0.2, "warmup_steps": 2}
    ours = optim.make("sgd", learning_rate=0.01, groups={"heads": heads}, **RUN)
    found, rates = run(ours), [0, 0.025, 0.05, 0.05]  # 0.2 * 64 / 256
    assert_close(found["head"], torch(lambda p, g, m, t, d: p - rates[t] * g)["head"])
    assert_close(found["backbone"], torch(lambda p, g, m, t, d: p - 0.01 * g)["backbone"])
    assert sorted(ours.rates) == ["learning_rate", "learning_rate/heads"]
    np.testing.assert_allclose([ours.rates["learning_rate/heads"](t) for t in range(4)], rates)
    np.testing.assert_allclose([ours.rates["learning_rate"](t) for t in range(4)], 0.01)


def test_a_frozen_group_beside_a_trained_one():
    groups = {"bias": {"match": "bias", "name": "sgd", "learning_rate": 0.5}}
    ours = optim.make("sgd", learning_rate=0.01, freeze="^backbone/", groups=groups, **RUN)
    found = run(ours)
    assert ours.groups(a_tree(0))["backbone"]["conv"]["kernel"] == optim.FROZEN
    np.testing.assert_array_equal(
        found["backbone"]["conv"]["kernel"], np.float32(a_tree(0)["backbone"]["conv"]["kernel"])
    )
    assert_close(found["head"]["bias"], torch(lambda p, g, *_: p - 0.5 * g)["head"]["bias"])
    assert_close(found["head"]["kernel"], torch(lambda p, g, *_: p - 0.01 * g)["head"]["kernel"])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_scales_multiply_the_learning_rate_and_the_first_match_wins(name):
    scales = (("kernel$", 0.5), ("^head/", 3.0))
    found = run(optim.make(name, learning_rate=0.01, weight_decay=0.1, scales=scales, **RUN))
    by_rate = {
        factor: run(optim.make(name, learning_rate=0.01 * factor, weight_decay=0.1, **RUN))
        for factor in (0.5, 3.0)
    }
    assert_close(found["backbone"]["conv"]["kernel"], by_rate[0.5]["backbone"]["conv"]["kernel"])
    assert_close(found["head"]["kernel"], by_rate[0.5]["head"]["kernel"])
    assert_close(found["head"]["bias"], by_rate[3.0]["head"]["bias"])


def test_what_no_scale_matches_keeps_its_learning_rate():
    found = run(optim.make("sgd", learning_rate=0.01, scales=(("^head/", 0.1),), **RUN))
    assert_close(found["backbone"], torch(lambda p, g, *_: p - 0.01 * g)["backbone"])
    assert_close(found["head"], torch(lambda p, g, *_: p - 0.001 * g)["head"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"groups": {"heads": HEAD_SGD, "bias": {**HEAD_SGD, "match": "bias"}}},
            r"head/bias is in the groups heads and bias.*'\^head/', 'bias'",
        ),
        ({"freeze": "kernel", "groups": {"heads": HEAD_SGD}}, "head/kernel .* frozen and heads"),
        (
            {"groups": {"heads": {**HEAD_SGD, "match": "haed"}}},
            r"group heads \('haed'\) matches the path of no parameter; the 3 paths are backbone",
        ),
        (
            {"freeze": "x1", "groups": {"heads": {**HEAD_SGD, "match": "x2"}}},
            r"frozen \('x1'\), heads \('x2'\)",
        ),
        (
            {"scales": (("kernel", 0.5), ("kernel$", 2.0))},
            r"scales: 'kernel\$', after the patterns before it, matches",
        ),
    ],
)
def test_patterns_that_do_not_fit_the_parameters(arguments, message):
    optimizer = optim.make("sgd", learning_rate=0.1, **arguments, **RUN)
    with pytest.raises(Refusal, match=message):
        run(optimizer, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"heads": {"name": "sgd", "learning_rate": 0.1}}}, r"groups.heads.*`match`"),
        ({"groups": {"main": HEAD_SGD}}, r"groups.main.*a name of its own"),
        ({"groups": {"frozen": HEAD_SGD}}, r"groups.frozen.*a name of its own"),
        ({"groups": {"heads": {**HEAD_SGD, "match": "(head"}}}, r"heads, '\(head', is no regular"),
        ({"freeze": "*"}, r"frozen, '\*', is no regular"),
        ({"scales": (("[", 0.5),)}, r"scales, '\[', is no regular"),
        ({"groups": {"heads": {"match": "x", "learning_rate": 1.0}}}, r"groups.heads.*name"),
        ({"groups": {"heads": {**HEAD_SGD, "nam": 1}}}, "option of sgd 'nam'"),
    ],
)
def test_groups_that_cannot_be(arguments, message):
    with pytest.raises(Refusal, match=message):
        optim.make("sgd", learning_rate=0.1, **arguments, **RUN)


CHANNELS, SIZE, IMAGES = 8, 10, 4


def convolutional():
    """Two convolutions of 3 x 3 and a linear layer; the mean square of its outputs."""

    def init(key, batch):
        del key, batch
        kernel = {"kernel": jnp.full((3, 3, CHANNELS, CHANNELS), 0.1)}
        head = {"kernel": jnp.full((CHANNELS, 1), 0.1)}
        return {"backbone": {"a": kernel, "b": kernel}, "head": head}, {}

    def loss(params, extra, batch, key, progress):
        x = batch["views"]
        for name in "ab":
            x = jax.lax.conv_general_dilated(
                x,
                params["backbone"][name]["kernel"],
                (1, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        outputs = x.reshape(-1, CHANNELS) @ params["head"]["kernel"]
        return jnp.mean(outputs**2), Output(extra, {}, {})

    return Method(init, loss, lambda *_: {})


def compiled_step(**arguments):
    method = convolutional()
    optimizer = optim.make("sgd", learning_rate=0.1, **arguments, **RUN)
    batch = {"views": jnp.ones((IMAGES, SIZE, SIZE, CHANNELS))}
    step = make_train_step(
        method, optimizer, lambda key, batch: batch, total_steps=STEPS, steps_per_epoch=2
    )
    state = initialise(method, optimizer, jax.random.key(0), batch)
    return jax.jit(step).lower(state, batch).compile(), state, batch


def test_frozen_parameters_cost_no_backward_pass():
    a_convolution = {side: 2 * IMAGES * side**2 * 9 * CHANNELS**2 for side in (SIZE - 2, SIZE - 4)}
    first, second = a_convolution.values()
    flops = {
        freeze: compiled_step(freeze=freeze)[0].cost_analysis()["flops"]
        for freeze in ("", "^backbone/", "backbone/a")
    }
    # Forward twice; backward of the second for its kernel and its input, of the first for its
    # kernel alone. The input's is a full convolution, which counts the zeros around it or does not.
    assert flops["^backbone/"] == pytest.approx(first + second, rel=0.05)
    whole = (first + second) + (first + second) + a_convolution[SIZE - 2]
    assert second * 2 + first * 2 < flops[""] <= 1.05 * whole
    assert flops["backbone/a"] == pytest.approx(first + 2 * second, rel=0.05)


def test_the_step_logs_the_rate_of_every_group_and_the_gradient_of_what_is_trained():
    heads = {"match": "^head/", "name": "sgd", "learning_rate": 0.25, "warmup_steps": 4}
    step, state, batch = compiled_step(freeze="backbone/a", groups={"heads": heads})
    start = state.params
    for rate in (0, 0.0625, 0.125):
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["learning_rate/heads"], rate)
        np.testing.assert_allclose(metrics["learning_rate"], 0.1)
    assert "learning_rate/frozen" not in metrics
    np.testing.assert_array_equal(
        state.params["backbone"]["a"]["kernel"], start["backbone"]["a"]["kernel"]
    )
    assert np.abs(state.params["backbone"]["b"]["kernel"] - 0.1).max() > 1e-4


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
