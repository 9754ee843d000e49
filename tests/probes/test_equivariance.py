"""Measured errors by hand numbers, and independent of how the images are batched."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.nn.gconv import LiftingConv
from jaxequi.probes import equivariance


def test_hand_numbers():
    # dropping the last column of 2 x 2 is off by what the two columns differ
    image = np.array([[1.0, 2], [3, 4]])[None, :, :, None]

    class Left(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(1, (1, 1), (2, 2), padding="VALID", use_bias=False, name="left")(x)

    params = {"left": {"kernel": jnp.full((1, 1, 1, 1), 2.0)}}
    fn = functools.partial(Left().apply, {"params": params})
    errors = equivariance.measure(fn, image, cyclic(4), regular=False)
    assert errors.layers == ("left", "output")
    # the corner that is read: 1 upright, then 2, 4 and 3
    np.testing.assert_allclose(errors.absolute[0], [0, 2, 6, 4])
    np.testing.assert_allclose(errors.relative[0], [0, 1, 3, 2])
    assert errors.summed().tolist() == [12, 12]
    assert errors.first_above() == "left"


def test_fields_move_with_their_slices(keys):
    group = dihedral(4)
    layer = LiftingConv(2, group, padding=1)
    x = jax.random.normal(next(keys), (5, 6, 6, 3))
    variables = layer.init(next(keys), x)
    fn = functools.partial(layer.apply, variables)
    assert equivariance.measure(fn, x, group).relative.max() < 1e-5
    plain = equivariance.measure(fn, x, group, regular=False)
    assert plain.relative[0, 1:].min() > 0.1


def test_batches_do_not_matter(keys):
    group = cyclic(4)
    layer = LiftingConv(2, group, strides=2, padding=1)
    x = jax.random.normal(next(keys), (5, 6, 6, 3))
    variables = layer.init(next(keys), x)
    fn = functools.partial(layer.apply, variables)
    whole, parts = (equivariance.measure(fn, x, group, batch_size=b) for b in (5, 2))
    np.testing.assert_allclose(whole.absolute, parts.absolute, rtol=1e-5)
    np.testing.assert_allclose(whole.relative, parts.relative, rtol=1e-5)
    expected = [
        np.abs(planar.act_on_field(group, g, fn(x)) - fn(planar.act(group, g, x))).mean()
        for g in range(4)
    ]
    np.testing.assert_allclose(whole.absolute[-1], expected, rtol=1e-5, atol=1e-7)


def test_refuses():
    with pytest.raises(ValueError, match="6 x 7 pixels"):
        equivariance.measure(lambda x: x, np.zeros((1, 6, 7, 1)), cyclic(4))
    with pytest.raises(ValueError, match="45 degrees needs square ones"):
        equivariance.measure(lambda x: x, np.zeros((1, 6, 7, 1)), cyclic(8))
