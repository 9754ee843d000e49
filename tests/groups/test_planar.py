"""Laws of the planar groups, and their actions on images."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import planar
from jaxequi.groups.planar import Group, cyclic, dihedral

GROUPS = [Group(n, m) for n in (1, 2, 3, 4, 6, 8) for m in (False, True)]
ON_GRID = [g for g in GROUPS if g.on_grid]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_tables_are_those_of_the_matrices(group):
    m = group.matrices
    products = np.einsum("gij,hjk->ghik", m, m)
    np.testing.assert_allclose(products, m[group.product], atol=1e-12)
    np.testing.assert_allclose(m[group.inverse], m.swapaxes(-1, -2), atol=1e-12)
    assert (group.product[group.inverse, np.arange(group.order)] == 0).all()
    assert len(group.labels) == group.order


def test_the_element_is_mirror_first_then_turn():
    d4 = dihedral(4)
    mirror, quarter = 4, 1
    assert d4.product[quarter, mirror] == 5  # index = N * mirror + rotation
    np.testing.assert_array_equal(d4.matrices[mirror], np.diag([-1, 1]))
    np.testing.assert_array_equal(d4.matrices[quarter], [[0, -1], [1, 0]])
    assert d4.labels[5] == "mirror, turn 90"


@pytest.mark.parametrize("group", ON_GRID, ids=lambda g: g.name)
def test_act_is_an_action(group):
    image = np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3)
    for g in range(group.order):
        for h in range(group.order):
            twice = planar.act(group, g, planar.act(group, h, image))
            np.testing.assert_array_equal(planar.act(group, group.product[g, h], image), twice)


def test_act_turns_counter_clockwise_and_mirrors_left_right():
    image = np.arange(9.0).reshape(1, 3, 3, 1)
    d4 = dihedral(4)
    for k in range(4):
        np.testing.assert_array_equal(planar.act(d4, k, image), np.rot90(image, k, (1, 2)))
        mirrored = np.rot90(image[:, :, ::-1], k, (1, 2))
        np.testing.assert_array_equal(planar.act(d4, 4 + k, jnp.asarray(image)), mirrored)


@pytest.mark.parametrize("group", ON_GRID, ids=lambda g: g.name)
def test_act_on_field_is_an_action(group):
    field = np.random.default_rng(0).normal(size=(2, 3, 3, 2 * group.order))
    for g in range(group.order):
        for h in range(group.order):
            twice = planar.act_on_field(group, g, planar.act_on_field(group, h, field))
            once = planar.act_on_field(group, group.product[g, h], field)
            np.testing.assert_array_equal(once, twice)


def test_pixels_and_matrices_agree():
    # a point at (x, y) = (1, 0), right of the centre, goes where the matrix sends it
    image = np.zeros((3, 3, 1))
    image[1, 2] = 1
    for group in ON_GRID:
        for g in range(group.order):
            x, y = group.matrices[g] @ (1, 0)
            moved = planar.act(group, g, image)
            assert moved[1 - round(y), 1 + round(x), 0] == 1


def test_order_by_turn_then_flip():
    # up-down after r turns is left-right before 2 - r turns
    np.testing.assert_array_equal(planar.turn_then_flip(dihedral(4)), [0, 1, 2, 3, 6, 5, 4, 7])
    np.testing.assert_array_equal(planar.turn_then_flip(cyclic(4)), np.arange(4))
    image = np.random.default_rng(0).normal(size=(5, 5, 1))
    for s, ours in enumerate(planar.turn_then_flip(dihedral(4))):
        flip, turns = divmod(s, 4)
        turned = np.rot90(image, turns)
        theirs = turned[::-1] if flip else turned
        np.testing.assert_array_equal(planar.act(dihedral(4), ours, image), theirs)


def test_names():
    assert planar.named("p4m") == planar.named("D4") == dihedral(4)
    assert planar.named("c8") == cyclic(8)
    assert {planar.named(c).name for c in planar.CRYSTAL} == {"c1", "c2", "c4", "d1", "d2", "d4"}
    with pytest.raises(ValueError, match=r"unknown group 'p5'.*p4m"):
        planar.named("p5")
    with pytest.raises(ValueError, match="at least one rotation"):
        cyclic(0)
    with pytest.raises(ValueError, match="45 degrees"):
        planar.act(cyclic(8), 1, np.zeros((3, 3, 1)))
    with pytest.raises(ValueError, match="6 channels"):
        planar.fields(cyclic(4), 6)
    with pytest.raises(ValueError, match="no up-down flip"):
        planar.turn_then_flip(dihedral(1))
