"""Representations of C_N and D_N, and fields that transform by them.

Cesa, Lang and Weiler (2022), "A Program to Build E(N)-Equivariant Steerable CNNs"; the order of
the irreps, their bases, and the names are those of escnn 1.0.11, `group/`, so that coefficients
mean the same there and here.

A representation is an orthogonal change of basis of a direct sum of irreps,
rho(g) = Q (psi_1(g) + psi_2(g) + ...) Q^T. A field of it transforms as (g f)(x) = rho(g) f(g^-1 x).
Fields lie behind each other on the channel axis; those of the regular representation have channel
= field * order + element, as everywhere in the project (`planar.act_on_field`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group

Irrep = tuple[int, ...]
"""Which irrep: (k,) of C_N, (0,) and (1,) of D_1, (j, k) of D_N. k is the frequency; j = 1 says
that the mirror acts, by -1 or by diag(1, -1)."""


def irreps(group: Group) -> tuple[Irrep, ...]:
    """All irreps of a group over the reals, in the order that everything here uses.

    >>> irreps(planar.cyclic(4)), irreps(planar.dihedral(4))
    (((0,), (1,), (2,)), ((0, 0), (1, 0), (1, 1), (1, 2), (0, 2)))
    """
    half = group.rotations // 2
    if not group.mirrors:
        return tuple((k,) for k in range(half + 1))
    if group.rotations == 1:
        return (0,), (1,)
    last = ((0, half),) if group.rotations % 2 == 0 else ()
    return ((0, 0), *((1, k) for k in range(half + 1)), *last)


@functools.lru_cache(maxsize=1024)
def irrep_matrices(group: Group, irrep: Irrep) -> np.ndarray:
    """f64[G, d, d] of an irrep, d = 1 or 2.

    Raises:
      ValueError: the group has no such irrep; the message lists those it has.
    """
    if irrep not in irreps(group):
        listed = ", ".join(map(str, irreps(group)))
        raise Refusal(f"{group.name} has no irrep {irrep}. It has {listed}.")
    mirror, turn = np.divmod(np.arange(group.order), group.rotations)
    sign = irrep[0] if group.mirrors else 0
    k = 0 if group.mirrors and group.rotations == 1 else irrep[-1]
    angle = 2 * np.pi * k * turn / group.rotations
    if 2 * k in (0, group.rotations):
        return (np.round(np.cos(angle)) * (1 - 2 * sign * mirror))[:, None, None]
    both = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    both = np.moveaxis(both, -1, 0)
    both[mirror == 1] = both[mirror == 1] @ np.diag([1.0, -1.0])
    return np.round(both, 15) + 0.0


def is_complex(group: Group, irrep: Irrep) -> bool:
    """Whether maps that commute with the irrep are the complex numbers: plane turns of C_N."""
    return not group.mirrors and 0 < 2 * irrep[0] < group.rotations


@dataclasses.dataclass(frozen=True)
class Representation:
    """A representation by its irreps and the change of basis.

    Two are equal if group, name and irreps are: a name says how a representation was made.

    Attributes:
      group: the group.
      name: `irrep_1`, `irrep_1,2`, `regular`, `quotient[4]`, ...
      irreps: its irreps, in order, copies included.
      change_of_basis: f64[d, d], Q.
    """

    group: Group
    name: str
    irreps: tuple[Irrep, ...]
    change_of_basis: np.ndarray = dataclasses.field(compare=False, repr=False)

    @property
    def size(self) -> int:
        """d, the channels of a field."""
        return len(self.change_of_basis)

    @functools.cached_property
    def columns(self) -> tuple[slice, ...]:
        """Columns of Q that belong to each irrep."""
        sizes = [irrep_matrices(self.group, i).shape[-1] for i in self.irreps]
        ends = np.cumsum(sizes)
        return tuple(slice(int(e - s), int(e)) for s, e in zip(sizes, ends))

    @functools.cached_property
    def matrices(self) -> np.ndarray:
        """f64[G, d, d], rho(g)."""
        blocks = np.zeros((self.group.order, self.size, self.size))
        for irrep, part in zip(self.irreps, self.columns):
            blocks[:, part, part] = irrep_matrices(self.group, irrep)
        q = self.change_of_basis
        full = q @ blocks @ q.T
        whole = np.round(full)
        return whole + 0.0 if np.allclose(full, whole, atol=1e-9) else full

    @functools.cached_property
    def pointwise(self) -> bool:
        """Whether every element permutes the channels, so that any function of one may act."""
        return bool((np.isin(self.matrices, (0, 1))).all())

    @functools.cached_property
    def trivials(self) -> np.ndarray:
        """f64[t, d]: the columns of Q that no element moves, one for each trivial irrep."""
        still = irreps(self.group)[0]
        chosen = [p for irrep, p in zip(self.irreps, self.columns) if irrep == still]
        return np.array([self.change_of_basis[:, p.start] for p in chosen]).reshape(-1, self.size)


def _name(irrep: Irrep) -> str:
    return f"irrep_{','.join(map(str, irrep))}"


def irrep(group: Group, *which: int) -> Representation:
    """One irrep, in its own basis.

    Raises:
      ValueError: the group has no such irrep.
    """
    return Representation(
        group, _name(which), (which,), np.eye(irrep_matrices(group, which).shape[1])
    )


def trivial(group: Group) -> Representation:
    """What no element moves: grey values, or each channel of an image."""
    return irrep(group, *irreps(group)[0])


@functools.lru_cache(maxsize=256)
def regular(group: Group) -> Representation:
    """Functions on the group: rho(g) e_h = e_gh.

    >>> regular(planar.cyclic(4)).matrices[1].astype(int)
    array([[0, 0, 0, 1],
           [1, 0, 0, 0],
           [0, 1, 0, 0],
           [0, 0, 1, 0]])
    """
    found, basis = _on_cosets(group, np.zeros(1, np.int32), 0)
    return Representation(group, "regular", found, basis)


@functools.lru_cache(maxsize=256)
def quotient(group: Group, part: Group, axis: int = 0) -> Representation:
    """Functions on the cosets g H, which stand in the order of their first elements.

    Args:
      group: the group.
      part, axis: H, as in `planar.subgroup`.

    Raises:
      ValueError: H is no subgroup.
    """
    members = planar.subgroup(group, part, axis)
    found, basis = _on_cosets(group, members, axis)
    if not group.mirrors or group.rotations == 1:
        which = str(part.order)
    else:
        which = f"({axis if part.mirrors else None}, {part.rotations})"
    return Representation(group, f"quotient[{which}]", found, basis)


def _on_cosets(
    group: Group, members: np.ndarray, axis: int
) -> tuple[tuple[Irrep, ...], np.ndarray]:
    """Irreps and basis of the functions on cosets: sqrt(d / cosets) psi(g) v, v kept by H."""
    cosets = np.unique(group.product[:, members].min(1))
    found: list[Irrep] = []
    columns = []
    for which in irreps(group):
        psi = irrep_matrices(group, which)
        size = psi.shape[-1]
        kept = psi[members].mean(0)  # the projection onto what H keeps
        count = round(float(np.trace(kept)))
        if count == 1 and size == 2:
            half_turn = np.pi * which[-1] * axis / group.rotations
            still = np.array([[np.cos(half_turn)], [np.sin(half_turn)]])
        else:
            still = np.eye(size)[:, : min(count, 1 if is_complex(group, which) else count)]
        found += [which] * still.shape[1]
        columns += [np.sqrt(size / len(cosets)) * (psi[cosets] @ v) for v in still.T]
    return tuple(found), np.concatenate(columns, 1)


def direct_sum(*parts: Representation) -> Representation:
    """Stack representations into one.

    Raises:
      ValueError: none, or of different groups.
    """
    group = _one_group(parts)
    basis = np.zeros((sum(p.size for p in parts),) * 2)
    start = 0
    for part in parts:
        stop = start + part.size
        basis[start:stop, start:stop] = part.change_of_basis
        start = stop
    found = tuple(i for p in parts for i in p.irreps)
    return Representation(group, "+".join(p.name for p in parts), found, basis)


def restrict(representation: Representation, part: Group, axis: int = 0) -> Representation:
    """The same matrices, for the elements of a subgroup alone.

    Args:
      representation: of G.
      part, axis: the subgroup H, as in `planar.subgroup`.

    Returns:
      A representation of H; its name tells where it comes from.

    Raises:
      ValueError: H is no subgroup.
    """
    members = planar.subgroup(representation.group, part, axis)
    found, basis = _decompose(part, representation.matrices[members])
    mirror = f", axis {axis}" if axis else ""
    name = f"{representation.name} of {representation.group.name}{mirror}"
    return Representation(part, name, found, basis)


def _decompose(group: Group, matrices: np.ndarray) -> tuple[tuple[Irrep, ...], np.ndarray]:
    """Irreps of orthogonal matrices f64[G, d, d], and a basis in which they are those irreps."""
    found: list[Irrep] = []
    columns: list[np.ndarray] = []
    for which in irreps(group):
        psi = irrep_matrices(group, which)
        size = psi.shape[-1]
        # P_a maps the first vector of a copy to the a-th, and all that belongs elsewhere to 0
        first, *others = np.einsum("ga,gxy->axy", psi[:, :, 0], matrices) * size / group.order
        mine: list[np.ndarray] = []
        for start in first.T:
            left = start - sum((start @ v) * v for v in mine)
            length = np.linalg.norm(left)
            if length > 1e-6:
                v = left / length
                mine += [v, *(p @ v for p in others)]
                found.append(which)
        columns += mine
    return tuple(found), np.stack(columns, 1)


def _one_group(parts: Any) -> Group:
    groups = list(dict.fromkeys(p.group for p in parts))
    if len(groups) != 1:
        listed = " and ".join(g.name for g in groups) or "none"
        raise Refusal(f"representations of one group are needed; given: {listed}")
    return groups[0]


@dataclasses.dataclass(frozen=True)
class FieldType:
    """What the channels of a feature map are: fields of representations of one group, in order.

    Attributes:
      runs: (representation, how many fields of it follow each other); equal neighbours are one run.

    Raises:
      ValueError: no field, a count below 1, or representations of different groups.
    """

    runs: tuple[tuple[Representation, int], ...]

    def __post_init__(self):
        _one_group([r for r, _ in self.runs])
        if any(count < 1 for _, count in self.runs):
            raise Refusal(f"{self}: a run has at least one field")
        merged: list[tuple[Representation, int]] = []
        for representation, count in self.runs:
            if merged and merged[-1][0] == representation:
                count += merged.pop()[1]
            merged.append((representation, count))
        object.__setattr__(self, "runs", tuple(merged))

    def __str__(self) -> str:
        return " + ".join(f"{count} {r.name}" for r, count in self.runs) + f" of {self.group.name}"

    def __add__(self, other: FieldType) -> FieldType:
        return FieldType(self.runs + other.runs)

    @property
    def group(self) -> Group:
        """The group."""
        return self.runs[0][0].group

    @property
    def size(self) -> int:
        """Channels."""
        return sum(r.size * count for r, count in self.runs)

    @property
    def count(self) -> int:
        """Fields."""
        return sum(count for _, count in self.runs)

    @property
    def pointwise(self) -> bool:
        """Whether every element permutes the channels."""
        return all(r.pointwise for r, _ in self.runs)

    def fields(self) -> Iterator[tuple[Representation, int]]:
        """Each field's representation and first channel."""
        start = 0
        for representation, count in self.runs:
            for _ in range(count):
                yield representation, start
                start += representation.size

    @functools.cached_property
    def kinds(self) -> tuple[tuple[Representation, np.ndarray], ...]:
        """Each representation that occurs, sorted by name, and its channels i32[fields, d]."""
        found: dict[str, tuple[Representation, list[int]]] = {}
        for representation, start in self.fields():
            found.setdefault(representation.name, (representation, []))[1].append(start)
        return tuple(
            (r, (np.array(starts)[:, None] + np.arange(r.size)).astype(np.int32))
            for _, (r, starts) in sorted(found.items())
        )


