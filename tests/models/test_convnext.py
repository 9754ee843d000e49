"""ConvNeXts over a group: their law, the plain network they are, and what they cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxequi import probes
from jaxequi.groups import planar
from jaxequi.groups.planar import dihedral
from jaxequi.methods import byol, moco, simclr, supervised
from jaxequi.models import convnext
from jaxequi.probes import exactness

SMALL = {"width": 16, "depths": (1, 2), "patch": 2, "layer_scale": 0.5}
ISO = {"architecture": "iso_small", "width": 16, "depths": (2,), "patch": 4}
SIDE = 12


def images(n=2, side=SIDE):
    return np.random.default_rng(0).normal(size=(n, side, side, 3)).astype(np.float32)


def started(net):
    """Parameters where nothing is at its start: biases and scales too."""
    shapes = jax.eval_shape(lambda k, x: net.init(k, x, False), jax.random.key(0), images())
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(draw.normal(0.2, 0.3, a.shape), a.dtype), shapes)


def relative(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "options",
    [
        {**SMALL, "group": "d1", "symmetric": 3},
        {**SMALL, "group": "c4", "symmetric": 3},
        {**SMALL, "group": "d4", "invariant": True},
        {**ISO, "group": "d4", "symmetric": 2},
    ],
    ids=str,
)
def test_the_law(options):
    net = convnext.make(**options)
    group = net.group
    params, x = started(net), images()
    moved = np.concatenate([planar.act(group, g, x) for g in range(group.order)])
    y = np.asarray(jax.jit(lambda p, x: net.apply(p, x, False))(params, moved))
    assert y.shape == (2 * group.order, net.features)
    y = y.reshape(group.order, 2, -1)
    assert np.abs(y[0, 0] - y[0, 1]).max() > 1e-3  # it tells images apart
    for g in range(1, group.order):
        expected = y[0]
        if not net.invariant:
            fields = expected.reshape(2, -1, group.order)
            expected = fields[..., group.shift[g]].reshape(2, -1)
            assert relative(y[g], y[0]) > 1e-3
        assert relative(y[g], expected) < 1e-5
