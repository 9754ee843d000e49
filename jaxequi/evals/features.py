"""Features of a whole set, gathered once; every evaluation reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxequi.types import Batch, Features


def gather(encode: Callable[[Batch], Features], batches: Iterable[Batch]) -> dict[str, Any]:
    """Encode the batches of an evaluation pass and stack what belongs to real examples.

    Args:
      encode: host batch -> features and targets of the *global* batch, f32[B, ...] each, with
        `mask` bool[B] among them.
      batches: each example once, padding masked.

    Returns:
      The same tree with numpy arrays [n, ...], n the number of examples, without `mask`.
    """
    kept = []
    for batch in batches:
        arrays = jax.device_get(encode(batch))
        mask = np.asarray(arrays.pop("mask"))
        kept.append(jax.tree.map(lambda a, mask=mask: np.asarray(a)[mask], arrays))
    if not kept:
        raise ValueError("an evaluation pass had no batch: is its source empty?")
    return jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
