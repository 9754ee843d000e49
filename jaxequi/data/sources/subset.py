"""A part of another source, drawn once: training on a fraction, or a split of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxequi.data.errors import DataError
from jaxequi.data.sources import _labels
from jaxequi.data.sources._open import make_source
from jaxequi.types import Record, Source


class Subset:
    """Rows of a source, in the order drawn."""

    def __init__(self, source: Source, rows: np.ndarray):
        self._source, self._rows = source, rows
        self.class_names, self.num_views = source.class_names, source.num_views
        labels = _labels.known(source)
        self.labels = None if labels is None else labels[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        return f"{len(self)} of {self._source}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples of the source."""
        return self._source.read([int(self._rows[row]) for row in rows], views)


def make(
    source: Mapping[str, Any] | str,
    start: float = 0.0,
    stop: float = 1.0,
    seed: int = 0,
    balanced: bool = False,
) -> Subset:
    """Take the part from `start` to `stop` of one random order of a source.

    `classification/train.py` of "Using and Abusing Equivariance" trains on the first part,
    `rotmnist/trainer.py` validates on the first fifth and trains on the rest.

    Args:
      source: the other one, its name and arguments, or a text such as "folder(root='train')".
      start, stop: between 0 and 1; rows int(start * N) to int(stop * N) of the order.
      seed: of the order.
      balanced: classes take turns in the order, each as long as it has examples: a first part has
        at least one of every class, and equally many of all, give or take one. So are the lists of
        1 % and 10 % of ImageNet in google-research/simclr, the former a part of the latter.

    Raises:
      ValueError: an empty part, or one outside the source; a balanced one of unlabelled examples.
    """
    inner = make_source(source)
    order = np.random.default_rng(seed).permutation(len(inner))
    least = 0
    if balanced:
        order, least = _in_turns(_labels.find(inner), order)

    def place(part: float) -> int:
        return max(int(part * len(inner)), least) if part > 0 else 0

    rows = order[place(start) : place(stop)]
    if not 0 <= start < stop <= 1 or not len(rows):
        raise DataError(
            f"the part from {start} to {stop} of {len(inner)} examples is empty or outside; take "
            "0 <= start < stop <= 1."
        )
    return Subset(inner, rows)


def _in_turns(labels: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, int]:
    """Let the classes of an order take turns; also how many classes there are."""
    counts = np.unique(labels, return_counts=True)[1]
    turn = np.empty(len(order), np.int64)
    turn[np.argsort(labels[order], kind="stable")] = np.concatenate([np.arange(n) for n in counts])
    return order[np.argsort(turn, kind="stable")], len(counts)
