"""Finite groups of turns and mirrors of the plane: C_N and D_N, as tables.

An element is *mirror first, then turn*: g = r^k f^j, where f mirrors left and right (x -> -x) and r
turns by 2 pi / N counter-clockwise, in the frame x right, y up. Its index is N j + k. Everything
in the project uses this order; `turn_then_flip` names the elements of a reference that orders them
otherwise. A regular field f: pixels -> R^G transforms as (g f)(x)[h] = f(g^-1 x)[g^-1 h].
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import numpy as np

from jaxequi import names
from jaxequi.errors import Refusal

CRYSTAL = {"p1": "c1", "p2": "c2", "p4": "c4", "pm": "d1", "p2m": "d2", "p4m": "d4"}
"""The planar symmorphic groups with these points, by their names in crystallography."""


@dataclasses.dataclass(frozen=True)
class Group:
    """C_N (turns by 2 pi / N) or D_N (turns, and each after a left-right mirror).

    Attributes:
      rotations: N, at least 1.
      mirrors: whether the elements with j = 1 belong to it.
    """

    rotations: int
    mirrors: bool = False

    def __post_init__(self):
        if self.rotations < 1:
            raise Refusal(f"a group has at least one rotation, not {self.rotations}")

    @property
    def name(self) -> str:
        """`c4`, `d4`, ...: what `named` reads."""
        return f"{'d' if self.mirrors else 'c'}{self.rotations}"

    @property
    def order(self) -> int:
        """Number of elements, G."""
        return self.rotations * (2 if self.mirrors else 1)

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """What each element does, in words: `turn 90`, `mirror, turn 180`."""
        step = 360 / self.rotations
        turns = [f"turn {k * step:g}" for k in range(self.rotations)]
        return (*turns, *(f"mirror, {t}" for t in turns))[: self.order]

    @functools.cached_property
    def matrices(self) -> np.ndarray:
        """f64[G, 2, 2] acting on (x, y), x to the right and y up."""
        angle = 2 * np.pi * np.arange(self.rotations) / self.rotations
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn = np.moveaxis(turn, -1, 0)
        both = np.concatenate([turn, turn @ np.diag([-1.0, 1.0])])
        return np.round(both[: self.order], 15) + 0.0

    @functools.cached_property
    def product(self) -> np.ndarray:
        """i32[G, G]: `product[g, h]` is the index of g h (h first)."""
        j, k = np.divmod(np.arange(self.order), self.rotations)
        # f r = r^-1 f, so r^a f^b r^c f^d = r^(a + (-1)^b c) f^(b + d)
        turn = (k[:, None] + (1 - 2 * j[:, None]) * k) % self.rotations
        return (self.rotations * (j[:, None] ^ j) + turn).astype(np.int32)

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """i32[G]: index of g^-1."""
        return np.argmin(self.product, axis=1).astype(np.int32)  # the identity has index 0

    @functools.cached_property
    def shift(self) -> np.ndarray:
        """i32[G, G]: `shift[g, h]` = g^-1 h, the slice of a regular field that g moves to h."""
        return self.product[self.inverse]

    @functools.cached_property
    def exact(self) -> tuple[bool, ...]:
        """Whether each element maps the pixel grid onto itself: quarter turns and mirrors do."""
        return tuple(4 * g % self.rotations == 0 for g in range(self.order))

    @property
    def on_grid(self) -> bool:
        """Whether every element maps the pixel grid onto itself."""
        return all(self.exact)


def cyclic(n: int) -> Group:
    """C_N: turns by 360 / n degrees."""
    return Group(n)


def dihedral(n: int) -> Group:
    """D_N: turns by 360 / n degrees, with and without a left-right mirror first."""
    return Group(n, mirrors=True)


def named(name: str) -> Group:
    """Find a group by its name: `c4`, `d4`, `c8`, ..., or `p4`, `p4m`, `pm`, ...

    >>> named("p4m") == dihedral(4)
    True
    >>> named("d4").labels[:2], named("d4").labels[5]
    (('turn 0', 'turn 90'), 'mirror, turn 90')
    >>> named("c4").product[1, 3], named("c4").inverse[1]  # indices of elements
    (np.int32(0), np.int32(3))

    Raises:
      ValueError: no such name; the message lists the forms that exist.
    """
    word = CRYSTAL.get(name.lower(), name.lower())
    parts = re.fullmatch(r"([cd])([1-9]\d*)", word)
    if not parts:
        raise names.unknown("group", name, [*CRYSTAL, "c<N>", "d<N>"])
    return Group(int(parts[2]), mirrors=parts[1] == "d")


def check_on_grid(group: Group) -> None:
    """Refuse a group whose elements do not map the pixel grid onto itself.

    Raises:
      ValueError: N is not 1, 2 or 4.
    """
    if not group.on_grid:
        raise Refusal(
            f"{group.name} turns by {360 / group.rotations:g} degrees, which does not map the "
            "pixel grid onto itself. Take N = 1, 2 or 4, or the steerable layers."
        )


def check_kernel(group: Group, size: int) -> None:
    """Refuse a square kernel of so many taps a side that the group does not map onto itself."""
    check_on_grid(group)
    if group.mirrors and size % 2 == 0:
        raise Refusal(
            f"a kernel of size {size} has no central row that a mirror of {group.name} could keep. "
            "Take an odd size, or a group without mirrors."
        )


def act(group: Group, element: int, image: Any, axes: tuple[int, int] = (-3, -2)) -> Any:
    """Move an image by one element: mirror left and right, then turn counter-clockwise.

    >>> act(cyclic(4), 1, np.array([[1, 2], [3, 4]]), axes=(0, 1))
    array([[2, 4],
           [1, 3]])
    >>> act(dihedral(4), 4, np.array([[1, 2], [3, 4]]), axes=(0, 1))
    array([[2, 1],
           [4, 3]])

    Args:
      group: the group.
      element: index of an element that maps the grid onto itself; `transform` moves by the others.
      image: numpy or jax array; `axes` are its rows and columns (the default is NHWC).
      axes: the axes (H, W).

    Returns:
      The moved image; a quarter turn exchanges unequal sides.

    Raises:
      ValueError: the element turns by another angle than a multiple of 90 degrees.
    """
    if not group.exact[element]:
        raise Refusal(
            f"{group.labels[element]} degrees of {group.name} does not map the pixel grid onto "
            "itself. Take `transform`, which interpolates."
        )
    h, w = (a % image.ndim for a in axes)
    mirror, turn = divmod(element, group.rotations)
    quarters = turn * 4 // group.rotations
    # a quarter turn counter-clockwise reverses the columns, then swaps rows and columns
    reverse_w, reverse_h = bool(mirror) ^ (quarters in (1, 2)), quarters in (2, 3)
    backward = [a for a, reverse in ((h, reverse_h), (w, reverse_w)) if reverse]
    image = image[tuple(slice(None, None, -1 if a in backward else 1) for a in range(image.ndim))]
    return image.swapaxes(h, w) if quarters % 2 else image


def act_on_field(group: Group, element: int, field: Any, axes: tuple[int, int] = (-3, -2)) -> Any:
    """Move a regular field f[..., H, W, C G]: its pixels by `transform`, its slices by g^-1 h.

    Raises:
      ValueError: the channels are no multiple of the order of the group, or as `transform`.
    """
    field = transform(group, element, field, axes)
    parts = field.reshape(*field.shape[:-1], fields(group, field.shape[-1]), group.order)
    return parts[..., group.shift[element]].reshape(field.shape)


def transform(group: Group, element: int, image: Any, axes: tuple[int, int] = (-3, -2)) -> Any:
    """Move an image by any element: exactly where the grid allows it, else by interpolation.

    Other angles than quarter turns read the four by four neighbours of each point with the weights
    of cubic convolution (Keys, 1981; a = -1/2). What lies outside the image is 0.

    Args and result are those of `act`.

    Raises:
      ValueError: unequal sides under an element that is no quarter turn.
    """
    if group.exact[element]:
        return act(group, element, image, axes)
    h, w = (a % image.ndim for a in axes)
    if image.shape[h] != image.shape[w]:
        raise Refusal(
            f"an image of {image.shape[h]} x {image.shape[w]} pixels: {group.labels[element]} "
            "degrees needs a square one. Crop it."
        )
    pixels, shares = neighbours(group, element, image.shape[h])
    index: list[Any] = [slice(None)] * image.ndim
    shape = [1] * image.ndim
    shape[h] = shape[w] = image.shape[h]
    moved = 0
    for (row, column), share in zip(pixels, shares):
        # fancy indices on two neighbouring axes leave the axes where they were
        index[h], index[w] = row, column
        moved = moved + image[tuple(index)] * share.reshape(shape).astype(image.dtype)
    return moved


@functools.lru_cache(maxsize=64)
def neighbours(group: Group, element: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """What each pixel of a moved image of n x n reads, of the image before; see `transform`.

    Returns:
      Rows and columns i32[16, 2, n, n], and their shares f32[16, n, n].
    """
    half = (n - 1) / 2
    row, column = np.mgrid[:n, :n].astype(np.float64)
    x, y = np.einsum("ij,jhw->ihw", group.matrices[element].T, [column - half, half - row])
    row, column = half - y, half + x

    def share(d: np.ndarray) -> np.ndarray:
        d = np.abs(d)
        near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    pixels, shares = [], []
    for i, j in np.ndindex(4, 4):
        r, c = np.floor(row) + i - 1, np.floor(column) + j - 1
        inside = (r >= 0) & (r < n) & (c >= 0) & (c < n)
        pixels.append(np.clip([r, c], 0, n - 1).astype(np.int32))
        shares.append(share(row - r) * share(column - c) * inside)
    return np.stack(pixels), np.stack(shares).astype(np.float32)


def subgroup(group: Group, part: Group, axis: int = 0) -> np.ndarray:
    """Index in `group` of each element of a subgroup: C_M, or D_M with the mirror r^axis f.

    Args:
      group: C_N or D_N.
      part: C_M or D_M with M a divisor of N.
      axis: which mirror of D_N is the f of D_M, 0 <= axis < N.

    Returns:
      i32[H].

    Raises:
      ValueError: M does not divide N, mirrors in a group without, or no such mirror.
    """
    if group.rotations % part.rotations or part.mirrors > group.mirrors:
        raise Refusal(
            f"{part.name} is no subgroup of {group.name}. Its turns must divide {group.rotations}"
            + ("." if group.mirrors else ", and it has no mirrors.")
        )
    if not 0 <= axis < (group.rotations if part.mirrors else 1):
        raise Refusal(
            f"axis={axis}: {part.name} in {group.name} takes a mirror r^axis f with axis from 0 "
            f"to {group.rotations - 1}, and no axis without mirrors"
        )
    j, k = np.divmod(np.arange(part.order), part.rotations)
    turn = (k * (group.rotations // part.rotations) + j * axis) % group.rotations
    return (group.rotations * j + turn).astype(np.int32)


def part_on_grid(group: Group) -> Group:
    """The largest subgroup that maps the pixel grid onto itself.

    >>> part_on_grid(cyclic(8)).name, part_on_grid(dihedral(6)).name, part_on_grid(cyclic(3)).name
    ('c4', 'd2', 'c1')
    """
    return Group(math.gcd(group.rotations, 4), group.mirrors)


def cosets(group: Group, part: Group) -> np.ndarray:
    """The right cosets H c of a subgroup: a regular field of G is G / H ones of H.

    >>> cosets(cyclic(8), cyclic(4))
    array([[0, 2, 4, 6],
           [1, 3, 5, 7]], dtype=int32)

    Returns:
      i32[G / H, H], of each coset the elements h c in the order of H; first that of the identity.

    Raises:
      ValueError: as `subgroup`.
    """
    found = group.product[subgroup(group, part)].T  # the coset of each element of G
    return found[np.unique(found.min(1), return_index=True)[1]]


def fields(group: Group, channels: int) -> int:
    """Number of regular fields in so many channels (channel = field * order + element).

    Raises:
      ValueError: the channels are no multiple of the order of the group.
    """
    if channels % group.order:
        raise Refusal(
            f"{channels} channels are no whole number of regular fields of {group.name}, "
            f"which has {group.order} elements. Give a multiple of {group.order}."
        )
    return channels // group.order


def turn_then_flip(group: Group) -> np.ndarray:
    """Index here of each element of the order `N m + r`: turn r times, then flip up-down if m = 1.

    That is the order of GrouPy (Cohen and Welling 2016) and of sepgroupy's P4M layers. Arrays in
    that order become ours by `theirs[..., np.argsort(order)]`, ours theirs by `ours[..., order]`.

    Returns:
      i32[G].

    Raises:
      ValueError: the group lacks the up-down flip (D_N with odd N).
    """
    turns = group.matrices[: group.rotations]
    theirs = np.concatenate([turns, np.diag([1.0, -1.0]) @ turns])[: group.order]
    same = np.isclose(theirs[:, None], group.matrices[None]).all((-1, -2))
    if not same.any(1).all():
        raise Refusal(f"{group.name} has no up-down flip, so it has no order by turn then flip")
    return same.argmax(1).astype(np.int32)
