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
from jaxequi.train import lars
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
    warmup_from: float = 0.0,
    end: float = 0.0,
    pieces: int = 0,
    weight_decay: float = 0.0,
    no_decay: str = "",
    freeze: str = "",
    **options: Any,
) -> optax.GradientTransformation:
    """Make an optimizer.

    Args:
      name: "adam", "adamw", "sgd", or one of `lars.FORMS`: "larc", "lars", "lars_mocov3".
      total_steps: length of the run, where a schedule ends.
      batch_size: the global one.
      learning_rate: the schedule's height. Or instead of it
      base_lr: the height for a batch of 256, to be scaled by batch_size / 256.
      schedule, warmup_steps, drops, factor, warmup_from, end, pieces: see `make_schedule`. With
        "onecycle" the first beta of adam cycles too, from 0.95 to 0.85 and back (torch's
        `cycle_momentum`).
      weight_decay: times the parameter. In adam and sgd it is added to the gradient before all
        else (torch's coupled L2); in adamw to the step, before the learning rate.
      no_decay: parameters without weight decay, as a regex that is searched in the path of each
        ("backbone/conv1/kernel"); an empty one leaves none out.
      freeze: parameters that never change, in the same way; they have no moments either.
      options: `betas`, `epsilon` of adam and adamw; `momentum`, `nesterov` of sgd; these and
        `trust` of the layer-wise forms.

    Raises:
      ValueError: unknown name, schedule or option; both or none of the learning rates; a warm-up
        longer than the run; and, when it meets the parameters, a regex that matches none.
    """
    makers = _OPTIMIZERS | lars.FORMS
    if name not in makers:
        raise unknown("optimizer", name, makers)
    for option in options:
        allowed = inspect.signature(makers[name]).parameters
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
    rate = make_schedule(
        schedule, height, total_steps, warmup_steps, drops, factor, warmup_from, end, pieces
    )
    keep = _matching("no_decay", no_decay, here=False) if no_decay else None
    if name in lars.FORMS:
        optimizer = lars.FORMS[name](rate, weight_decay, keep, **options)
    else:
        direction = [_OPTIMIZERS[name](**options)]
        if weight_decay:
            place = 1 if name in _DECOUPLED else 0
            direction.insert(place, optax.add_decayed_weights(weight_decay, keep))
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
    warmup_from: float = 0.0,
    end: float = 0.0,
    pieces: int = 0,
) -> optax.Schedule:
    """Make a learning rate as a function of the number of updates done.

    Args:
      name: "constant"; "cosine": half a period, from the height to `end` at `total_steps`; "drops":
        times `factor` after each of the `drops`; "onecycle": torch's OneCycleLR by cosines, from
        height / 25 to the height at three tenths of the run, and down to height / 250000.
      height: where the rise ends, and the schedule begins.
      total_steps: length of the run, warm-up included.
      warmup_steps: steps of a linear rise, t / warmup_steps; of "drops" (t + 1) / warmup_steps, as
        the references have it.
      drops: parts of the run, such as (1/3, 2/3, 8/9) for epochs 30, 60 and 80 of 90; a drop
        inside a step comes before it.
      factor: of each drop.
      warmup_from: where the rise of "constant" and "cosine" begins.
      end: of "cosine".
      pieces: equal parts of the run, each of which keeps the rate that "cosine" has at its first
        step: the number of epochs for a rate that changes from epoch to epoch; 0 for a rate that
        changes from step to step.

    Raises:
      ValueError: unknown name; a warm-up longer than the run or that "onecycle" has of its own;
        drops for another schedule or outside the run; pieces that the run does not consist of; or
        warmup_from, end or pieces for a schedule without.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} of {total_steps} steps")
    if warmup_steps and name == "onecycle":
        raise ValueError(f"warmup_steps={warmup_steps}: onecycle has a rise of its own; give 0")
    if bool(drops) != (name == "drops") or not all(0 < d <= 1 for d in drops):
        raise ValueError(
            f"drops={tuple(drops)} for schedule {name!r}: 'drops', and no other, takes parts of "
            "the run between 0 and 1"
        )
    allowed = {"constant": (warmup_from, 0.0, 0), "cosine": (warmup_from, end, pieces)}
    if (warmup_from, end, pieces) != allowed.get(name, (0.0, 0.0, 0)):
        raise ValueError(
            f"warmup_from={warmup_from}, end={end}, pieces={pieces} for schedule {name!r}: the "
            "first is for 'constant' and 'cosine', the others are for 'cosine'"
        )
    if pieces and total_steps % pieces:
        raise ValueError(f"pieces={pieces} do not divide the run of {total_steps} steps")
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(height),
        "cosine": lambda: _cosine(height, total_steps, warmup_steps, end, pieces),
        "drops": lambda: _drops(height, total_steps, warmup_steps, drops, factor),
        "onecycle": lambda: _one_cycle(height / 25, height, height / 25 / 1e4, total_steps),
    }
    if name not in schedules:
        raise unknown("schedule", name, schedules)
    if name in ("drops", "onecycle"):
        return schedules[name]()
    return _risen(schedules[name](), warmup_from, height, warmup_steps)


def _risen(
    schedule: optax.Schedule, start: float, height: float, warmup_steps: int
) -> optax.Schedule:
    """Rise from the start to the height first."""
    if not warmup_steps:
        return schedule

    def risen(count: Any) -> Any:
        rise = start + (height - start) * count / warmup_steps
        return jnp.where(count < warmup_steps, rise, schedule(count))

    return risen


def _cosine(
    height: float, total_steps: int, warmup_steps: int, end: float, pieces: int
) -> optax.Schedule:
    """Half a cosine from the height to the end."""
    length = max(total_steps - warmup_steps, 1)

    def schedule(count: Any) -> Any:
        if pieces:
            count = count // (total_steps // pieces) * (total_steps // pieces)
        part = jnp.clip((count - warmup_steps) / length, 0, 1)
        return end + (height - end) / 2 * (1 + jnp.cos(math.pi * part))

    return schedule


def _drops(
    height: float, total_steps: int, warmup_steps: int, drops: tuple[float, ...], factor: float
) -> optax.Schedule:
    """(t + 1) / warmup_steps up to the height, times `factor` for each drop that is past."""
    # The epsilon is for parts such as 1/3, whose product falls short of a whole number.
    bounds = jnp.array([int(d * total_steps + 1e-6) for d in drops])

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
