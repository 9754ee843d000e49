"""Steerable kernels commute with the group, are all that do, and survive a damaged cache."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.groups import kernels, planar, representations
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.groups.representations import irrep, quotient, regular, restrict, trivial


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.basis.cache_clear()


def drawn(rng: np.random.Generator):
    """A group, two representations of it, and the rest of a filter space."""
    group = Group(int(rng.integers(1, 8)), bool(rng.integers(2)))
    divisors = [m for m in range(1, group.rotations + 1) if group.rotations % m == 0]

    def representation():
        irreps = representations.irreps(group)
        choice = int(rng.integers(6))
        if choice == 0:
            return regular(group)
        if choice in (1, 2):
            return irrep(group, *irreps[rng.integers(len(irreps))])
        if choice == 3:
            part = Group(int(rng.choice(divisors)), group.mirrors and bool(rng.integers(2)))
            axis = int(rng.integers(group.rotations)) if part.mirrors else 0
            return quotient(group, part, axis)
        if choice == 4:
            parts = [irrep(group, *irreps[i]) for i in rng.integers(len(irreps), size=3)]
            return representations.direct_sum(*parts)
        larger = Group(2 * group.rotations, True)
        irreps = representations.irreps(larger)
        return restrict(irrep(larger, *irreps[rng.integers(len(irreps))]), group)

    rest = int(rng.choice([1, 3, 5, 7, 9])), int(rng.choice([1, 1, 2]))
    return representation(), representation(), *rest, float(rng.choice([-1, -1, -2, -3, 0.7]))


@pytest.mark.parametrize("seed", range(30))
def test_any_pair_of_fields(seed):
    rho_in, rho_out, size, dilation, cutoff = drawn(np.random.default_rng(seed))
    group, rest = rho_in.group, (size, dilation, cutoff)
    basis = kernels.basis(rho_in, rho_out, *rest)

    def filters(points):
        functions = kernels.sample(group, points, *rest)
        return np.einsum("boic,bcp->boip", basis.coefficients, functions[basis.pairs])

    # K(g x) = rho_out(g) K(x) rho_in(g)^-1, at the taps and between them
    taps = kernels.grid(size, dilation)
    between = np.random.default_rng(seed).normal(size=(5, 2)) * size / 2
    points = np.concatenate([taps[:: max(1, len(taps) // 9)], between])
    np.testing.assert_allclose(filters(taps), basis.filters, atol=1e-12)
    for g, matrix in enumerate(group.matrices):
        out, inner = rho_out.matrices[g], rho_in.matrices[g]
        expected = np.einsum("xo,boip,yi->bxyp", out, filters(points), inner)
        np.testing.assert_allclose(filters(points @ matrix.T), expected, atol=1e-9)

    # every element has the norm of its output irrep, and they are independent
    sizes = [representations.irrep_matrices(group, i).shape[-1] for i in rho_out.irreps]
    norms = np.square(basis.filters).sum((1, 2, 3))
    np.testing.assert_allclose(norms, np.array(sizes)[basis.out_irrep], rtol=1e-9)
    # as many as characters count: a turn by a has trace 2 cos(m a) on harmonics, a mirror none
    turn = 2 * np.pi * (np.arange(group.order) % group.rotations) / group.rotations
    mirror = np.arange(group.order) // group.rotations
    harmonics = 0
    for radius in kernels.rings(size, dilation)[0]:
        for m in range(int(kernels.highest_frequency(radius, size, cutoff)) + 1):
            harmonics = harmonics + (1 if m == 0 else 2 * np.cos(m * turn) * (1 - mirror))
    traces = [np.trace(r.matrices, axis1=1, axis2=2) for r in (rho_in, rho_out)]
    assert len(norms) == round(np.mean(traces[0] * traces[1] * harmonics))
    if len(norms):
        flat = np.zeros((len(norms), rho_out.size, rho_in.size, len(basis.functions)))
        for c in (0, 1):
            flat[np.arange(len(norms)), :, :, basis.pairs[:, c]] += basis.coefficients[..., c]
        flat = flat.reshape(len(flat), -1)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        assert np.linalg.matrix_rank(flat @ flat.T) == len(flat)


def test_numbers_of_filters():
    functions = {1: 1, 3: 6, 5: 11, 7: 18}
    pixels = {"c1": (1, 6, 11, 18), "d1": (1, 4, 7, 11), "c4": (1, 2, 3, 4), "d8": (1, 2, 3, 4)}
    for name, grey in pixels.items():
        group = planar.named(name)
        for (size, count), plain in zip(functions.items(), grey):
            lifted = kernels.basis(trivial(group), regular(group), size)
            mixed = kernels.basis(regular(group), regular(group), size)
            assert len(lifted.ring) == count
            assert len(mixed.ring) == count * group.order
            assert len(kernels.basis(trivial(group), trivial(group), size).ring) == plain


def test_rings_and_frequencies():
    radii, widths = kernels.rings(7)
    assert radii.tolist() == [0, 1, 2, 3]
    assert widths.tolist() == [0.005, 0.6, 0.6, 0.4]
    assert [kernels.highest_frequency(r, 7) for r in radii] == [0, 2, 3, 2]
    assert [kernels.highest_frequency(r, 7, -2) for r in radii] == [0, 2, 3, 1]
    assert [kernels.highest_frequency(r, 7, -3) for r in radii] == [0, 2, 2, 1]
    assert [kernels.highest_frequency(r, 7, 1.5) for r in radii] == [0, 1.5, 3, 4.5]
    assert kernels.rings(3, 2)[0].tolist() == [0, 2]
    assert kernels.highest_frequency(2, 3) == 3  # a dilated ring is not known as the border


def test_what_vanishes_on_the_taps_is_left_out():
    group = cyclic(1)
    # sin 4 theta is 0 on the eight neighbours
    allowed = kernels.basis(trivial(group), trivial(group), 3, 1, 4)
    assert len(allowed.ring) == 1 + 1 + 2 * 3 + 1


def test_a_damaged_file_is_made_anew(tmp_path):
    arguments = regular(dihedral(4)), regular(dihedral(4)), 3
    first = kernels.basis(*arguments)
    (file,) = (tmp_path / "jaxequi" / "kernels").iterdir()
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(content)
        kernels.basis.cache_clear()
        again = kernels.basis(*arguments)
        for a, b in zip(first, again):
            np.testing.assert_array_equal(a, b)
        assert file.read_bytes() == whole
    kernels.basis.cache_clear()
    stored = kernels.basis(*arguments)
    for a, b in zip(first, stored):
        np.testing.assert_array_equal(a, b)
    assert len(list(file.parent.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(kernels.basis(trivial(cyclic(4)), regular(cyclic(4)), 3).ring) == 6


def test_refuses():
    c4, d4 = cyclic(4), dihedral(4)
    with pytest.raises(ValueError, match=r"size 4 .*c4.*Take 3 or 5"):
        kernels.basis(trivial(c4), regular(c4), 4)
    with pytest.raises(ValueError, match="irrep_0 is a representation of c4 and regular one of d4"):
        kernels.basis(trivial(c4), regular(d4), 3)
    with pytest.raises(ValueError, match="cutoff=-4"):
        kernels.basis(trivial(c4), regular(c4), 3, 1, -4)
