"""Kinds of `eqinv` about stage 1, IP-IRM: losses, steps, the partition search, the encoder."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close

from jaxequi.objectives import contrastive, irm, partition

LOSS = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol_of_max": 2e-5}


def infonce(case: Case) -> None:
    """Logits, their order, loss and penalty with gradients; an environment of one, and of none."""
    features, n = jnp.asarray(case["in/features"]), case.meta["n"]
    a, b = features[:n], features[n:]
    temperature, penalty_temperature = case.meta["temperature"], case.meta["irm_temp"]
    logits = contrastive.ntxent_logits(a, b, temperature)
    close(logits, case["out/logits"], **LOSS, name="logits")
    close(logits, case["out/logits_update"], **LOSS, name="logits_update")
    assert not case["out/labels"].any()
    # Which example a column holds: of cosines that say it.
    example = np.tile(np.arange(n), 2)
    of = [[i, *np.delete(example, [r, (r + n) % (2 * n)])] for r, i in enumerate(example)]
    np.testing.assert_array_equal(of, case["out/index_update"])
    where = jnp.zeros(n, jnp.int32)

    def losses(features, environment=where):
        a, b = features[:n], features[n:]
        return irm.by_environment(a, b, environment, 2, temperature, penalty_temperature)

    loss, penalty, count = losses(features)
    np.testing.assert_array_equal(count, [n, 0])
    np.testing.assert_array_equal([loss[1], penalty[1]], 0)  # theirs raises for an empty one
    close(loss[0], case["out/cross_entropy"], **LOSS, name="loss")
    close(penalty[0], case["out/penalty"], **LOSS, name="penalty")

    def unscaled(part, scale):
        """A gradient by features of length 1 of which lengths are no part."""
        found = jax.grad(lambda f: losses(f)[part][0])(features)
        expected = case[f"grad/{scale}_features"]
        along = np.sum(expected * np.asarray(features), axis=1, keepdims=True)
        close(found, expected - along * np.asarray(features), **GRADIENT, name=scale)

    unscaled(0, "ce")
    unscaled(1, "penalty")
    given = jnp.asarray(case["out/logits"]) * temperature / penalty_temperature
    close(irm.column_penalty(given), case["out/penalty"], **LOSS, name="penalty of logits")
    gradient = jax.grad(irm.column_penalty)(given)
    close(gradient, case["grad/penalty_logits"], **GRADIENT, name="by logits")
    one = contrastive.ntxent_logits(a[:1], b[:1], 1.0)
    loss, penalty, _ = irm.by_environment(a[:1], b[:1], where[:1], 1, 1.0, 1.0)
    assert one.shape == case["out/one_sample_logits"].shape == (2, 1)
    close(loss[0], case["out/one_sample_ce"], **LOSS, name="one")
    close(penalty[0], case["out/one_sample_penalty"], **LOSS, name="one")


VARIANTS = {
    "plain": {},
    "relax_inactive": {"constraint": "relaxed"},
    "relax_active": {"constraint": "relaxed", "split": "split_skewed"},
    "constrain": {"constraint": "entropy", "split": "split_skewed"},
    "nonorm": {"constraint": "entropy", "normalize": False},
    "irm_v2": {"mode": "variance"},
    "three_envs": {"constraint": "relaxed", "split": "split3"},
    "temps": {"temperature": 0.2, "penalty_temperature": 0.3, "weight": 2},
}
TERMS = {"risk": "risk", "cont": "contrastive", "inv": "variation", "constrain": "constraint"}


def partition_objective(case: Case) -> None:
    """The risk of a batch of a soft partition, and its gradient; the soft loss alone."""
    index, meta = case["in/index"], case.meta
    a, b = (jnp.asarray(case[f"in/out_{view}"])[index] for view in (1, 2))
    for name, changes in VARIANTS.items():
        given = {
            "temperature": meta["temperature"],
            "penalty_temperature": meta["irm_temp"],
            "weight": meta["irm_weight"],
            "normalize": True,
            **changes,
        }
        split = jnp.asarray(case[f"in/{given.pop('split', 'split')}"])
        temperatures = {k: given.pop(k) for k in ("temperature", "penalty_temperature")}
        losses = partition.infonce(a, b, normalize=given["normalize"], **temperatures)

        def risk(split, losses=losses, given=given):
            found = partition.risk(losses, split[index], **given)
            return found.risk, found

        gradient, found = jax.grad(risk, has_aux=True)(split)
        for term, field in TERMS.items():
            close(getattr(found, field), case[f"out/{name}/{term}"], **LOSS, name=f"{name} {term}")
        close(gradient, case[f"grad/{name}/split"], **GRADIENT, name=name)

    def soft(rows, mode):
        shares = jax.nn.softmax(rows)
        if mode == 1:
            return partition.scaled_infonce(a, b, shares[:, 0], meta["temperature"])
        both = {"temperature": meta["temperature"], "penalty_temperature": meta["irm_temp"]}
        return partition.infonce(a, b, **both)(shares)[0][0]

    rows = jnp.asarray(case["in/split"])[index]
    for mode in (1, 2):
        value, gradient = jax.value_and_grad(functools.partial(soft, mode=mode))(rows)
        close(value, case[f"out/soft_v{mode}"], **LOSS, name=f"soft v{mode}")
        close(gradient, case[f"grad/soft_v{mode}/split_rows"], **GRADIENT, name=f"soft v{mode}")


def mixup_soft(case: Case) -> None:
    """The soft losses of mixtures, of one environment."""
    share, partner = jnp.asarray(case["in/lam"]), jnp.asarray(case["in/labels_aux"])
    for name in ("online", "online_nonorm", "offline", "offline_nonorm"):
        given = partner if name.startswith("online") else None

        def loss(logits, weights, name=name, given=given):
            losses = partition.mixed_infonce(
                logits, share, given, normalize=not name.endswith("nonorm")
            )
            return losses(weights[:, None])[0][0]

        arguments = jnp.asarray(case["in/logits"]), jnp.asarray(case["in/weights"])
        value, gradients = jax.value_and_grad(loss, (0, 1))(*arguments)
        close(value, case[f"out/{name}"], **LOSS, name=name)
        for of, gradient in zip(("logits", "weights"), gradients, strict=True):
            close(gradient, case[f"grad/{name}/{of}"], **GRADIENT, name=f"{name} {of}")


KINDS = {
    "ipirm_infonce": infonce,
    "ipirm_partition_objective": partition_objective,
    "ipirm_mixup_soft": mixup_soft,
}
