"""Kinds of `airl` about optimizers: layer-wise rates, and schedules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from case import Case, close

from jaxequi.methods import _siamese
from jaxequi.train import lars, optim

STEP = {"rtol": 1e-5, "atol": 1e-7}


def _steps(case: Case, form: str, decays, **options):
    """Take the case's steps; yields parameters and state after each."""
    params = jax.tree.map(jnp.asarray, case.under("param"))
    rates = jnp.asarray(case.meta["lrs"])
    make = lars.FORMS[form]
    optimizer = make(
        lambda t: rates[t],
        case.meta["weight_decay"],
        decays,
        momentum=case.meta["momentum"],
        **options,
    )
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(len(case.meta["lrs"])):
        updates, state = update(case.under(f"in/grad_{i}"), state, params)
        params = optax.apply_updates(params, updates)
        yield i, params, optax.tree.get(state, "trace")


def _compare(case: Case, steps, buffer: str = "", sign: int = 1) -> None:
    for i, params, trace in steps:
        for name, expected in case.under(f"out/param_{i}").items():
            close(params[name], expected, **STEP, name=f"{name} after step {i}")
        for name, expected in case.under(f"out/{buffer}_{i}").items() if buffer else ():
            close(sign * trace[name], expected, **STEP, name=f"buffer of {name}, step {i}")


def lars_steps(case: Case) -> None:
    excluded = case.meta["excluded_params"]
    assert not case.meta["weight_decay_exclude"]  # the form has no other
    _compare(
        case,
        _steps(
            case,
            "lars",
            lambda params: {name: name not in excluded for name in params},
            trust=case.meta["eta"],
        ),
        "buf",
        sign=-1,  # our steps are added
    )


def mae_lars(case: Case) -> None:
    _compare(case, _steps(case, "lars_mocov3", None, trust=case.meta["trust"]), "mu")


def simsiam_larc(case: Case) -> None:
    _compare(case, _steps(case, "larc", None, trust=case.meta["trust"]))


def _table(schedule, counts):
    return np.asarray([schedule(c) for c in np.asarray(counts)])


def rate(meta, height: float, name: str, milestones, total_steps: int, warmup_steps: int):
    """A schedule of revisitAIRL; milestones are parts of the run."""
    if name == "multistep":
        drops = tuple(m for m in milestones if m <= 1)
        return {"schedule": "drops", "drops": drops}
    if name == "cos":
        return {"schedule": "cosine"}
    return {"schedule": "cosine", "warmup_steps": warmup_steps, "warmup_from": 1e-6}


def schedules(case: Case) -> None:
    with jax.enable_x64(True):
        for i, c in enumerate(case.meta["configs"]):
            total, counts = c["epochs"] * c["ipe"], case[f"in/{i}/iter_count"]
            height = c["lr"] * c["bs"] / 256
            percent = [m / 100 for m in c["miles"]]
            of_epochs = [m / c["epochs"] for m in c["miles"]]
            for key, name, at, top in (
                ("lr", c["sched"], percent, height),
                ("lr_cls", c["sched_cls"], of_epochs, c["lr_cls"]),
            ):
                options = rate(c, top, name, at, total, c["ipe"] * c["warm"])
                schedule = optim.make_schedule(options.pop("schedule"), top, total, **options)
                expected = case[f"out/{i}/{key}"]
                close(_table(schedule, counts), expected, rtol=1e-12, name=f"{i} {key}")
            m = [1 - _siamese.share(c["m0"], "cosine", count / total) for count in counts]
            close(m, case[f"out/{i}/ema_momentum"], rtol=1e-12, name=f"{i} momentum")


def lr_tables(case: Case) -> None:
    with jax.enable_x64(True):
        for i, c in enumerate(case.meta["mae"]):
            schedule = optim.make_schedule(
                "cosine", c["lr"], c["epochs"], c["warmup_epochs"], end=c["min_lr"]
            )
            found = _table(schedule, case[f"in/mae_{i}/epoch_float"])
            close(found, case[f"out/mae_{i}/lr"], rtol=1e-12, name=f"MAE {i}")
            scaled = case[f"out/mae_{i}/lr_scaled065"]
            close(0.65 * found, scaled, rtol=1e-12, name=f"MAE {i} scaled")
        for i, c in enumerate(case.meta["moco"]):
            length, epochs = 3, c["epochs"]  # any number of steps an epoch
            options = {"name": "drops", "drops": tuple(e / epochs for e in c["schedule"])}
            if c.get("cos"):
                options = {"name": "cosine", "pieces": epochs}
            schedule = optim.make_schedule(height=c["lr"], total_steps=length * epochs, **options)
            found = _table(schedule, np.arange(length * epochs)).reshape(epochs, length)
            expected = case[f"out/moco_{i}/lr_per_epoch"][:, None]
            close(found, np.tile(expected, length), rtol=1e-12, name=f"MoCo {i}")
        for i, c in enumerate(case.meta["simsiam"]):
            height = c["lr"] * c["batch_size"] / 256
            for key, options in (
                ("lr_encoder", {"name": "cosine", "pieces": c["epochs"]}),
                ("lr_predictor_fixed", {"name": "constant"}),
            ):
                schedule = optim.make_schedule(height=height, total_steps=c["epochs"], **options)
                found = _table(schedule, np.arange(c["epochs"])) * np.ones(c["epochs"])
                close(found, case[f"out/simsiam_{i}/{key}"], rtol=1e-12, name=key)


OPTIMIZERS = {
    "lars": lars_steps,
    "mae_lars": mae_lars,
    "simsiam_larc": simsiam_larc,
    "schedules": schedules,
    "lr_tables": lr_tables,
}
