"""What the tests of this folder share."""

import jax
import numpy as np
import pytest


@pytest.fixture
def filled():
    """Give every leaf of a tree of shapes some values, no two leaves the same."""

    def fill(shapes):
        random = np.random.default_rng(0)
        return jax.tree.map(lambda s: random.uniform(0.1, 1, s.shape).astype(s.dtype), shapes)

    return fill
