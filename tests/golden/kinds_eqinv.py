"""Cases of `eqinv` about pictures: the baseline's mixup."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close
from kinds_ipirm import KINDS as IPIRM

from jaxequi.augment import mixture


def mixup(case: Case):
    """Mixed pictures, targets and the three losses with their gradients."""
    classes, epsilon = case.meta["num_class"], case.meta["epsilon"]
    views = jnp.moveaxis(jnp.asarray(case["in/x"]), 1, -1)
    label, share = jnp.asarray(case["in/y"]), jnp.float32(case["in/lam"])
    partner = case["in/index"]
    mixed = jnp.moveaxis(mixture.mix(views, views[partner], share), -1, 1)
    close(mixed, case["out/mixed"], rtol=1e-5, atol=1e-6, name="mixed")
    np.testing.assert_array_equal(label[partner], case["out/y_b"])
    logits = mixed.reshape(len(mixed), -1) @ case["in/weight"].T
    close(logits, case["out/logits"], rtol=1e-4, atol_of_max=1e-5, name="logits")
    one = jnp.float32(1)
    for name, first, part, smoothing in (
        ("loss", label[partner], share, 0.0),
        ("loss_label_smooth", label[partner], share, epsilon),
        ("plain_label_smooth", label, one, epsilon),
    ):
        rows = mixture.targets(label, first, part, classes, smoothing)

        def loss(x, rows=rows):
            return -jnp.mean(jnp.sum(rows * jax.nn.log_softmax(x), axis=-1))

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(case["out/logits"]))
        close(value, case[f"out/{name}"], rtol=1e-5, name=name)
        key = "grad/logits" + name.removeprefix("loss").replace("plain", "_plain")
        close(gradient, case[key], rtol=1e-4, atol_of_max=1e-5, name=key)
        if name == "loss":
            of_weight = gradient.T @ mixed.reshape(len(mixed), -1)
            close(of_weight, case["grad/weight"], rtol=1e-4, atol_of_max=1e-5, name="weight")


KINDS = {**IPIRM, "mixup": mixup}
