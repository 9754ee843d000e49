"""Everything a run is, as one tree; and how a trained network gets into its first state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.train.optim import Optimizer
from jaxequi.types import OWN, Array, Batch, Method, PyTree


class TrainState(flax.struct.PyTreeNode):
    """Everything a run is: what is saved, restored, sharded and donated."""

    step: Array  # i32[], updates done
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    key: Array  # the run's key; a step draws from fold_in(key, step)


def initialise(method: Method, optimizer: Optimizer, key: Array, batch: Batch) -> TrainState:
    """Make the state before the first step; `batch` gives shapes only."""
    init_key, run_key = jax.random.split(key)
    params, extra = method.init(init_key, batch)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=extra,
        opt_state=optimizer.init(params),
        key=run_key,
    )


class Start(NamedTuple):
    """A trained network that a run begins with.

    Attributes:
      network: its collections, {"params": {"backbone": ...}, "batch_stats": ...}, numpy arrays.
      fresh: pattern of the state's values that are drawn all the same, searched in paths such as
        "params/classifier/kernel"; "" for none.
      origin: what the network is, for messages.
    """

    network: PyTree
    fresh: str
    origin: str


def lay(start: Start, shapes: TrainState) -> dict[str, np.ndarray]:
    """Find in a trained network the values with which a state begins.

    A value of the state takes the network's value of the same path; a target network takes that of
    its online network, so that it starts as a copy; and `own/backbone`, a frozen network, is laid
    as the network's backbone. What else a method keeps as its own (a queue) is drawn, and so is
    what matches `start.fresh`.

    Args:
      shapes: of the state.

    Returns:
      Values by the path of their leaf, as `placed` takes them.

    Raises:
      ValueError: values that the network does not have, or has in another shape, listed beside
        what of the network would stay unused.
    """
    there = {_path(path): leaf for path, leaf in _leaves(start.network)}
    values: dict[str, np.ndarray] = {}
    lacking, used = [], set()
    tree = {"params": shapes.params, "extra": shapes.extra}
    for path, leaf in _leaves(tree):
        here = _path(path)
        there_path = _origin(here)
        if there_path is None or (start.fresh and re.search(start.fresh, here)):
            continue
        value = there.get(there_path)
        used.add(there_path)
        if value is None:
            lacking.append(f"- {here} {leaf.shape}")
        elif value.shape != leaf.shape:
            lacking.append(f"- {here} {leaf.shape}, which has {value.shape} there")
        else:
            values[here] = value
    if lacking:
        spare = [f"+ {name} {np.shape(there[name])}" for name in there if name not in used]
        raise Refusal(
            f"{start.origin} does not give this run all that it starts with (- needed here, + not "
            "used there):\n"
            + "\n".join([*_few(lacking), *_few(spare)])
            + "\nTake a checkpoint of the same network, or say with `fresh`, a pattern of paths, "
            "what is to be drawn anew" + (f" (it is {start.fresh!r})." if start.fresh else ".")
        )
    return values


def _origin(path: str) -> str | None:
    """Where a network keeps what a state keeps at a path; None for what no network has."""
    kind, _, rest = path.partition("/")
    if kind == "params":
        return path
    own, _, rest_of_own = rest.partition("/")
    if own != OWN:
        return rest
    held, _, inner = rest_of_own.partition("/")
    if held == "target":
        return inner
    if held == "backbone":
        collection, _, leaf = inner.partition("/")
        return f"{collection}/backbone/{leaf}"
    return None


def placed(values: Mapping[str, np.ndarray], state: TrainState) -> TrainState:
    """Put values by path, as of `lay`, into a state."""

    def put(path: Any, leaf: jax.Array) -> jax.Array:
        value = values.get(_path(path))
        return leaf if value is None else jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(put, state)


def _leaves(tree: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _few(lines: list[str], most: int = 20) -> list[str]:
    return lines[:most] + [f"  ... and {len(lines) - most} more"] * (len(lines) > most)
