"""Another source with every picture turned once and for all: RotMNIST's uniform regime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxequi import names
from jaxequi.data import decoding, transforms
from jaxequi.types import Record, Source


class Rotated:
    """Pictures turned counter-clockwise by an angle of their own, black outside."""

    def __init__(self, source: Source, seed: int):
        self._source = source
        self.class_names, self.num_views = source.class_names, source.num_views
        self.degrees = np.random.default_rng(seed).uniform(0, 360, len(source))

    def __len__(self) -> int:
        return len(self._source)

    def __str__(self) -> str:
        return f"{self._source}, turned"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples of the source, with their pictures decoded and turned."""
        records = self._source.read(rows, views)
        for row, record in zip(rows, records):
            record["image"] = [
                np.asarray(transforms.rotated(decoding.decode(picture), float(self.degrees[row])))
                for picture in record["image"]
            ]
        return records


def make(source: Mapping[str, Any], seed: int = 0) -> Rotated:
    """Turn each picture of a source by U(0, 360) degrees, the same at every epoch.

    Args:
      source: name and arguments of the other source, `dict(name="folder", root=...)`.
      seed: of the angles.
    """
    inner = names.made("data.sources", source)
    return Rotated(inner, seed)
