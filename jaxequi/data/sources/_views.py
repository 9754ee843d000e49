"""Every stored picture as an example of its own: what retrieval among views evaluates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxequi.types import Record, Source


class EachView:
    """Picture `view` of example `row` becomes example `row * num_views + view`."""

    num_views = 1

    def __init__(self, source: Source):
        self._source = source
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._source) * self._source.num_views

    def __str__(self) -> str:
        return f"{self._source}, each view"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read pictures, each repeated for every asked-for view."""
        example, view = np.divmod(np.asarray(rows), self._source.num_views)
        return self._source.read(example.tolist(), np.repeat(view[:, None], views.shape[1], 1))