def act(kind: FieldType, element: int, x: Any) -> Any:
    """Move a feature map [..., H, W, C]: its pixels by `planar.transform`, its fields by rho(g).

    Args:
      kind: what the channels are.
      element: index of the element.
      x: numpy or jax array.

    Raises:
      ValueError: other channels than the type has, or as `planar.transform`.
    """
    check_channels(kind, x.shape[-1])
    x = planar.transform(kind.group, element, x)
    position = np.argsort(np.concatenate([channels.ravel() for _, channels in kind.kinds]))
    parts = []
    for representation, channels in kind.kinds:
        matrix = representation.matrices[element]
        fields = x[..., channels]
        if representation.pointwise:
            fields = fields[..., matrix.argmax(1)]
        else:
            fields = fields @ matrix.T.astype(x.dtype)
        parts.append(fields.reshape(*x.shape[:-1], -1))
    return x.__array_namespace__().concat(parts, axis=-1)[..., position]


def check_channels(kind: FieldType, channels: int) -> None:
    """Refuse a feature map with other channels than a type has.

    Raises:
      ValueError: the numbers differ.
    """
    if kind.size != channels:
        raise Refusal(f"the input has {channels} channels, and the type takes {kind.size}: {kind}")


def check_pointwise(kind: FieldType, what: str) -> None:
    """Refuse what acts on single channels where the group mixes them.

    Raises:
      ValueError: a representation of the type does not permute its channels.
    """
    mixing = sorted({r.name for r, _ in kind.runs if not r.pointwise})
    if mixing:
        raise Refusal(
            f"{what} acts on single channels, and {kind.group.name} mixes those of "
            f"{', '.join(mixing)}. Take regular, quotient or trivial fields, or act on norms."
        )
