"""Optimizers with torch's arithmetic, schedules as functions of the step, masks by parameter name.

An optimizer is an optax chain in the order in which torch computes, so that a run can be compared
with a reference's step by step. Under `jit` XLA makes one pass over the parameters of it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxequi.names import unknown
from jaxequi.types import PyTree


def _adam(
    betas: tuple[float | optax.Schedule, float] = (0.9, 0.999), epsilon: float = 1e-8
) -> optax.GradientTransformation:
    if callable(betas[0]):  # the bias correction takes the power of the current value, as torch
        return optax.inject_hyperparams(optax.scale_by_adam)(betas[0], betas[1], epsilon)
    return optax.scale_by_adam(*betas, eps=epsilon)


def _sgd(momentum: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adam,
    "sgd": _sgd,
}
_DECOUPLED = ("adamw",)


def make(
    name: str,
    *,
    total_steps: int,
    batch_size: int,
    learning_rate: float | None = None,
    base_lr: float | None = None,
    schedule: str = "constant",
    warmup_steps: int = 0,
    drops: tuple[float, ...] = (),
    factor: float = 0.1,
    weight_decay: float = 0.0,
    no_decay: str = "",
    freeze: str = "",
    **options: Any,
) -> optax.GradientTransformation:
    """Make an optimizer.

    Args:
      name: "adam", "adamw" or "sgd".
      total_steps: length of the run, where a schedule ends.
      batch_size: the global one.
      learning_rate: the schedule's height. Or instead of it
      base_lr: the height for a batch of 256, to be scaled by batch_size / 256.
      schedule, warmup_steps, drops, factor: see `make_schedule`. With "onecycle" the first beta of
        adam cycles too, from 0.95 to 0.85 and back (torch's `cycle_momentum`).
      weight_decay: times the parameter. In adam and sgd it is added to the gradient before all
        else (torch's coupled L2); in adamw to the step, before the learning rate.
      no_decay: parameters without weight decay, as a regex that is searched in the path of each
        ("backbone/conv1/kernel"); an empty one leaves none out.
      freeze: parameters that never change, in the same way; they have no moments either.
      options: `betas`, `epsilon` of adam and adamw; `momentum`, `nesterov` of sgd.

    Raises:
      ValueError: unknown name, schedule or option; both or none of the learning rates; a warm-up
        longer than the run; and, when it meets the parameters, a regex that matches none.
    """
    if name not in _OPTIMIZERS:
        raise unknown("optimizer", name, _OPTIMIZERS)
    for option in options:
        allowed = inspect.signature(_OPTIMIZERS[name]).parameters
        if option not in allowed:
            raise unknown(f"option of {name}", option, allowed)
    if learning_rate is not None and base_lr is None:
        height = learning_rate
    elif base_lr is not None and learning_rate is None:
        height = base_lr * batch_size / 256
    else:
        raise ValueError(
            f"learning_rate={learning_rate}, base_lr={base_lr}: give one of the two; base_lr is "
            "multiplied by batch_size / 256"
        )
    if schedule == "onecycle":
        if name not in ("adam", "adamw") or "betas" in options:
            raise ValueError(
                'schedule="onecycle" cycles the first beta of adam itself: take adam or adamw, and '
                "give no betas"
            )
        options["betas"] = (_one_cycle(0.95, 0.85, 0.95, total_steps), 0.999)
    direction = [_OPTIMIZERS[name](**options)]
    if weight_decay:
        keep = _matching("no_decay", no_decay, here=False) if no_decay else None
        place = 1 if name in _DECOUPLED else 0
        direction.insert(place, optax.add_decayed_weights(weight_decay, keep))
    rate = make_schedule(schedule, height, total_steps, warmup_steps, drops, factor)
    optimizer = optax.chain(*direction, optax.scale_by_learning_rate(rate))
    if freeze:
        groups = {True: optax.set_to_zero(), False: optimizer}
        optimizer = optax.partition(groups, _matching("freeze", freeze))
    return optimizer


def make_schedule(
    name: str,
    height: float,
    total_steps: int,
    warmup_steps: int = 0,
    drops: tuple[float, ...] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Make a learning rate as a function of the number of updates done.

    Args:
      name: "constant"; "cosine": half a period, from the height to 0 at `total_steps`; "drops":
        times `factor` after each of the `drops`; "onecycle": torch's OneCycleLR by cosines, from
        height / 25 to the height at three tenths of the run, and down to height / 250000.
      height: where the rise ends, and the schedule begins.
      total_steps: length of the run, warm-up included.
      warmup_steps: steps of a linear rise, t / warmup_steps; of "drops" (t + 1) / warmup_steps, as
        the references have it.
      drops: parts of the run, such as (1/3, 2/3, 8/9) for epochs 30, 60 and 80 of 90.
      factor: of each drop.

    Raises:
      ValueError: unknown name, a warm-up longer than the run or that "onecycle" has of its own, or
        drops for another schedule or outside the run.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} of {total_steps} steps")
    if warmup_steps and name == "onecycle":
        raise ValueError(f"warmup_steps={warmup_steps}: onecycle has a rise of its own; give 0")
    if bool(drops) != (name == "drops") or not all(0 < d < 1 for d in drops):
        raise ValueError(
            f"drops={tuple(drops)} for schedule {name!r}: 'drops', and no other, takes parts of "
            "the run between 0 and 1"
        )
    length = max(total_steps - warmup_steps, 1)
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(height),
        "cosine": lambda: optax.cosine_decay_schedule(height, length),
        "drops": lambda: _drops(height, total_steps, warmup_steps, drops, factor),
        "onecycle": lambda: _one_cycle(height / 25, height, height / 25 / 1e4, total_steps),
    }
    if name not in schedules:
        raise unknown("schedule", name, schedules)
    if name in ("drops", "onecycle"):
        return schedules[name]()
    rise = optax.linear_schedule(0.0, height, warmup_steps)
    return optax.join_schedules([rise, schedules[name]()], [warmup_steps])


def _drops(
    height: float, total_steps: int, warmup_steps: int, drops: tuple[float, ...], factor: float
) -> optax.Schedule:
    """(t + 1) / warmup_steps up to the height, times `factor` for each drop that is past."""
    bounds = jnp.array([round(d * total_steps) for d in drops])

    def schedule(count: Any) -> Any:
        past = jnp.sum(count >= bounds)
        rise = jnp.minimum((count + 1) / warmup_steps, 1.0) if warmup_steps else 1.0
        return height * rise * factor**past

    return schedule


def _one_cycle(start: float, middle: float, end: float, total_steps: int) -> optax.Schedule:
    """Half a cosine from start to middle over 0.3 of the run, another to the end (torch)."""
    turn, last = 0.3 * total_steps - 1, total_steps - 1

    def between(a: float, b: float, part: Any) -> Any:
        return b + (a - b) / 2 * (1 + jnp.cos(math.pi * part))

    def schedule(count: Any) -> Any:
        rise = between(start, middle, count / turn)
        fall = between(middle, end, (count - turn) / (last - turn))
        return jnp.where(count <= turn, rise, fall)

    return schedule


def _matching(what: str, pattern: str, here: bool = True) -> Callable[[PyTree], PyTree]:
    """Make a function of a tree that is `here` at leaves whose path matches, else not `here`."""

    def mask(tree: PyTree) -> PyTree:
        def matches(path: tuple[Any, ...], leaf: Any) -> bool:
            del leaf
            return bool(re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/")))

        found = jax.tree_util.tree_map_with_path(matches, tree)
        if not any(jax.tree.leaves(found)):
            raise ValueError(f"{what}={pattern!r} matches the path of no parameter")
        return jax.tree.map(lambda match: match == here, found)

    return mask
