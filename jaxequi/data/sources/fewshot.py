"""A few examples of each class of another source: EqInv's 10, 20 and 50 shots of any data set.

Of folders `prepare.fewshot_subset` makes the same as files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxequi.data.errors import DataError
from jaxequi.data.sources import _labels
from jaxequi.data.sources._open import make_source
from jaxequi.data.sources.subset import Subset

POOL = 50  # examples of a class in the VIPriors challenge


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


def make(
    source: Mapping[str, Any] | str, shots: int, seed: int = 0, independent: bool = False
) -> Subset:
    """Take `shots` examples of each class, in the order of the source.

    Args:
      source: the other one, its name and arguments, or a text such as "folder(root='train')".
      shots: examples of a class.
      seed: of the draw.
      independent: draw for each class anew; else the same positions in every class, as the
        reference, out of as many as the smallest class has.

    Raises:
      ValueError: a class with fewer examples than shots.
    """
    inner = make_source(source)
    labels = _labels.find(inner)
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
