"""A part of another source, drawn once: training on a fraction, or a split of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxequi import names
from jaxequi.data.errors import DataError
from jaxequi.types import Record, Source


class Subset:
    """Rows of a source, in the order drawn."""

    def __init__(self, source: Source, rows: np.ndarray):
        self._source, self._rows = source, rows
        self.class_names, self.num_views = source.class_names, source.num_views

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        return f"{len(self)} of {self._source}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples of the source."""
        return self._source.read([int(self._rows[row]) for row in rows], views)


def make(source: Mapping[str, Any], start: float = 0.0, stop: float = 1.0, seed: int = 0) -> Subset:
    """Take the part from `start` to `stop` of one random order of a source.

    `classification/train.py` of "Using and Abusing Equivariance" trains on the first part,
    `rotmnist/trainer.py` validates on the first fifth and trains on the rest.

    Args:
      source: name and arguments of the other source.
      start, stop: between 0 and 1; rows int(start * N) to int(stop * N) of the order.
      seed: of the order.

    Raises:
      ValueError: an empty part, or one outside the source.
    """
    inner = names.made("data.sources", source)
    order = np.random.default_rng(seed).permutation(len(inner))
    rows = order[int(start * len(inner)) : int(stop * len(inner))]
    if not 0 <= start < stop <= 1 or not len(rows):
        raise DataError(
            f"the part from {start} to {stop} of {len(inner)} examples is empty or outside; take "
            "0 <= start < stop <= 1."
        )
    return Subset(inner, rows)
