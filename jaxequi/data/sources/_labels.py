"""The classes of a source's examples, from the source where it knows them."""

from __future__ import annotations

import concurrent.futures

import numpy as np

from jaxequi.data.errors import DataError
from jaxequi.types import Source

AT_ONCE = 256  # records in one call of the source
THREADS = 16  # that wait for the disk


def known(source: Source) -> np.ndarray | None:
    """Classes i[N] of the examples, if the source has them without reading: its `labels`."""
    labels = getattr(source, "labels", None)
    return None if labels is None else np.asarray(labels)


def find(source: Source) -> np.ndarray:
    """Classes i[N] of the examples; all of them are read, and none decoded, if it takes that.

    Raises:
      ValueError: an example has no class.
    """
    labels = known(source)
    if labels is None:

        def read(start: int) -> list[int]:
            rows = range(start, min(start + AT_ONCE, len(source)))
            records = source.read(rows, np.zeros((len(rows), 1), np.int64))
            return [int(record["label"]) for record in records]

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(read, range(0, len(source), AT_ONCE)))
        labels = np.asarray([label for part in parts for label in part], np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(f"{source} has unlabelled examples; take a split with labels.")
    return labels
