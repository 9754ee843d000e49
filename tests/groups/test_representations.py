"""Laws of representations: they multiply as the group does, and say so by their irreps."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import planar, representations
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.groups.representations import FieldType, irrep, quotient, regular, restrict, trivial

GROUPS = [Group(n, m) for n in (1, 2, 3, 4, 5, 6, 8) for m in (False, True)]


def everything(group: Group) -> list[representations.Representation]:
    """Every irrep, the regular and trivial representation, all quotients, and restrictions."""
    made = [irrep(group, *i) for i in representations.irreps(group)]
    made += [regular(group), trivial(group)]
    for m in range(1, group.rotations + 1):
        if group.rotations % m == 0:
            made.append(quotient(group, cyclic(m)))
            if group.mirrors:
                made += [quotient(group, dihedral(m), axis) for axis in range(group.rotations)]
    twice = Group(2 * group.rotations, group.mirrors)
    made += [restrict(irrep(twice, *i), group) for i in representations.irreps(twice)]
    made += [restrict(regular(dihedral(group.rotations)), group)]
    return [*made, representations.direct_sum(made[-1], made[0], regular(group))]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_they_multiply_as_the_group_does(group):
    for made in everything(group):
        m, q = made.matrices, made.change_of_basis
        products = np.einsum("gij,hjk->ghik", m, m)
        np.testing.assert_allclose(products, m[group.product], atol=1e-10, err_msg=made.name)
        np.testing.assert_allclose(q @ q.T, np.eye(made.size), atol=1e-10, err_msg=made.name)
        kept = np.linalg.matrix_rank(m.mean(0), tol=1e-9)  # the projection onto what stays
        assert len(made.trivials) == kept, made.name
        np.testing.assert_allclose(made.trivials @ m.mean(0), made.trivials, atol=1e-10)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_the_irreps_are_all_and_different(group):
    found = representations.irreps(group)
    characters = [
        np.trace(representations.irrep_matrices(group, i), axis1=1, axis2=2) for i in found
    ]
    products = np.array(characters) @ np.array(characters).T / group.order
    types = [2 if representations.is_complex(group, i) else 1 for i in found]
    np.testing.assert_allclose(products, np.diag(types), atol=1e-9)
    assert sum(c[0] ** 2 / t for c, t in zip(characters, types)) == group.order


def test_permutations_are_exact_and_known():
    d4 = dihedral(4)
    np.testing.assert_array_equal(regular(d4).matrices[1] @ np.eye(8)[0], np.eye(8)[1])
    for made in (regular(cyclic(8)), quotient(d4, dihedral(2), 1), trivial(d4)):
        assert made.pointwise
        assert np.isin(made.matrices, (0, 1)).all()
    assert not irrep(d4, 1, 1).pointwise
    assert not irrep(cyclic(2), 1).pointwise  # a sign
    # the cosets of C4 in C8 are the even and the odd turns
    halves = quotient(cyclic(8), cyclic(4))
    assert halves.name == "quotient[4]"
    np.testing.assert_array_equal(halves.matrices[1], [[0, 1], [1, 0]])
    assert quotient(d4, dihedral(2), 3).name == "quotient[(3, 2)]"
    assert quotient(d4, cyclic(2)).name == "quotient[(None, 2)]"


def test_restriction_keeps_the_matrices():
    d8, d4 = dihedral(8), dihedral(4)
    for axis in (0, 3):
        members = planar.subgroup(d8, d4, axis)
        for made in (regular(d8), irrep(d8, 1, 3), irrep(d8, 0, 4), quotient(d8, cyclic(2))):
            smaller = restrict(made, d4, axis)
            np.testing.assert_allclose(smaller.matrices, made.matrices[members], atol=1e-10)
    assert restrict(irrep(d8, 1, 4), cyclic(4)) == restrict(irrep(d8, 1, 4), cyclic(4))
    assert restrict(irrep(d8, 0, 4), cyclic(4)) != restrict(irrep(d8, 1, 4), cyclic(4))
    assert hash(regular(d8)) == hash(regular(dihedral(8)))


@pytest.mark.parametrize("group", [cyclic(4), dihedral(2), dihedral(4)], ids=lambda g: g.name)
def test_the_action_on_fields_is_an_action(group):
    kind = FieldType(((regular(group), 2), (irrep(group, *representations.irreps(group)[-1]), 1)))
    kind += FieldType(((regular(group), 1), (trivial(group), 2)))
    x = np.random.default_rng(0).normal(size=(2, 3, 3, kind.size))
    for g in range(group.order):
        for h in range(group.order):
            twice = representations.act(kind, g, representations.act(kind, h, x))
            once = representations.act(kind, group.product[g, h], x)
            np.testing.assert_allclose(once, twice, atol=1e-12)
    same = representations.act(kind, 1, jnp.asarray(x))
    np.testing.assert_allclose(same, representations.act(kind, 1, x), rtol=1e-5, atol=1e-6)


def test_regular_fields_are_those_of_the_group_convolutions():
    group = dihedral(4)
    kind = FieldType(((regular(group), 3),))
    x = np.random.default_rng(0).normal(size=(1, 4, 4, kind.size))
    for g in range(group.order):
        expected = planar.act_on_field(group, g, x)
        np.testing.assert_array_equal(representations.act(kind, g, x), expected)


def test_fields_and_their_channels():
    c4 = cyclic(4)
    kind = FieldType(((trivial(c4), 2), (regular(c4), 1), (trivial(c4), 1)))
    assert (kind.size, kind.count, kind.group, kind.pointwise) == (7, 4, c4, True)
    assert [(r.name, start) for r, start in kind.fields()] == [
        ("irrep_0", 0),
        ("irrep_0", 1),
        ("regular", 2),
        ("irrep_0", 6),
    ]
    channels = {r.name: c.tolist() for r, c in kind.kinds}
    assert channels == {"irrep_0": [[0], [1], [6]], "regular": [[2, 3, 4, 5]]}
    assert str(kind) == "2 irrep_0 + 1 regular + 1 irrep_0 of c4"


def test_refuses():
    c4, d4 = cyclic(4), dihedral(4)
    with pytest.raises(ValueError, match=r"c4 has no irrep \(3,\). It has \(0,\), \(1,\), \(2,\)"):
        irrep(c4, 3)
    with pytest.raises(ValueError, match=r"d4 has no irrep \(0, 1\)"):
        irrep(d4, 0, 1)
    with pytest.raises(ValueError, match="c3 is no subgroup of c4"):
        quotient(c4, cyclic(3))
    with pytest.raises(ValueError, match=r"d2 is no subgroup of c4.*no mirrors"):
        restrict(regular(c4), dihedral(2))
    with pytest.raises(ValueError, match="axis=4"):
        quotient(d4, dihedral(2), 4)
    with pytest.raises(ValueError, match="c4 and d4"):
        FieldType(((trivial(c4), 1), (trivial(d4), 1)))
    with pytest.raises(ValueError, match="at least one field"):
        FieldType(((trivial(c4), 0),))
    with pytest.raises(ValueError, match="given: none"):
        representations.direct_sum()
    with pytest.raises(ValueError, match=r"3 channels.*takes 4: 1 regular of c4"):
        representations.act(FieldType(((regular(c4), 1),)), 1, np.zeros((1, 2, 2, 3)))
    with pytest.raises(ValueError, match=r"ReLU.*c4 mixes those of irrep_1"):
        representations.check_pointwise(FieldType(((irrep(c4, 1), 1),)), "ReLU")
