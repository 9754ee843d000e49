"""Optimizers with torch's arithmetic, schedules as functions of the step, masks by parameter name.

An optimizer is an optax chain in the order in which torch computes, so that a run can be compared
with a reference's step by step. Under `jit` XLA makes one pass over the parameters of it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.train import lars
from jaxequi.types import PyTree


def _adam(
    betas: tuple[float | optax.Schedule, float] = (0.9, 0.999), epsilon: float = 1e-8
) -> optax.GradientTransformation:
    numbers = [b for b in betas if not callable(b)]
    if len(betas) != 2 or not all(0 <= b < 1 for b in numbers) or epsilon < 0:
        raise Refusal(
            f"betas={betas}, epsilon={epsilon}: two betas from 0 to below 1, epsilon not below 0"
        )
    if callable(betas[0]):  # the bias correction takes the power of the current value, as torch
        return optax.inject_hyperparams(optax.scale_by_adam)(betas[0], betas[1], epsilon)
    return optax.scale_by_adam(*betas, eps=epsilon)


def _sgd(momentum: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    if not 0 <= momentum < 1:
        raise Refusal(f"momentum={momentum}: take 0 to below 1, such as 0.9")
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adam,
    "sgd": _sgd,
}
_DECOUPLED = ("adamw",)

MAIN = "main"  # the group of every parameter that no other group has
FROZEN = "frozen"


class Optimizer(NamedTuple):
    """An optax transformation that says which parameters it treats alike, and how fast they learn.

    Attributes:
      init, update: as of `optax.GradientTransformation`.
      rates: `learning_rate`, and `learning_rate/<group>` of each further group, as functions of
        the number of updates done.
      groups: params -> a tree like it with the name of each parameter's group; the parameters of
        `FROZEN` never change.
    """

    init: Any
    update: Any
    rates: Mapping[str, optax.Schedule] = MappingProxyType({})
    groups: Callable[[PyTree], PyTree] = lambda params: jax.tree.map(lambda _: MAIN, params)


def make(
    name: str,
    *,
    total_steps: int,
    batch_size: int,
    freeze: str = "",
    groups: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    scales: Sequence[tuple[str, float]] = (),
    **options: Any,
) -> Optimizer:
    """Make an optimizer.

    Patterns are regexes that are searched in the path of each parameter ("backbone/conv1/kernel").

    Args:
      name: "adam", "adamw" or "sgd"; with `options` it is the optimizer of every parameter that no
        group has.
      total_steps: length of the run, where a schedule ends.
      batch_size: the global one.
      freeze: parameters that never change; they have no moments, and no gradient is computed for
        them alone.
      groups: by name, `match`, a pattern, and the `name` and `options` of an optimizer of its own:
        {"heads": {"match": "^online/", "name": "sgd", "learning_rate": 0.1}}. A group takes
        nothing over from the others.
      scales: (pattern, factor) pairs; the learning rate of a parameter is multiplied by the factor
        of the first pattern that matches it (layer decay, written out).
      options: of `one`: learning_rate, schedule, weight_decay, momentum, ...

    Raises:
      ValueError: what `one` refuses; a group without `match`; and, when it meets the parameters, a
        pattern that matches none, or a parameter in two groups.
    """
    sized: dict[str, Any] = {"total_steps": total_steps, "batch_size": batch_size}
    made = {MAIN: one(name, **sized, **options)}
    patterns = {FROZEN: freeze} if freeze else {}
    for group, given in groups.items():
        arguments = dict(given)
        if group in (MAIN, FROZEN) or not isinstance(arguments.get("match"), str):
            raise Refusal(
                f"optimizer.groups.{group}={dict(given)}: a group has a name of its own (not "
                f"{MAIN!r} or {FROZEN!r}), `match`, a pattern of parameters, and the `name` and "
                "the options of an optimizer"
            )
        patterns[group] = arguments.pop("match")
        try:
            made[group] = one(**sized, **arguments)
        except TypeError as error:
            raise Refusal(f"optimizer.groups.{group}: {error}") from error
    for what, pattern in [*patterns.items(), *(("scales", p) for p, _ in scales)]:
        _compiled(f"optimizer: the pattern of {what}", pattern)

    def label(params: PyTree) -> PyTree:
        return _labels(patterns, params)

    transformations = {group: transformation for group, (transformation, _) in made.items()}
    if patterns:
        transformation = optax.partition({**transformations, FROZEN: optax.set_to_zero()}, label)
    else:
        transformation = transformations[MAIN]
    if scales:
        transformation = optax.chain(transformation, _scaled(scales))
    rates = {
        "learning_rate" if group == MAIN else f"learning_rate/{group}": rate
        for group, (_, rate) in made.items()
    }
    return Optimizer(transformation.init, transformation.update, rates, label)


def one(
    name: str,
    *,
    total_steps: int,
    batch_size: int,
    learning_rate: float | None = None,
    base_lr: float | None = None,
    schedule: str = "constant",
    warmup_steps: int = 0,
    warmup_part: float = 0.0,
    drops: tuple[float, ...] = (),
    factor: float = 0.1,
    warmup_from: float = 0.0,
    end: float = 0.0,
    pieces: int = 0,
    weight_decay: float = 0.0,
    no_decay: str = "",
    **options: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Make the optimizer of one group of parameters, and its learning rate.

    Args:
      name: "adam", "adamw", "sgd", or one of `lars.FORMS`: "larc", "lars", "lars_mocov3".
      total_steps: length of the run, where a schedule ends.
      batch_size: the global one.
      learning_rate: the schedule's height. Or instead of it
      base_lr: the height for a batch of 256, to be scaled by batch_size / 256.
      schedule, warmup_steps, drops, factor, warmup_from, end, pieces: see `make_schedule`. With
        "onecycle" the first beta of adam cycles too, from 0.95 to 0.85 and back (torch's
        `cycle_momentum`).
      warmup_part: the warm-up as a part of the run, 0.1 for 10 epochs of 100, in place of
        `warmup_steps`.
      weight_decay: times the parameter. In adam and sgd it is added to the gradient before all
        else (torch's coupled L2); in adamw to the step, before the learning rate.
      no_decay: parameters without weight decay, as a pattern; an empty one leaves none out.
      options: `betas`, `epsilon` of adam and adamw; `momentum`, `nesterov` of sgd; these and
        `trust` of the layer-wise forms.

    Raises:
      ValueError: unknown name, schedule or option; both or none of the learning rates; a number
        below 0; a warm-up longer than the run.
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
        raise Refusal(
            f"learning_rate={learning_rate}, base_lr={base_lr}: give one of the two; base_lr is "
            "multiplied by batch_size / 256"
        )
    if not 0 <= height < math.inf or not 0 <= weight_decay < math.inf:
        raise Refusal(
            f"learning rate {height}, weight_decay={weight_decay}: neither may be below 0, or "
            "infinite; what shrinks a loss is subtracted already"
        )
    if (warmup_part and warmup_steps) or not 0 <= warmup_part <= 1:
        raise Refusal(
            f"warmup_steps={warmup_steps}, warmup_part={warmup_part}: give one of the two; the "
            "latter is a part of the run, 0 to 1"
        )
    warmup_steps = warmup_steps or round(warmup_part * total_steps)
    if schedule == "onecycle":
        if name not in ("adam", "adamw") or "betas" in options:
            raise Refusal(
                'schedule="onecycle" cycles the first beta of adam itself: take adam or adamw, and '
                "give no betas"
            )
        options["betas"] = (_one_cycle(0.95, 0.85, 0.95, total_steps), 0.999)
    rate = make_schedule(
        schedule, height, total_steps, warmup_steps, drops, factor, warmup_from, end, pieces
    )
    _compiled("no_decay", no_decay)
    keep = _matching("no_decay", no_decay, here=False) if no_decay else None
    if name in lars.FORMS:
        return lars.FORMS[name](rate, weight_decay, keep, **options), rate
    direction = [_OPTIMIZERS[name](**options)]
    if weight_decay:
        place = 1 if name in _DECOUPLED else 0
        direction.insert(place, optax.add_decayed_weights(weight_decay, keep))
    return optax.chain(*direction, optax.scale_by_learning_rate(rate)), rate


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _compiled(what: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise Refusal(f"{what}, {pattern!r}, is no regular expression: {error}") from error


def _labels(patterns: Mapping[str, str], params: PyTree) -> PyTree:
    """The group of each parameter, by the one pattern that matches it; without one `MAIN`."""
    used = set()

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        del leaf
        found = [g for g, pattern in patterns.items() if re.search(pattern, _path(path))]
        if len(found) > 1:
            raise Refusal(
                f"the parameter {_path(path)} is in the groups {' and '.join(found)}: the patterns "
                f"{', '.join(repr(patterns[g]) for g in found)} both match it; narrow one of them"
            )
        used.update(found)
        return found[0] if found else MAIN

    labels = jax.tree_util.tree_map_with_path(label, params)
    idle = [f"{g} ({pattern!r})" for g, pattern in patterns.items() if g not in used]
    if idle:
        raise Refusal(_matches_none(f"the optimizer's group {', '.join(idle)}", params))
    return labels


def _matches_none(what: str, params: PyTree) -> str:
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    told = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
    return f"{what} matches the path of no parameter; the {len(paths)} paths are {told}"


def _scaled(scales: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiply each update by the factor of the first pattern that matches its parameter."""

    def scale(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        used = set()

        def one(path: tuple[Any, ...], update: Any) -> Any:
            for pattern, factor in scales:
                if re.search(pattern, _path(path)):
                    used.add(pattern)
                    return factor * update
            return update

        scaled = jax.tree_util.tree_map_with_path(one, updates)
        for pattern, _ in scales:
            if pattern not in used:
                what = f"optimizer.scales: {pattern!r}, after the patterns before it,"
                raise Refusal(_matches_none(what, updates))
        return scaled

    return optax.stateless(scale)


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
        raise Refusal(f"warmup_steps={warmup_steps} of {total_steps} steps")
    if warmup_steps and name == "onecycle":
        raise Refusal(f"warmup_steps={warmup_steps}: onecycle has a rise of its own; give 0")
    if bool(drops) != (name == "drops") or not all(0 < d <= 1 for d in drops):
        raise Refusal(
            f"drops={tuple(drops)} for schedule {name!r}: 'drops', and no other, takes parts of "
            "the run between 0 and 1"
        )
    allowed = {"constant": (warmup_from, 0.0, 0), "cosine": (warmup_from, end, pieces)}
    if (warmup_from, end, pieces) != allowed.get(name, (0.0, 0.0, 0)):
        raise Refusal(
            f"warmup_from={warmup_from}, end={end}, pieces={pieces} for schedule {name!r}: the "
            "first is for 'constant' and 'cosine', the others are for 'cosine'"
        )
    if pieces and total_steps % pieces:
        raise Refusal(f"pieces={pieces} do not divide the run of {total_steps} steps")
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
        found = jax.tree_util.tree_map_with_path(
            lambda path, _: bool(re.search(pattern, _path(path))), tree
        )
        if not any(jax.tree.leaves(found)):
            raise Refusal(_matches_none(f"{what}={pattern!r}", tree))
        return jax.tree.map(lambda match: match == here, found)

    return mask
