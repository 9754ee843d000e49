"""A source of one's own: gratings, whose class is the direction of the stripes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxequi.types import Record


class Gratings:
    """Stripes of a period and a phase drawn for each row."""

    class_names = ("upright", "lying")
    num_views = 1  # images stored of one example

    def __init__(self, rows: int, size: int, seed: int):
        self.rows, self.size, self.seed = rows, size, seed

    def __len__(self) -> int:
        return self.rows

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Draw rows: a function of (seed, row), so that nothing is kept and any thread may ask."""
        return [self._draw(int(row), len(asked)) for row, asked in zip(rows, views)]

    def _draw(self, row: int, count: int) -> Record:
        random = np.random.default_rng((self.seed, row))
        label = row % 2
        wave = np.sin(random.uniform(0, 6) + np.arange(self.size) / random.uniform(0.7, 2.0))
        grey = np.broadcast_to(127 + 100 * wave, (self.size, self.size))
        image = np.repeat((grey.T if label else grey)[..., None], 3, axis=-1).astype(np.uint8)
        return {"image": [image] * count, "label": label}


def make(split: str = "train", rows: int = 128, size: int = 16) -> Gratings:
    """Make a split; the arguments are what a config may set."""
    return Gratings(rows, size, seed=0 if split == "train" else 1)
