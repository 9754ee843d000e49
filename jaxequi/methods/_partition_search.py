"""The search for the soft partition that breaks an invariance most: IP-IRM's maximisation.

Wangt-CN/IP-IRM, `utils.py`: `auto_split_offline`, `auto_split`; `utils_mixup.py`. Adam moves the
logits W of all examples' shares, batch by batch; an epoch is judged by the mean of the risks before
its updates, and kept by the logits after them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.objectives import partition
from jaxequi.types import Array

PATIENCE = 5  # epochs without a better one, after `until`
DROP = 0.2  # factor of the learning rate, at each milestone


class Search(NamedTuple):
    """What a config says of a search; the defaults are those of the published offline ones.

    Attributes:
      weight: of the variation in the risk (`--irm_weight_maxim`).
      mode, constraint, normalize: as of `partition.risk`.
      online: look at the examples anew, drawn anew, in every epoch; an epoch then has whole batches
        only. Offline, one look serves all epochs, and the last batch may be short.
      mixup: search on mixtures, which every look mixes inside its batches.
      batch_size: examples compared at once.
      random_start: begin with fresh logits; else with those found last, which then move in the
        partition that is retained, too.
      learning_rate, milestones: Adam's, and the epochs from which it is a fifth as large.
      until, epochs: stop after five epochs in a row without a lower risk, but not before epoch
        `until`, and at the latest after epoch `epochs`, counted from 0.
    """

    weight: float = 0.5
    mode: str = "irm"
    constraint: str = "relaxed"
    normalize: bool = True
    online: bool = False
    mixup: bool = False
    batch_size: int = 3096
    random_start: bool = True
    learning_rate: float = 0.5
    milestones: tuple[int, ...] = (5, 35)
    until: int = 50
    epochs: int = 60


def check(search: Search) -> None:
    """Refuse what is no search."""
    for name, given, allowed in (
        ("mode", search.mode, partition.MODES),
        ("constraint", search.constraint, partition.CONSTRAINTS),
    ):
        if given not in allowed:
            raise unknown(f"method.search.{name}", given, allowed)
    if search.mixup and search.mode != "irm":
        raise Refusal("method.search: of mixtures only mode='irm' is defined; take it, or no mixup")
    if search.batch_size < 2 or search.epochs < 0 or not 0 <= search.weight < math.inf:
        raise Refusal(
            f"method.search: batch_size={search.batch_size}, epochs={search.epochs}, "
            f"weight={search.weight}: at least 2, 0 and 0"
        )
    if not 0 < search.learning_rate < math.inf:
        raise Refusal(f"method.search.learning_rate={search.learning_rate}: it must be above 0")


class Found(NamedTuple):
    """What a search found.

    Attributes:
      best: logits f32[N, K] after the epoch of the lowest risk.
      last: those after the last epoch.
      risks: of each epoch.
      epoch: of the lowest risk.
    """

    best: np.ndarray
    last: np.ndarray
    risks: list[float]
    epoch: int


Look = Callable[[int], tuple[Mapping[str, Any], Any]]
"""Epoch -> what is known of examples, `index` i32[n] and what `losses_of` reads, [n, ...]; and the
places i32[m] of those that the epoch compares, in its order."""

LossesOf = Callable[[Mapping[str, Array]], partition.Losses]
"""A batch of what `Look` gives -> the losses of its environments."""


def run(look: Look, losses_of: LossesOf, start: Any, search: Search) -> Found:
    """Search from the logits `start`, f32[N, K].

    Raises:
      FloatingPointError: the risk is no finite number.
    """
    split = jnp.asarray(start)
    moments = optax.scale_by_adam().init(split)
    best, at, lowest, idle = split, 0, 1e5, 0
    risks: list[float] = []
    for epoch in range(search.epochs + 1):
        drops = sum(epoch >= milestone for milestone in search.milestones)
        rate = search.learning_rate * DROP**drops
        split, moments, found = _epoch(split, moments, *look(epoch), rate, losses_of, search)
        risks.append(float(np.mean(np.asarray(found), dtype=np.float64)))
        if not math.isfinite(risks[-1]):
            raise FloatingPointError(
                f"the partition search's risk is {risks[-1]} in epoch {epoch}; are the embeddings "
                "finite? Take a lower method.search.learning_rate or higher temperatures"
            )
        if risks[-1] < lowest:
            best, at, lowest, idle = split, epoch, risks[-1], 0
        else:
            idle += 1
        if epoch > search.until and idle >= PATIENCE:
            break
    return Found(np.asarray(best), np.asarray(split), risks, at)


@functools.partial(jax.jit, static_argnames=("losses_of", "search"))
def _epoch(
    split: Array,
    moments: Any,
    seen: Mapping[str, Array],
    order: Array,
    rate: Array,
    losses_of: LossesOf,
    search: Search,
) -> tuple[Array, Any, Array]:
    """Pass over the examples once: whole batches, and the rest if there is one that counts.

    Returns:
      The logits, their moments, and the risk of each batch before its update.
    """

    def update(carry: Any, places: Array) -> tuple[Any, Array]:
        split, moments = carry
        batch = {name: values[places] for name, values in seen.items()}
        rows = batch["index"]

        def risk(mine: Array) -> Array:
            return partition.risk(
                losses_of(batch),
                mine,
                weight=search.weight,
                mode=search.mode,
                constraint=search.constraint,
                normalize=search.normalize,
            ).risk

        value, gradient = jax.value_and_grad(risk)(split[rows])
        # The moments of examples outside the batch move them, too.
        gradient = jnp.zeros_like(split).at[rows].set(gradient)
        step, moments = optax.scale_by_adam().update(gradient, moments)
        return (split - rate * step, moments), value

    carry, size = (split, moments), search.batch_size
    whole = len(order) // size * size
    risks = []
    if whole:  # in one loop, whose batches share their memory
        carry, of_whole = jax.lax.scan(update, carry, order[:whole].reshape(-1, size))
        risks.append(of_whole)
    if not whole or (whole < len(order) and not search.online):
        carry, of_rest = update(carry, order[whole:])
        risks.append(of_rest[None])
    return (*carry, jnp.concatenate(risks))
