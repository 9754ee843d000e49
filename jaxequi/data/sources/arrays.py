"""Data sets that fit in memory: arrays, or one .npz, .npy or IDX file of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxequi.types import Record


class Arrays:
    """Pictures u8[N, H, W] or u8[N, H, W, C] with labels i[N]."""

    num_views = 1

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] = ()):
        self.images, self.labels = images, labels
        count = int(labels.max()) + 1 if len(labels) else 0
        self.class_names = tuple(class_names) or tuple(str(i) for i in range(count))

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return f"{len(self)} arrays"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples; the only stored picture is returned once for each asked-for view."""
        return [
            {"image": [self.images[row]] * views.shape[1], "label": int(self.labels[row])}
            for row in rows
        ]
