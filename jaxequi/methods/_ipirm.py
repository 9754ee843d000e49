"""What IP-IRM's two forms share: retained partitions, the penalty's weight, the refit.

A partition is a table of logits f32[N, K]; an example is in the environment of its largest one, the
first of equals. `extra["own"]`:

    partitions  f32[P, N, K]   those retained, oldest first; of rows not yet in use, zeros
    count       i32[]          how many are in use
    risk        f32[]          of the newest, where its search left it
    epochs      i32[]          that its search took
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi import arguments
from jaxequi.errors import Refusal
from jaxequi.methods import _partition_search, _siamese
from jaxequi.methods._partition_search import LossesOf, Search
from jaxequi.names import unknown
from jaxequi.objectives import partition
from jaxequi.types import OWN, Array, Batch, Look, Metrics, Progress, PyTree, Refit

SCHEDULES = ("constant", "linear")
ALWAYS = 200  # a `penalty_from` this late never switches the penalty off (theirs, a quirk)


def read_search(given: Mapping[str, Any], **defaults: Any) -> Search:
    """Read the options of a search.

    Raises:
      ValueError: an option that does not exist, or a value that is none of it.
    """
    for name in given:
        if name not in Search._fields:
            raise unknown("option of method.search", name, Search._fields)
    search: Search = arguments.call("method.search", Search, {**defaults, **dict(given)})
    search = search._replace(milestones=tuple(search.milestones))
    _partition_search.check(search)
    return search


def check(
    examples: int | None,
    environments: int,
    partitions: int,
    penalty_weight: float,
    penalty_schedule: str,
    **temperatures: float,
) -> None:
    """Refuse numbers that are no experiment."""
    for name, temperature in temperatures.items():
        if not 0 < temperature < math.inf:
            raise Refusal(f"{name}={temperature}: it divides similarities; use 0.5 or so")
    if penalty_schedule not in SCHEDULES:
        raise unknown("penalty_schedule", penalty_schedule, SCHEDULES)
    if partitions < 0 or environments < 2 or not 0 <= penalty_weight < math.inf:
        raise Refusal(
            f"partitions={partitions}, environments={environments}, penalty_weight="
            f"{penalty_weight}: at least 0 (the baseline), 2 and 0"
        )
    if partitions and not examples:
        raise Refusal(
            "IP-IRM keeps an environment for each training example: say how many there are with "
            "examples=N (a run tells its method), or take the baseline, partitions=0"
        )


def own(partitions: int, examples: int | None, environments: int) -> PyTree:
    """The state before the first search."""
    return {
        "partitions": jnp.zeros((partitions, examples or 0, environments)),
        "count": jnp.zeros((), jnp.int32),
        "risk": jnp.zeros(()),
        "epochs": jnp.zeros((), jnp.int32),
    }


def start(
    network: _siamese.Siamese, partitions: int, examples: int | None, environments: int
) -> Callable[[Array, Batch], tuple[PyTree, PyTree]]:
    """Make a method's `init`; the baseline, without partitions, keeps nothing of its own."""

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        params, extra = _siamese.start(network, key, batch)
        if partitions:
            extra[OWN] = own(partitions, examples, environments)
        return params, extra

    return init


def plain_losses(temperature: float, penalty_temperature: float, normalize: bool) -> LossesOf:
    """The losses that a search without mixtures reads off "embedding" f32[n, 2, D]."""

    def losses_of(seen: Mapping[str, Array]) -> partition.Losses:
        return partition.infonce(
            seen["embedding"][:, 0],
            seen["embedding"][:, 1],
            temperature=temperature,
            penalty_temperature=penalty_temperature,
            normalize=normalize,
        )

    return losses_of


def environments_of(own: PyTree, batch: Batch) -> Array:
    """The environment of each example in each partition: i32[P, B]."""
    return jnp.argmax(own["partitions"][:, batch["index"]], axis=-1)


def penalty_weight(progress: Progress, weight: float, start: int, schedule: str) -> Array:
    """The penalty's weight in this step: f32[].

    Args:
      start: the epoch, counted from 1, with which the penalty begins (`main.py`: `penalty_iters`).
      schedule: "constant", or "linear" from 0 to `weight` over the run (`increasing_weight`, a
        function that theirs calls and does not have).
    """
    height = weight * (progress.fraction if schedule == "linear" else 1.0)
    begun = (jnp.floor(progress.epoch) + 1 >= start) | (start >= ALWAYS)
    return jnp.where(begun, height, 0.0)


def told(own: PyTree, environment: Array) -> Metrics:
    """Metrics of the partitions, the newest in use first of all."""
    newest = environment[jnp.maximum(own["count"] - 1, 0)]
    return {
        "partition/count": own["count"] * 1.0,
        "partition/risk": own["risk"],
        "partition/epochs": own["epochs"] * 1.0,
        "partition/share": jnp.mean((newest == 0) * 1.0),
    }


def refit(
    every_epochs: int,
    search: Search,
    losses_of: LossesOf,
    change: Callable[[Array, Batch], Batch] | None = None,
    more: tuple[str, ...] = (),
) -> Refit:
    """The search as host work before epochs 0, k, 2 k, ...; main.py: `train_update_split`.

    Args:
      losses_of: see `_partition_search.run`; it reads "embedding" f32[n, 2, D] and `more`.
      change: see `Refit`.
      more: what `change` adds to a batch.
    """

    def fn(extra: PyTree, look: Look, key: Array) -> PyTree:
        start_key, order_key = jax.random.split(key)
        before = jax.device_get(extra[OWN])
        partitions, count = before["partitions"].copy(), int(before["count"])
        kept, examples, environments = partitions.shape
        start = jax.random.normal(start_key, (examples, environments))
        if count and not search.random_start:
            start = partitions[count - 1]

        def read(seen: Mapping[str, Any]) -> Mapping[str, Any]:
            return {name: jnp.asarray(seen[name]) for name in ("index", "embedding", *more)}

        seen = None if search.online else read(look(0))

        def shuffled(epoch: int, rows: int) -> np.ndarray:
            return np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), rows))

        def of_epoch(epoch: int) -> tuple[Mapping[str, Any], Any]:
            if seen is not None:
                return seen, shuffled(epoch, len(seen["index"]))
            drawn = read(look(epoch, shuffled(epoch, examples)))
            return drawn, np.arange(len(drawn["index"]))

        found = _partition_search.run(of_epoch, losses_of, start, search)
        if count > 1 and not search.random_start:
            # The reference optimises the retained tensor itself; the first one it copies.
            partitions[count - 1] = found.last
        if count == kept:
            partitions, count = np.roll(partitions, -1, axis=0), count - 1
        partitions[count] = found.best
        after = {
            "partitions": partitions,
            "count": np.int32(count + 1),
            "risk": np.float32(min(found.risks)),
            "epochs": np.int32(len(found.risks)),
        }
        return {**extra, OWN: after}

    size = search.batch_size if search.mixup else None
    return Refit(every_epochs, fn, ("embedding", *more), True, True, change, size)
