"""Optimizers with torch's arithmetic, schedules as functions of the step, masks by parameter name.

An optimizer is an optax chain in the order in which torch computes, so that a run can be compared
with a reference's step by step. Under `jit` XLA makes one pass over the parameters of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxequi.names import unknown
from jaxequi.types import PyTree


def _adam(
    betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
) -> optax.GradientTransformation:
    return optax.scale_by_adam(*betas, eps=epsilon)


def _sgd(momentum: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


_OPTIMIZERS = {"adam": _adam, "adamw": _adam, "sgd": _sgd}
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
      schedule, warmup_steps: see `make_schedule`.
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
    direction = [_OPTIMIZERS[name](**options)]
    if weight_decay:
        keep = _matching("no_decay", no_decay, here=False) if no_decay else None
        place = 1 if name in _DECOUPLED else 0
        direction.insert(place, optax.add_decayed_weights(weight_decay, keep))
    rate = make_schedule(schedule, height, total_steps, warmup_steps)
    optimizer = optax.chain(*direction, optax.scale_by_learning_rate(rate))
    if freeze:
        groups = {True: optax.set_to_zero(), False: optimizer}
        optimizer = optax.partition(groups, _matching("freeze", freeze))
    return optimizer


def make_schedule(
    name: str, height: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Make a learning rate as a function of the number of updates done.

    Args:
      name: "constant", or "cosine": half a period, from the height to 0 at `total_steps`.
      height: where the rise ends, and the schedule begins.
      total_steps: length of the run, warm-up included.
      warmup_steps: steps of a linear rise from 0.

    Raises:
      ValueError: unknown name, or a warm-up longer than the run.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} of {total_steps} steps")
    length = max(total_steps - warmup_steps, 1)
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(height),
        "cosine": lambda: optax.cosine_decay_schedule(height, length),
    }
    if name not in schedules:
        raise unknown("schedule", name, schedules)
    rise = optax.linear_schedule(0.0, height, warmup_steps)
    return optax.join_schedules([rise, schedules[name]()], [warmup_steps])


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
