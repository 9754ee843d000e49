"""Layer-wise rates: their three forms by hand, and what each leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxequi.train import lars, optim

RUN = {"batch_size": 256, "total_steps": 4, "learning_rate": 2.0}
W, B = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([0.3, 0.4])  # of norm 5 and 0.5
GW, GB = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([0.0, 2.0])


def step(optimizer, params, grads, state=None):
    state = optimizer.init(params) if state is None else state
    updates, state = jax.jit(optimizer.update)(grads, state, params)
    return optax.apply_updates(params, updates), state


def start():
    return {"kernel": jnp.asarray(W), "bias": jnp.asarray(B)}, {
        "kernel": jnp.asarray(GW),
        "bias": jnp.asarray(GB),
    }


@pytest.mark.parametrize(
    ("form", "kernel", "bias"),
    [
        # 0.001 * 5 / (1 + 0.1 * 5) of g + 0.1 w; the bias is excluded, and learns as it is
        ("lars", 0.005 / 1.5 * (GW + 0.1 * W), GB),
        # 0.001 * 5 / |g + 0.1 w| of the same, |g + 0.1 w|^2 = 1 + 0.3^2 + 0.4^2
        ("lars_mocov3", 0.005 / 1.25**0.5 * (GW + 0.1 * W), GB),
        # the bias is scaled too, 0.001 * 0.5 / 2, and decays not
        ("larc", 0.005 / 1.5 * (GW + 0.1 * W), 0.00025 * GB),
    ],
)
def test_a_first_step_by_hand(form, kernel, bias):
    params, grads = start()
    optimizer = optim.make(form, weight_decay=0.1, no_decay="bias", **RUN)
    after, _ = step(optimizer, params, grads)
    np.testing.assert_allclose(after["kernel"], W - 2 * kernel, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(after["bias"], B - 2 * bias, rtol=1e-6)


@pytest.mark.parametrize("form", lars.FORMS)
@pytest.mark.parametrize("what", ["params", "grads"])
def test_a_norm_of_zero_scales_nothing(form, what):
    params, grads = start()
    tree = params if what == "params" else grads
    tree["kernel"] = jnp.zeros_like(tree["kernel"])
    optimizer = optim.make(form, weight_decay=0.1, no_decay="bias", **RUN)
    after, _ = step(optimizer, params, grads)
    expected = params["kernel"] - 2 * grads["kernel"]
    if what == "grads" and form != "larc":  # which does not even decay it
        decayed = 0.1 * W
        if form == "lars_mocov3":  # whose gradient has the decay in it
            decayed = 0.005 / 0.5 * decayed
        expected = W - 2 * decayed
    np.testing.assert_allclose(after["kernel"], expected, rtol=1e-6)


def test_without_decay_the_papers_form_is_momentum_sgd():
    params, grads = start()
    after, _ = step(optim.make("lars", **RUN), params, grads)
    np.testing.assert_allclose(after["kernel"], W - 2 * GW, rtol=1e-6)


@pytest.mark.parametrize(("form", "second"), [("lars", 2.0 * 0.9 + 1), ("lars_mocov3", 1.9)])
def test_whether_the_momentum_has_seen_the_rate(form, second):
    """The rate falls from 2 to 1: steps made before keep theirs, or take the new one."""
    params, grads = start()
    rates = jnp.array([2.0, 1.0])
    optimizer = lars.FORMS[form](lambda t: rates[t], 0.0, None)
    first, state = step(optimizer, params, grads)
    after, _ = step(optimizer, first, grads, state)
    np.testing.assert_allclose(after["bias"], first["bias"] - second * GB, rtol=1e-6)


def test_unknown_options():
    with pytest.raises(ValueError, match="Did you mean 'trust'"):
        optim.make("lars", truts=0.01, **RUN)
