"""Probes of groups that do not map the grid onto itself: measured by interpolation, in a disc."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.models.steerable_resnet import SteerableResNet
from jaxequi.nn.steerable import RegularConv
from jaxequi.probes import equivariance, plots
from jaxequi.runs import probing


def smooth(size):
    """Two plane waves of 12 pixels, f32[2, size, size, 1]."""
    y, x = np.mgrid[:size, :size]
    waves = [np.cos(2 * np.pi / 12 * (np.cos(a) * x + np.sin(a) * y) + a) for a in (0.3, 1.5)]
    return np.stack(waves)[..., None].astype(np.float32)


@pytest.mark.parametrize("group", [cyclic(8), dihedral(8)], ids=lambda g: g.name)
def test_turns_on_the_grid_are_exact_and_the_others_close(group, keys):
    layer = RegularConv(1, 5, 1, 2, group=group, lifting=True)
    x = smooth(33)
    variables = layer.init(next(keys), x)
    fn = functools.partial(layer.apply, variables)
    errors = equivariance.measure(fn, x, group, keep=lambda name: False)
    assert errors.exact.tolist() == [g % 2 == 0 for g in range(group.order)]
    assert errors.relative[:, errors.exact].max() < 1e-5
    assert 1e-4 < errors.relative[:, ~errors.exact].max() < 0.15  # the border of the disc included
    assert errors.first_above() is None
    plain = equivariance.measure(fn, x, group, regular=False, keep=lambda name: False)
    assert plain.relative[:, 1:].min() > 0.3


def test_what_is_measured_off_the_grid(keys):
    # by hand: everything outside the disc is 0 first, and maps are compared inside it
    group = cyclic(8)
    layer = RegularConv(1, 3, 1, 1, group=group, lifting=True)
    x = np.asarray(jax.random.normal(next(keys), (3, 9, 9, 1)))
    variables = layer.init(next(keys), x)
    fn = functools.partial(layer.apply, variables)
    row, column = np.mgrid[:9, :9] - 4
    disc = (np.hypot(row, column) <= 4.5)[None, :, :, None]
    for batch_size in (3, 2):
        errors = equivariance.measure(fn, x, group, batch_size=batch_size)
        y = np.asarray(fn(x * disc))
        for g in (1, 7):
            moved = np.asarray(fn(planar.transform(group, g, x * disc)))
            gap = np.abs(planar.act_on_field(group, g, y) - moved)
            expected = gap.mean(where=np.broadcast_to(disc, gap.shape))
            np.testing.assert_allclose(errors.absolute[-1, g], expected, rtol=1e-4)
            size = np.abs(y).mean(where=np.broadcast_to(disc, gap.shape))
            np.testing.assert_allclose(errors.relative[-1, g], expected / size, rtol=1e-4)


def test_interpolation_follows_smooth_images():
    group, n = cyclic(8), 41
    y, x = (n - 1) / 2 - np.mgrid[:n, :n][0], np.mgrid[:n, :n][1] - (n - 1) / 2
    bump = np.exp(-((x - 6) ** 2 + (y - 3) ** 2) / 18)[..., None]
    cx, cy = group.matrices[1] @ (6, 3)
    expected = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 18)[..., None]
    np.testing.assert_allclose(planar.transform(group, 1, bump), expected, atol=3e-3)
    for g in (2, 4):  # exact elements move pixels
        np.testing.assert_array_equal(planar.transform(group, g, bump), np.rot90(bump, g // 2))
    with pytest.raises(ValueError, match=r"4 x 5 pixels: turn 45 degrees needs a square one"):
        planar.transform(group, 1, np.zeros((4, 5, 1)))


def test_a_probe_says_both_and_draws_both(keys):
    group = cyclic(8)
    network = SteerableResNet(group, 1, (1,))
    images = np.asarray(jax.random.normal(next(keys), (2, 9, 9, 3)))
    variables = jax.jit(lambda key: network.init(key, images, False))(next(keys))
    text, figures = probing.probe(network, variables, images, group, regular=True)
    assert "elements off the pixel grid interpolate" in text
    assert "measured: no layer breaks" in text
    assert "off grid   (worst of 4 elements, and of 4)" in text
    labels = [t.get_text() for t in figures["equivariance"].axes[0].get_legend().get_texts()]
    assert labels == ["9 pixels", "9 pixels, interpolated turns"]
    assert figures["maps"].axes[0].get_ylabel() == "map, then turn 45"


def test_curves_of_a_group_on_the_grid_are_single(keys):
    layer = RegularConv(1, 3, 1, 1, group=cyclic(4), lifting=True)
    x = smooth(9)
    fn = functools.partial(layer.apply, layer.init(next(keys), x))
    errors = equivariance.measure(fn, x, cyclic(4))
    assert errors.exact.all()
    assert len(plots.error_curves({"9": errors}).axes[0].lines) == 1
