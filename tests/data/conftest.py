"""A small source of images with two stored views, and images of a known content."""

import numpy as np
import pytest


class Toy:
    """Example `row` is a flat image of level `row` (+100 for view 1); some rows may be broken."""

    class_names = ("even", "odd")

    def __init__(self, size=40, num_views=1, broken=()):
        self.size, self.num_views, self.broken = size, num_views, set(broken)
        self.reads = 0

    def __len__(self):
        return self.size

    def __str__(self):
        return "the toy set"

    def read(self, rows, views):
        self.reads += 1
        return [self._read(int(row), mine) for row, mine in zip(rows, views)]

    def _read(self, row, views):
        if row in self.broken:
            raise ValueError(f"file_{row}.jpg is broken")
        images = [np.full((12, 10, 3), row + 100 * view, np.uint8) for view in views]
        latent = np.stack([np.full(7, row + view / 10) for view in views])
        return {"image": images, "label": row % 2, "latent": latent}


@pytest.fixture
def toy():
    return Toy
