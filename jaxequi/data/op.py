"""What a host transform is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL.Image import Image

Drawn = Sequence[float] | None


@dataclasses.dataclass(frozen=True)
class Op:
    """One step of a pipe.

    Attributes:
      name: what the op is called in a pipe, and its key in `aug`.
      apply: `(RGB image, rng) -> (image, drawn)`; `drawn` has `draws` numbers.
      draws: how many numbers the op draws; 0 means that it never asks the generator.
    """

    name: str
    apply: Callable[[Image, np.random.Generator], tuple[Image, Drawn]]
    draws: int = 0
