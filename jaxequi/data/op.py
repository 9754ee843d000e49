"""What a host transform is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Drawn = Sequence[float] | None


@dataclasses.dataclass(frozen=True)
class Op:
    """One step of a pipe.

    Attributes:
      name: what the op is called in a pipe, and its key in `aug`.
      apply: `(image u8[H, W, 3], rng) -> (image, drawn)`; `drawn` has `draws` numbers.
      draws: how many numbers the op draws; 0 means that it never asks the generator.
    """

    name: str
    apply: Callable[[Any, np.random.Generator], tuple[Any, Drawn]]
    draws: int = 0
