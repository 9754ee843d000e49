"""Another source with every image turned once and for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxequi import names
from jaxequi.data import decoding, transforms
from jaxequi.data.errors import DataError
from jaxequi.data.sources import _labels
from jaxequi.data.sources._open import make_source
from jaxequi.types import Record, Source

TURN = "turn"  # the label that a turned image can have in place of its class
QUARTERS = ("0", "90", "180", "270")


class Rotated:
    """Images turned counter-clockwise by an angle of their own, black outside."""

    def __init__(self, source: Source, seed: int, quarters: bool, label: str):
        self._source, self._quarters, self._turned = source, quarters, label == TURN
        self.num_views = source.num_views
        self.class_names = QUARTERS if self._turned else source.class_names
        draw = np.random.default_rng(seed)
        self.degrees = draw.uniform(0, 360, len(source))
        if quarters:
            self.degrees = self.degrees // 90 * 90
        self.labels = _labels.known(source)
        if self._turned:
            self.labels = (self.degrees // 90).astype(np.int64)

    def __len__(self) -> int:
        return len(self._source)

    def __str__(self) -> str:
        return f"{self._source}, turned"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples of the source, with their images decoded and turned."""
        records = self._source.read(rows, views)
        for row, record in zip(rows, records):
            degrees = float(self.degrees[row])
            record["image"] = [
                self._moved(decoding.decode(image), degrees) for image in record["image"]
            ]
            if self._turned:
                record["label"] = int(degrees // 90)
        return records

    def _moved(self, image: transforms.PILImage, degrees: float) -> np.ndarray:
        if self._quarters:
            return np.rot90(np.asarray(image), int(degrees // 90))
        return np.asarray(transforms.rotated(image, degrees))


def make(
    source: Mapping[str, Any] | str, seed: int = 0, quarters: bool = False, label: str = "class"
) -> Rotated:
    """Turn each image of a source by U(0, 360) degrees, the same at every epoch.

    As RotMNIST's uniform regime. By quarter turns, with the turn for a label, it asks which side of
    an image is up (Gidaris, Singh and Komodakis, ICLR 2018).

    Args:
      source: the other one, its name and arguments, or a text such as "folder(root='train')".
      seed: of the angles.
      quarters: turn by 0, 90, 180 or 270 degrees, without loss; unequal sides change places.
      label: "class", or of quarter turns "turn", their number.

    Raises:
      ValueError: another label, or the turn for a label of angles that are no quarters.
    """
    if label not in ("class", TURN):
        raise names.unknown("label", label, ("class", TURN))
    if label == TURN and not quarters:
        raise DataError("label='turn' is the number of a quarter turn; set quarters=True as well.")
    return Rotated(make_source(source), seed, quarters, label)
