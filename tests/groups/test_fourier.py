"""The transform over the group: orthonormal, and convolutions over the group become blocks."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.groups.fourier import planes
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.groups.representations import irrep_matrices

GROUPS = [Group(n, m) for n in (1, 2, 3, 4, 6, 8) for m in (False, True)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_orthonormal_and_read_only(group):
    found = planes(group)
    assert found.ones + found.twos * 2 * found.rows == group.order
    assert found.matrix.shape == (group.order, group.order)
    np.testing.assert_allclose(found.matrix @ found.matrix.T, np.eye(group.order), atol=1e-14)
    with pytest.raises(ValueError, match="read-only"):
        found.matrix[0, 0] = 0
    assert planes(Group(group.rotations, group.mirrors)) is found


def test_by_hand():
    np.testing.assert_allclose(planes(dihedral(1)).matrix * 2**0.5, [[1, 1], [1, -1]])
    r = 2**0.5
    expected = [[1, 1, 1, 1], [1, -1, 1, -1], [r, 0, -r, 0], [0, r, 0, -r]]
    np.testing.assert_allclose(planes(cyclic(4)).matrix * 2, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("group", "count"),
    [
        (Group(1), 1),
        (dihedral(1), 2),
        (cyclic(2), 2),
        (cyclic(4), 6),
        (dihedral(2), 4),
        (dihedral(4), 12),
        (cyclic(8), 14),
        (dihedral(8), 28),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_multiplications_of_a_map_between_two_fields(group, count):
    assert planes(group).multiplications == count


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_the_group_acts_on_rows_alone(group):
    found = planes(group)
    f = np.random.default_rng(0).normal(size=group.order)
    before = found.matrix @ f
    for g in range(group.order):
        moved = found.matrix @ f[group.shift[g]]
        expected = [
            irrep_matrices(group, irrep)[g, 0, 0] * before[n]
            for n, irrep in enumerate(found.irreps[: found.ones])
        ]
        for n, irrep in enumerate(found.irreps[found.ones :]):
            rho = irrep_matrices(group, irrep)[g]
            block = before[found.ones :].reshape(found.twos, 2, found.rows)[n]
            # over C_N there is one column, whose two numbers turn
            expected += list((block @ rho.T if found.rows == 2 else rho @ block).ravel())
        np.testing.assert_allclose(moved, expected, atol=1e-13)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_a_convolution_over_the_group_is_block_diagonal(group):
    found = planes(group)
    w = np.random.default_rng(0).normal(size=group.order)
    matrix = w[group.shift]  # y[s] = sum_t w[s^-1 t] x[t]
    in_planes = found.matrix @ matrix @ found.matrix.T
    allowed = np.zeros_like(in_planes)
    allowed[: found.ones, : found.ones] = np.eye(found.ones)
    for n in range(found.twos):
        part = slice(found.ones + 2 * n * found.rows, found.ones + 2 * (n + 1) * found.rows)
        allowed[part, part] = np.kron(np.ones((2, 2)), np.eye(found.rows))
    np.testing.assert_allclose(in_planes * (1 - allowed), 0, atol=1e-13)
    assert np.count_nonzero(allowed) == found.multiplications
