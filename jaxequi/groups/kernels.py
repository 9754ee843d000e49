"""Steerable kernels: all filters that commute with turns and mirrors, on the pixel grid.

Cesa, Lang and Weiler (2022), "A Program to Build E(N)-Equivariant Steerable CNNs"; the functions,
their order and their scale are those of escnn 1.0.11, `nn/modules/conv/r2convolution.py` and
`kernels/`, so that its coefficients mean the same here.

A layer between fields of rho_in and rho_out commutes with the group exactly if its filter does,

    K(g x) = rho_out(g) K(x) rho_in(g)^-1.

Filters are sums of smooth functions, Gaussians of the radius about a few rings times cosines and
sines of the angle, so that the constraint holds for every turn before anything is sampled. Each
basis filter has one frequency m and one ring, and joins one irrep of rho_in to one of rho_out
through an irrep that the harmonics (cos m theta, sin m theta) contain.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import os
import pathlib
import tempfile
import zipfile
from typing import NamedTuple

import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups.planar import Group
from jaxequi.groups.representations import Irrep, Representation, irrep_matrices, irreps, is_complex


class Basis(NamedTuple):
    """A basis of all filters from one field of rho_in to one of rho_out.

    Element b is sum_c coefficients[b, :, :, c] * functions[pairs[b, c], :] on the grid. Its squared
    Frobenius norm is the size of its output irrep; elements of different rings are not orthogonal.

    Attributes:
      coefficients: f64[B, d_out, d_in, 2].
      pairs: i32[B, 2], the cosine and the sine of an element; twice the same for frequency 0.
      functions: f64[F, k k], phi_f(x_p) for pixel p = row * k + column; see `sample`.
      frequency, ring: i32[B], m, and the position of the ring.
      in_irrep, out_irrep: i32[B], positions in the irreps of rho_in and rho_out.
      coupled: i32[B], position among the irreps of the group of the one that joins them.
    """

    coefficients: np.ndarray
    pairs: np.ndarray
    functions: np.ndarray
    frequency: np.ndarray
    ring: np.ndarray
    in_irrep: np.ndarray
    out_irrep: np.ndarray
    coupled: np.ndarray

    @property
    def filters(self) -> np.ndarray:
        """f64[B, d_out, d_in, k k]: the elements on the grid."""
        return np.einsum("boic,bcp->boip", self.coefficients, self.functions[self.pairs])


def rings(size: int, dilation: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Radii of the rings, and the widths of their Gaussians.

    Args:
      size: k, odd.
      dilation: step between the taps.

    Returns:
      f64[R], f64[R], in pixels.
    """
    radii = np.linspace(0, (size - 1) // 2, (size + 1) // 2) * dilation
    widths = np.full(len(radii), 0.6)
    widths[-1] = 0.4
    widths[radii == 0] = 0.005
    return radii, widths


def highest_frequency(radius: float, size: int, cutoff: float = -1) -> float:
    """The highest frequency that a ring may carry.

    Args:
      radius: of the ring, dilation included.
      size: k. The border is where the radius is k // 2: with a dilation no ring is.
      cutoff: c >= 0 for c times the radius, or one of the reference's rules: -1 for at most 2 at
        the border, -2 for at most 1 there, -3 for 1 there and 2 elsewhere. -1 and -2 allow other
        rings 2 r, less one where r is even; the centre has frequency 0 alone.

    Raises:
      ValueError: another negative number.
    """
    if cutoff >= 0:
        return cutoff * radius
    if cutoff not in (-1, -2, -3):
        raise Refusal(f"cutoff={cutoff}: give a number from 0 up, or one of -1, -2 and -3")
    if radius == 0:
        return 0
    border = radius == size // 2
    if cutoff == -3:
        return 1 if border else 2
    highest = 2 if cutoff == -1 else 1
    return min(2 * radius, highest if border else 2 * radius - (radius + 1) % 2)


def sample(
    group: Group, points: np.ndarray, size: int, dilation: int = 1, cutoff: float = -1
) -> np.ndarray:
    """Evaluate the scalar functions that filters are made of.

    Args:
      group: its harmonics start at angle pi/2 for C_N and at 0 for D_N.
      points: f64[P, 2], (x, y) in pixels, x to the right and y up.
      size, dilation, cutoff: as in `basis`.

    Returns:
      f64[F, P]: ring by ring, frequency by frequency, the cosine and then the sine.
    """
    start = 0 if group.mirrors else np.pi / 2
    x, y = points.T
    radius, angle = np.hypot(x, y), np.arctan2(y, x) - start
    functions = []
    for (ring, frequency), width in _rings_and_frequencies(size, dilation, cutoff):
        bump = np.exp(-((radius - ring) ** 2) / (2 * width**2))
        if frequency == 0:
            functions.append(bump)
        else:
            bump = np.where(radius < 1e-9, 0, bump)
            functions += [bump * np.cos(frequency * angle), bump * np.sin(frequency * angle)]
    return np.stack(functions)


def _rings_and_frequencies(size, dilation, cutoff):
    radii, widths = rings(size, dilation)
    return [
        ((radius, m), width)
        for radius, width in zip(radii, widths)
        for m in range(math.floor(highest_frequency(radius, size, cutoff)) + 1)
    ]


def grid(size: int, dilation: int = 1) -> np.ndarray:
    """f64[k k, 2]: the point (x, y) of each tap, row by row, x to the right and y up.

    >>> grid(3)[:3]
    array([[-1.,  1.],
           [ 0.,  1.],
           [ 1.,  1.]])
    """
    row, column = np.divmod(np.arange(size * size), size)
    middle = (size - 1) // 2
    return dilation * np.stack([column - middle, middle - row], -1).astype(np.float64)


@functools.lru_cache(maxsize=512)
def basis(
    rho_in: Representation,
    rho_out: Representation,
    size: int,
    dilation: int = 1,
    cutoff: float = -1,
) -> Basis:
    """Build the basis of all filters between two fields, or read it from the cache on disk.

    The elements are ordered by frequency, irrep of rho_in, irrep of rho_out, coupled irrep,
    endomorphism, coupling, copy of the irrep in the harmonics, ring. Of the couplings of D_N, which
    have no natural sign, the first entry that is not 0 is positive.

    Args:
      rho_in, rho_out: representations of one group.
      size: k, odd.
      dilation: step between the taps.
      cutoff: highest frequencies, as in `highest_frequency`.

    Raises:
      ValueError: an even kernel, different groups, or an unknown cutoff.
    """
    group = rho_out.group
    if rho_in.group != group:
        raise Refusal(
            f"{rho_in.name} is a representation of {rho_in.group.name} and {rho_out.name} one of "
            f"{group.name}: a filter joins fields of one group"
        )
    if size < 1 or size % 2 == 0:
        raise Refusal(
            f"a kernel of size {size} has no central pixel about which {group.name} could turn it. "
            f"Take {max(1, size - 1)} or {size + 1}."
        )
    key = hashlib.sha256(_sources())
    for part in (rho_in, rho_out, size, dilation, float(cutoff)):
        key.update(repr(part).encode())
    for representation in (rho_in, rho_out):
        key.update(np.round(representation.change_of_basis, 12).tobytes())
    file = cache_folder() / f"{key.hexdigest()[:32]}.npz"
    found = _read(file)
    if found is None:
        found = _build(rho_in, rho_out, size, dilation, cutoff)
        _write(file, found)
    return found


@functools.cache
def _sources() -> bytes:
    """The files that decide what a basis is: another version of them reads no old cache."""
    here = pathlib.Path(__file__)
    names = (here.name, "representations.py", "planar.py")
    return b"".join(here.with_name(name).read_bytes() for name in names)


def cache_folder() -> pathlib.Path:
    """Where bases are kept between runs: `jaxequi/kernels` in the user's cache."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "jaxequi" / "kernels"


def _read(file: pathlib.Path) -> Basis | None:
    """Read a basis; None where there is none, or none that is whole."""
    try:
        content = file.read_bytes()
        digest, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        with np.load(io.BytesIO(body), allow_pickle=False) as stored:
            return Basis(**{name: stored[name] for name in Basis._fields})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _write(file: pathlib.Path, made: Basis) -> None:
    """Write a basis under its name at once, so that no other process reads half of it."""
    buffer = io.BytesIO()
    np.savez(buffer, **made._asdict())
    body = buffer.getvalue()
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            part.write(hashlib.sha256(body).digest() + body)
        os.replace(part.name, file)


def _build(
    rho_in: Representation, rho_out: Representation, size: int, dilation: int, cutoff: float
) -> Basis:
    group = rho_out.group
    functions = sample(group, grid(size, dilation), size, dilation, cutoff)
    products = functions @ functions.T
    place: dict[tuple[int, int], tuple[int, int]] = {}  # (ring, frequency) to its functions
    radii = rings(size, dilation)[0]
    count = 0
    for (radius, m), _ in _rings_and_frequencies(size, dilation, cutoff):
        ring = int(np.flatnonzero(radii == radius)[0])
        place[ring, m] = (count, count + (m > 0))
        count += 2 if m else 1

    rows: list[tuple[np.ndarray, tuple[int, int], int, int, int, int, int]] = []
    for m in range(1 + max(m for _, m in place)):
        harmonics = _harmonics(group, m)
        for i, irrep_in in enumerate(rho_in.irreps):
            for o, irrep_out in enumerate(rho_out.irreps):
                for j, mixing in _mixings(group, irrep_out, irrep_in, harmonics):
                    for ring in range(len(radii)):
                        if (ring, m) not in place:
                            continue
                        pair = place[ring, m]
                        here = slice(pair[0], pair[1] + 1)
                        square = np.einsum("oic,oid,cd->", mixing, mixing, products[here, here])
                        length = math.sqrt(max(square, 0) / mixing.shape[0])
                        if length > 1e-6:  # a function may vanish on all taps
                            rows.append((mixing / length, pair, m, ring, i, o, j))

    coefficients = np.zeros((len(rows), rho_out.size, rho_in.size, 2))
    for b, (mixing, pair, _, _, i, o, _) in enumerate(rows):
        left = rho_out.change_of_basis[:, rho_out.columns[o]]
        right = rho_in.change_of_basis[:, rho_in.columns[i]]
        width = pair[1] - pair[0] + 1
        coefficients[b, :, :, :width] = np.einsum("xo,oic,yi->xyc", left, mixing, right)
    numbers = [np.array([r[n] for r in rows], np.int32) for n in range(2, 7)]
    pairs = np.array([r[1] for r in rows], np.int32).reshape(-1, 2)
    return Basis(coefficients, pairs, functions, *numbers)


def _harmonics(group: Group, m: int) -> list[tuple[Irrep, list[np.ndarray]]]:
    """Irreps that (cos m theta, sin m theta) contain, each with f64[d, 2 or 1] for its copies."""
    n = group.rotations
    if m == 0:
        return [(irreps(group)[0], [np.ones((1, 1))])]
    chi = np.diag([1.0, -1.0])
    k = m % n
    folded = 2 * k > n
    k = n - k if folded else k
    basis = chi if folded else np.eye(2)
    if group.mirrors:  # the mirror of the plane reverses x, that of the irreps y
        angle = np.pi * m / 2
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        basis = np.round(turn, 15) @ basis
    inverse = basis.T
    if 0 < 2 * k < n:
        return [((1, k) if group.mirrors else (k,), [inverse])]
    single = [inverse[:1], inverse[1:]]
    if not group.mirrors:
        return [((k,), single)]
    names: list[Irrep] = [(0,), (1,)] if n == 1 else [(0, k), (1, k)]
    return [(name, [rows]) for name, rows in zip(names, single)]


def _mixings(
    group: Group, irrep_out: Irrep, irrep_in: Irrep, harmonics: list[tuple[Irrep, list[np.ndarray]]]
) -> list[tuple[int, np.ndarray]]:
    """Matrices f64[d_out, d_in, 2 or 1] that make filters of harmonics, in the order of `basis`.

    Beside each stands the position of the irrep through which it joins the two.
    """
    copies = dict(harmonics)
    found = []
    for which, coupling in couplings(group, irrep_out, irrep_in):
        if which not in copies:
            continue
        size, j = coupling.shape[-1], irreps(group).index(which)
        turns = [np.eye(size)]
        if is_complex(group, which):
            turns.append(np.array([[0.0, -1.0], [1.0, 0.0]]))
        for turn in turns:
            for s in range(coupling.shape[2]):
                for copy in copies[which]:
                    made = np.einsum("oia,ba,by->oiy", coupling[:, :, s], turn, copy)
                    found.append((j, made))
    return found


@functools.lru_cache(maxsize=4096)
def couplings(
    group: Group, irrep_out: Irrep, irrep_in: Irrep
) -> tuple[tuple[Irrep, np.ndarray], ...]:
    """Irreps j in the product of two, in order, with f64[d_out, d_in, multiplicity, d_j]."""
    if group.mirrors:
        kept = ((j, _invariant(group, irrep_out, irrep_in, j)) for j in irreps(group))
        return tuple((j, c) for j, c in kept if c is not None)
    n, (a,), (b,) = group.rotations, irrep_out, irrep_in
    sizes = [irrep_matrices(group, i).shape[-1] for i in (irrep_out, irrep_in)]
    chi = np.diag([1.0, -1.0])
    if min(sizes) == 1:
        j = min(a + b, n - a - b) if a > 0 and b > 0 else a + b
        size = max(sizes)
        matrix = np.eye(size) if j == a + b else chi[:size, :size]
        return (((j,), matrix.reshape(*sizes, 1, size)),)
    # products of two turning planes turn by the difference and by the sum of the angles
    difference = np.array([[1, 0], [0, 1], [0, -1], [1, 0]]) / math.sqrt(2)
    total = np.array([[1, 0], [0, 1], [0, 1], [-1, 0]]) / math.sqrt(2)
    found = []
    for j in (abs(b - a), min(a + b, n - a - b)):
        if j == a + b:
            columns = total
        elif j == n - a - b:
            columns = total @ chi
        else:
            columns = difference if j == a - b else difference @ chi
        # rows are (in, out)
        tensor = columns.reshape(2, 2, 2).swapaxes(0, 1)
        single = 2 * j in (0, n)
        found.append(((j,), tensor[..., None] if single else tensor[:, :, None]))
    return tuple(found)


def _invariant(group: Group, *three: Irrep) -> np.ndarray | None:
    """The unit vector that psi_out x psi_in x psi_j keeps, f64[d_out, d_in, 1, d_j]; None: none."""
    psi = [irrep_matrices(group, i) for i in three]
    out, inner, j = (p.shape[-1] for p in psi)
    size = out * inner * j
    kept = np.einsum("gax,gby,gcz->abcxyz", *psi).reshape(size, size) / group.order
    if np.trace(kept) < 0.5:
        return None
    # the projection onto one vector: any of its columns is that vector, and here it is unique
    vector = kept[:, int(np.argmax(np.abs(np.diag(kept)) > 1e-6))]
    vector = vector / np.linalg.norm(vector)
    first = vector[np.argmax(np.abs(vector) > 1e-6)]
    return (vector * np.sign(first)).reshape(out, inner, 1, j)
