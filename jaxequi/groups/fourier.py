"""The Fourier transform over C_N and D_N: regular fields in the basis of the irreps, where a map
that commutes with the group is block diagonal.

Of a real irrep rho of dimension d the coefficients of a field f: G -> R are

    f^[j, i] = sqrt(d / |G|) sum_t rho(t)_ij f(t) :

the group acts on i, alike for every j, and a layer mixes j, alike for every i (column j, row i). Of
a plane irrep of C_N, whose maps are the complex numbers, the first column j = 0 of rho is enough:
f^[i]. The group turns those two numbers, and a layer multiplies them as a complex number.

The |G| coefficients of a field are its *planes*: first the irreps of dimension 1, the trivial one
at their head, then those of dimension 2, each as [2, rows], in the order of
`representations.irreps`. The transform is orthonormal.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxequi.groups.planar import Group
from jaxequi.groups.representations import Irrep, irrep_matrices, irreps, is_complex


@dataclasses.dataclass(frozen=True)
class Planes:
    """How the coefficients of a regular field lie, G = ones + twos * 2 * rows of them.

    Attributes:
      group: the group.
      irreps: of dimension 1, then of dimension 2.
      ones: irreps of dimension 1, one plane each.
      twos: irreps of dimension 2, planes [2, rows] each: a layer mixes the 2.
      rows: of an irrep of dimension 2: 2 over D_N, and 1 over C_N, where it is complex.
    """

    group: Group
    irreps: tuple[Irrep, ...]
    ones: int
    twos: int
    rows: int

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """f64[G, G], orthonormal: planes of a field are `matrix @ f`."""
        planes = []
        for irrep in self.irreps:
            rho = irrep_matrices(self.group, irrep)  # [G, i, j]
            d = rho.shape[-1]
            # of a complex irrep the one column holds all; its two entries are what a layer mixes
            mixed = rho[:, :, 0] if is_complex(self.group, irrep) else rho.swapaxes(1, 2)
            planes.append(np.sqrt(d / self.group.order) * mixed.reshape(self.group.order, -1).T)
        matrix = np.concatenate(planes)
        matrix.flags.writeable = False
        return matrix

    @property
    def multiplications(self) -> int:
        """Of a map between one field and one field, in place of G^2: 12 for D4, not 64."""
        return self.ones + 4 * self.twos * self.rows


@functools.lru_cache(maxsize=256)
def planes(group: Group) -> Planes:
    """How the coefficients of regular fields of a group lie.

    >>> found = planes(Group(4, mirrors=True))
    >>> found.irreps, found.multiplications
    (((0, 0), (1, 0), (1, 2), (0, 2), (1, 1)), 12)
    """
    sizes = {irrep: irrep_matrices(group, irrep).shape[-1] for irrep in irreps(group)}
    ones, twos = ([i for i, d in sizes.items() if d == size] for size in (1, 2))
    return Planes(group, (*ones, *twos), len(ones), len(twos), 2 if group.mirrors else 1)
