"""What the two evaluations of a predictor share: the sets they read, and the devices they use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxequi.errors import Refusal
from jaxequi.types import Array, Relation

Predict = Callable[[Array, Array], Array]
"""(embedding f32[B, E], z f32[B, L]) -> f32[B, E]. A `jax.tree_util.Partial` over a predictor's
parameters hands them to the compiled program as arguments; a closure makes them constants of it."""

Views = Mapping[str, np.ndarray]
"""All stored views of n objects: `embedding` f32[n, V, E], `latent` f[n, V, L >= 3] that begins
with the angles x, y, z, and `relation` f32[n, V, K]: from view 0 of an object to each of its views.
The arrays may be memory-mapped files."""


def views(features: Mapping[str, Any], relation: Relation) -> dict[str, np.ndarray]:
    """What the evaluations of a predictor read, of the features of a set with all its views.

    Args:
      features: "predictable" f32[n, V, E] and "latent" f32[n, V, L].
      relation: that the predictor takes; here from view 0 of an object to each of its views.
    """
    latent = np.asarray(features["latent"])
    objects, count, columns = latent.shape
    start = np.broadcast_to(latent[:, :1], latent.shape)
    pairs = np.stack([start, latent], axis=2).reshape(objects * count, 2, columns)
    z = np.asarray(relation.between({"latent": pairs})).reshape(objects, count, -1)
    return {
        "embedding": np.asarray(features["predictable"]),
        "latent": latent,
        "relation": z.astype(np.float32),
    }


def check(views: Views, what: str) -> None:
    """Raise `ValueError` unless the arrays are there and belong together."""
    missing = [name for name in ("embedding", "latent", "relation") if name not in views]
    if missing:
        raise Refusal(f"the {what} views lack {', '.join(missing)}")
    shapes = {name: np.shape(views[name]) for name in ("embedding", "latent", "relation")}
    if any(len(s) != 3 for s in shapes.values()) or len({s[:2] for s in shapes.values()}) > 1:
        raise Refusal(f"the {what} views need arrays [n, V, ...] of one n and V, not {shapes}")
    if shapes["latent"][2] < 3:
        raise Refusal(
            f"the {what} latents have {shapes['latent'][2]} columns; the first three must be the "
            "rotation about x, y and z"
        )


def row_of_devices() -> Mesh:
    """All devices in a row."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def split(mesh: Mesh, array: np.ndarray, axis: int) -> jax.Array:
    """Split an axis over all devices of a mesh; every host holds the whole array."""
    return _placed(array, NamedSharding(mesh, PartitionSpec(*(None,) * axis, mesh.axis_names)))


def on_each(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """Give every device the whole array, as every host holds it."""
    return _placed(array, whole(mesh))


def _placed(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    # Of several hosts `device_put` would compare the arrays, for which it sends them around.
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def whole(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def objects_at_once(mesh: Mesh, objects: int, views: int, rows: int) -> int:
    """How many objects make about `rows` views: a multiple of the devices, no more than needed."""
    wanted = max(1, min(objects, rows // views))
    return math.ceil(wanted / mesh.size) * mesh.size


def padded(array: np.ndarray, count: int) -> np.ndarray:
    """Repeat the last row until there are `count`, so that every chunk has one shape."""
    array = np.asarray(array)
    missing = count - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def predicted(predict: Predict, source: Array, relation: Array) -> Array:
    """Predict every view of some objects from one: f32[c, E], f32[c, V, K] -> f32[c, V, E]."""
    objects, views, _ = relation.shape
    start = jnp.repeat(source, views, axis=0)
    found = predict(start, relation.reshape(objects * views, -1))
    return found.astype(jnp.float32).reshape(objects, views, -1)


def unit(x: Array, epsilon: float) -> Array:
    """Rows over their length plus epsilon; of any size, for a square may overflow in f32."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    x = x / largest
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + epsilon / largest)
