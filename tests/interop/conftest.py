"""What the tests of this folder share."""

import jax
import numpy as np
import pytest

from jaxequi.models import steerable_resnet
from jaxequi.models.torchvision_resnet import BasicBlock


@pytest.fixture
def filled():
    """Give every leaf of a tree of shapes some values, no two leaves the same."""

    def fill(shapes):
        random = np.random.default_rng(0)
        return jax.tree.map(lambda s: random.uniform(0.1, 1, s.shape).astype(s.dtype), shapes)

    return fill


@pytest.fixture
def short(monkeypatch):
    """Make steerable networks of 18 layers short: one block of a kind a stage."""

    def cut(block=BasicBlock):
        monkeypatch.setitem(steerable_resnet.DEPTHS, 18, ((1, 1, 1, 1), block))

    cut()
    return cut
