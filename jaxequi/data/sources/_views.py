"""Every stored view of an example, in storage order: what evaluations of views read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxequi.types import Record, Source


class AllViews:
    """A source whose examples come with all their views, in storage order."""

    def __init__(self, source: Source):
        self._source = source
        self.class_names, self.num_views = source.class_names, source.num_views

    def __len__(self) -> int:
        return len(self._source)

    def __str__(self) -> str:
        return str(self._source)

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples; `views` i64[N, V] says in any order that all are wanted."""
        return self._source.read(rows, np.sort(views, axis=1))
