"""Handwritten digits that a package brings along: 1,797 of 8 x 8 pixels, from scikit-learn.

Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI; the test part, as
`sklearn.datasets.load_digits` has it. Grey levels 0 to 16 become 0 to 255.
"""

from __future__ import annotations

import numpy as np

from jaxequi.data.errors import DataError
from jaxequi.data.sources.arrays import Arrays

TEST_EVERY = 5  # of each five digits in a row the last is held out


def make(split: str = "train") -> Arrays:
    """Load one split.

    Args:
      split: "train" (1,438 digits) or "test" (359).

    Raises:
      ValueError: another split, or scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise DataError(f"the digits have the splits train and test, not {split!r}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    held_out = np.arange(len(bunch.target)) % TEST_EVERY == TEST_EVERY - 1
    rows = held_out if split == "test" else ~held_out
    images = np.round(bunch.images[rows] * (255 / 16)).astype(np.uint8)
    return Arrays(images, bunch.target[rows].astype(np.int64), [str(i) for i in range(10)])
