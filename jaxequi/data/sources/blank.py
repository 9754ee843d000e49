"""Black images: a data set as far as shapes tell it, for plans without data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxequi.errors import Refusal
from jaxequi.types import Record


class Blank:
    """Black images of one size, whose classes take turns."""

    def __init__(self, examples: int, classes: int, size: int, num_views: int, latents: int):
        self.class_names: Sequence[str] = tuple(map(str, range(classes)))
        self.num_views, self.labels = num_views, np.arange(examples) % classes
        self._image = np.zeros((size, size, 3), np.uint8)
        self._latents = latents

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        side = len(self._image)
        return f"{len(self)} black images of {side}x{side} in {len(self.class_names)} classes"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: black images, latents of zeros, and the label."""
        count = views.shape[1]
        latent = {"latent": np.zeros((count, self._latents), np.float32)} if self._latents else {}
        return [
            {"image": [self._image] * count, "label": int(self.labels[row]), **latent}
            for row in rows
        ]


def make(
    examples: int, classes: int, size: int = 256, num_views: int = 1, latents: int = 0
) -> Blank:
    """Make a data set of black images.

    Args:
      examples: how many there are.
      classes: of them; the labels take turns.
      size: height and width in pixels.
      num_views: images of an example.
      latents: numbers of a view's latent; 0 for a set without.

    Raises:
      ValueError: a number below 1 (latents: below 0), or fewer examples than classes.
    """
    given = {"examples": examples, "classes": classes, "size": size, "num_views": num_views}
    for name, value in given.items():
        if value < 1:
            raise Refusal(f"blank: {name}={value}: it must be at least 1")
    if latents < 0 or examples < classes:
        raise Refusal(
            f"blank: latents={latents}, examples={examples}, classes={classes}: latents are 0 or "
            "more, and each class needs an example"
        )
    return Blank(examples, classes, size, num_views, latents)
