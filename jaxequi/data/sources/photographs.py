"""Two photographs that a package brings along: scikit-learn's temple and flower, 427 x 640 pixels.

`sklearn.datasets.load_sample_images`, whose README names the photographers. Real images for what
needs no more than that: statistics of filters, a look at augmentations.
"""

from __future__ import annotations

import numpy as np

from jaxequi.data.errors import DataError
from jaxequi.data.sources.arrays import Arrays


def make(split: str = "train", copies: int = 1) -> Arrays:
    """Load the pair: label 0 the temple, label 1 the flower.

    Args:
      split: any; there is one set.
      copies: of the pair, to be cropped anew each.

    Raises:
      ValueError: no copy, or scikit-learn is not installed.
    """
    del split
    if copies < 1:
        raise DataError(f"copies={copies}: take one copy or more.")
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise DataError(
            "the photographs come with scikit-learn: pip install scikit-learn"
        ) from error
    pair = np.stack(load_sample_images().images)
    labels = np.tile(np.arange(2), copies)
    return Arrays(np.tile(pair, (copies, 1, 1, 1)), labels, ("temple", "flower"))
