"""A few examples of each class of another source: EqInv's 10, 20 and 50 shots of any data set.

Of folders `prepare.fewshot_subset` makes the same as files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi import names
from jaxequi.data.errors import DataError
from jaxequi.data.sources.subset import Subset
from jaxequi.types import Source

POOL = 50  # examples of a class in the VIPriors challenge
AT_ONCE = 1000  # records read for their labels


def choose(
    counts: list[int], shots: int, seed: int, *, independent: bool, pool: int = POOL
) -> list[np.ndarray]:
    """Choose sorted positions i64[shots] for each class of `counts` files.

    Args:
      counts: files of each class.
      shots: files to keep of a class.
      seed: of the draw.
      independent: draw for each class out of all its files, in place of once out of `pool`.
      pool: positions that the common draw chooses from.

    Raises:
      DataError: a class has too few files.
    """
    least = min(counts)
    if shots < 1 or shots > least or (not independent and pool > least):
        need = shots if independent else max(shots, pool)
        raise DataError(f"every class must have {need} files; the smallest has {least}.")
    rng = np.random.default_rng(seed)
    if independent:
        return [np.sort(rng.choice(count, shots, replace=False)) for count in counts]
    return [np.sort(rng.choice(pool, shots, replace=False))] * len(counts)


def make(source: Mapping[str, Any], shots: int, seed: int = 0, independent: bool = False) -> Subset:
    """Take `shots` examples of each class, in the order of the source.

    Args:
      source: name and arguments of the other source.
      shots: examples of a class.
      seed: of the draw.
      independent: draw for each class anew; else the same positions in every class, as the
        reference, out of as many as the smallest class has.

    Raises:
      ValueError: a class with fewer examples than shots.
    """
    inner = names.made("data.sources", source)
    labels = _labels(inner)
    counts = np.bincount(labels, minlength=len(inner.class_names))
    if not 1 <= shots <= counts.min():
        least = int(counts.argmin())
        raise DataError(
            f"shots={shots}: {inner.class_names[least]!r} has {counts[least]} examples in {inner}; "
            f"take 1 to {counts.min()} shots, or data with more of that class."
        )
    chosen = choose(counts.tolist(), shots, seed, independent=independent, pool=int(counts.min()))
    rows = [np.flatnonzero(labels == k)[places] for k, places in enumerate(chosen)]
    return Subset(inner, np.sort(np.concatenate(rows)))


def _labels(source: Source) -> np.ndarray:
    """The class of every example; read where the source does not know them."""
    known = getattr(source, "labels", None)
    if known is not None:
        return np.asarray(known)
    found: list[int] = []
    for start in range(0, len(source), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(source)))
        records = source.read(rows, np.zeros((len(rows), 1), np.int64))
        found += [int(record["label"]) for record in records]
    labels = np.asarray(found)
    if labels.min() < 0:
        raise DataError(f"{source} has unlabelled examples; take a split with labels.")
    return labels
