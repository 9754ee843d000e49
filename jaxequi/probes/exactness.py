"""Predict, before any training, at which layer a network stops being equivariant, and why.

Edixhoven, Lengyel and van Gemert (2023), "Using and Abusing Equivariance", section 3. A layer
slides windows over n pixels: with kernel k, stride s and padding p there are
o = floor((n + 2 p - k) / s) + 1, the first from pixel -p. A turn or mirror reverses an axis,
x -> n - 1 - x, and the windows land on themselves only if first and last lie symmetrically,

    (o - 1) s = n + 2 p - k,     that is     (n + 2 p - k) mod s = 0.

Otherwise (n + 2 p - k) mod s pixels are left over at one side, and the moved image is sampled that
many pixels off. A transposition reverses no axis and survives. The analysis reads the windows
from the traced program (convolutions, also transposed ones, patches, pooling, slices, and padding
with constants, copies or mirror images), so any model has one; it judges where a network *samples*,
and takes its filters, norms and nonlinearities for equivariant.

There are three verdicts. *Exact*: every operation was judged and keeps the group, if the filters
do. *Breaks*: one does not, and the grid of the result is off the centre. *Not certain*: an
operation was met that is not judged (a flattening, a cumulative sum, ...), or what breaks at one
operation may be made up for by later ones, such as a pixel that is padded at one side and never
read.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.groups.planar import Group
from jaxequi.probes._reader import trace
from jaxequi.probes._windows import IMAGE, Geometry, Windows


@dataclasses.dataclass(frozen=True)
class Break:
    """A layer that does not land symmetrically.

    Attributes:
      layer: its windows.
      reads: rows and columns it is given.
      elements: indices of the elements of the group that it breaks.
      why: the arithmetic, in words.
    """

    layer: Windows
    reads: tuple[int, int]
    elements: tuple[int, ...]
    why: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the analysis says of a network, a group and an image size.

    Attributes:
      group: the group.
      size: rows and columns of the image.
      breaks: layers that break it, in order.
      certain: whether what they break is broken in the result, too.
      smaller, larger: the nearest sizes of square images at which all layers are exact, or None.
      padding: the smallest change of paddings that makes this size exact, as (layer, padding now,
        padding then), () if none is needed, None if none of up to `MOST_PADDING` pixels does.
      unjudged: as in `Geometry`.
      layers: those that slide windows, in order.
    """

    group: Group
    size: tuple[int, int]
    breaks: tuple[Break, ...]
    certain: bool
    smaller: int | None
    larger: int | None
    padding: tuple[tuple[str, int, int], ...] | None
    unjudged: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether every operation was judged, and keeps what of the group is on the grid."""
        return not self.breaks and not self.unjudged

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        lines = []
        if self.exact:
            lines.append(
                f"{self.group.name} at {size}: exact if its filters are, every stride fits its grid"
            )
        elif not self.breaks:
            lines.append(f"{self.group.name} at {size}: not certain, part of it is not judged")
            lines.append("  what is judged fits its grid")
        elif not self.certain:
            lines.append(f"{self.group.name} at {size}: not certain")
            layers = dict.fromkeys(b.layer.layer or "the network" for b in self.breaks)
            lines.append(f"  windows miss their grid at {', '.join(layers)}, but may cancel out:")
            lines.append(f"  {self.breaks[0].why}")
        else:
            first = self.breaks[0]
            others = sorted({b.layer.layer for b in self.breaks[1:]} - {first.layer.layer})
            lines.append(
                f"{self.group.name} at {size}: NOT equivariant from "
                f"{first.layer.layer or 'the network'} on"
            )
            lines.append(f"  {first.why}")
            kept = [
                g
                for g in range(1, self.group.order)
                if all(g not in b.elements for b in self.breaks)
            ]
            lost = self.group.order - 1 - len(kept)
            labels = "; kept: " + ", ".join(self.group.labels[g] for g in kept) if kept else ""
            lines.append(f"  breaks {lost} of {self.group.order - 1} elements{labels}")
            if others:
                lines.append(f"  further layers that miss their grid: {', '.join(others)}")
            near = [str(n) for n in (self.smaller, self.larger) if n]
            lines.append(f"  nearest exact sizes: {' and '.join(near) or 'none found'}")
            if self.padding is None:
                lines.append(
                    f"  no change of paddings by up to {MOST_PADDING} pixels makes it exact"
                )
            else:
                change = ", ".join(f"{layer} {now} -> {then}" for layer, now, then in self.padding)
                lines.append(f"  or change the padding: {change}")
        if not self.group.on_grid:
            lines.append("  (elements off the pixel grid interpolate: they are not judged)")
        if self.unjudged:
            lines.append(f"  not judged: {', '.join(self.unjudged)}")
        return "\n".join(lines)


MOST_PADDING = 3
"""How many pixels of padding, over all layers, the search for a repair adds or takes away."""


def judge_network(network: nn.Module, shape: tuple[int, ...], group: Group) -> Verdict:
    """Predict where a module `(images, train) -> ...` breaks a group; it needs no variables.

    One that says from which layer on its filters are plain, by `plain_from`, is not certain there.
    """

    def variables() -> Any:
        return network.init(jax.random.key(0), jnp.zeros(shape), False)

    def apply(images: jax.Array, values: Any) -> Any:
        return network.apply(values, images, False)

    verdict = judge(apply, shape, group, jax.eval_shape(variables))
    if plain := getattr(network, "plain_from", ""):
        told = f"filters from {plain} on, which are plain"
        verdict = dataclasses.replace(verdict, unjudged=(*verdict.unjudged, told))
    return verdict


def judge(fn: Callable[..., Any], shape: tuple[int, ...], group: Group, *arguments: Any) -> Verdict:
    """Predict where a program breaks a group on images of a size.

    Args:
      fn: (images f32[B, H, W, C], *arguments) -> anything; traced, not run.
      shape: [B, H, W, C].
      group: the group; of elements off the grid (45 degrees) nothing is said.
      arguments: as of `trace`.

    Returns:
      The verdict; `print` shows it.
    """
    geometry = trace(fn, shape, *arguments)
    size = shape[1], shape[2]
    breaks = tuple(_breaks(geometry, size, group))
    unjudged = geometry.unjudged
    if geometry.sizes(size) is None:
        unjudged += ("the sizes of its maps",)

    def exact_at(n: int) -> bool:
        """By arithmetic, then by a new trace: paddings may depend on sizes, a model refuse one."""
        if not _exact(geometry, (n, n), group):
            return False
        try:
            traced = trace(fn, (shape[0], n, n, shape[3]), *arguments)
        except (ValueError, TypeError):  # sizes that do not fit are refused as either
            return False
        return not any(_breaks(traced, (n, n), group))

    step = math.prod(max(w.strides) for w in geometry.windows)
    reach = range(1, min(2 * step, 256) + 1)
    below = (max(size) - d for d in reach if max(size) - d > 0)
    return Verdict(
        group=group,
        size=size,
        breaks=breaks,
        certain=_remains(geometry, size, group, breaks),
        smaller=next(filter(exact_at, below), None) if breaks else None,
        larger=next(filter(exact_at, (max(size) + d for d in reach)), None) if breaks else None,
        padding=_repair(geometry, size, group) if breaks else (),
        unjudged=unjudged,
        layers=tuple(dict.fromkeys(w.layer for w in geometry.windows)),
    )


def _moves(group: Group) -> list[tuple[int, bool, tuple[bool, bool]]]:
    """Elements on the grid: index, whether it exchanges the axes, which of them it reverses."""
    to_array = np.array([[0, -1], [1, 0]])  # (x, y up) -> (row, column)
    moves = []
    for g, matrix in enumerate(group.matrices):
        m = to_array @ matrix @ to_array.T
        if np.allclose(m, np.round(m)) and g:
            reverses = (m < -0.5).any(0)  # by axis of the image that is moved
            moves.append((g, bool(abs(m[0, 1]) > 0.5), (bool(reverses[0]), bool(reverses[1]))))
    return moves


def _breaks(geometry: Geometry, size: tuple[int, int], group: Group) -> Iterator[Break]:
    for w, n in zip(geometry.windows, geometry.sizes(size) or []):
        if any((w.sees(n[axis], axis) < 0).all() for axis in (0, 1)):
            continue  # they see padding alone
        over = [not w.fits(n[axis], axis) for axis in (0, 1)]
        broken = [
            g
            for g, exchanges, reverses in _moves(group)
            if (exchanges and not w.alike()) or any(r and o for r, o in zip(reverses, over))
        ]
        if broken:
            yield Break(w, n, tuple(broken), _why(w, n, over))


def _remains(
    geometry: Geometry, size: tuple[int, int], group: Group, breaks: tuple[Break, ...]
) -> bool:
    """Whether the result is certainly broken too."""
    if not breaks:
        return False
    broken = {g for b in breaks for g in b.elements}
    moves = [(exchanges, reverses) for g, exchanges, reverses in _moves(group) if g in broken]
    exchanged = any(exchanges for exchanges, _ in moves)
    if exchanged and any(
        b.layer.kind == "convolution" and b.layer.kernel[0] != b.layer.kernel[1] for b in breaks
    ):
        return True
    axes = [axis for axis in (0, 1) if any(reverses[axis] for _, reverses in moves)]
    first = next(i for i, w in enumerate(geometry.windows) if w is breaks[0].layer)
    kinds = "convolution", "patches"
    mixed = any(w.kind in kinds and max(w.kernel) > 1 for w in geometry.windows[first:])
    return geometry.stays_broken(size, axes, exchanged, mixed)


def _why(w: Windows, n: tuple[int, int], over: list[bool]) -> str:
    if not any(over):
        return (
            f"{w.kind} that treats rows and columns differently ({n[0]} x {n[1]} pixels), so a "
            "quarter turn changes the grid"
        )
    axis = 0 if over[0] else 1
    if w.index is not None:
        return f"{w.kind} that puts {n[axis]} pixels where their mirror image is put elsewhere"
    k, s, before, after, spread = (
        v[axis] for v in (w.kernel, w.strides, w.before, w.after, w.spread)
    )
    off = w.left_over(n[axis], axis)
    pixels = f"{w.kind} with kernel {k}, stride {s}"
    if spread > 1:
        return (
            f"{pixels} and padding {before} before, {after} behind on {n[axis]} pixels that are "
            f"spread by {spread}: the first and the last window do not mirror each other, they are "
            f"{abs(off)} places off"
        )
    if before != after:
        return (
            f"{pixels} and padding {before} before, {after} behind on {n[axis]} pixels: the first "
            f"and the last window do not mirror each other, they are {abs(off)} pixels off"
        )
    total = f"{n[axis]} + 2*{before} - {k}"
    return (
        f"{pixels}, padding {before} on {n[axis]} pixels: ({total}) mod {s} = {off % s}, so "
        f"the windows end {off} short of the far side and a moved image is sampled {off} off"
    )


def _exact(
    geometry: Geometry, size: tuple[int, int], group: Group, more: dict[int, int] | None = None
) -> bool:
    """Whether all windows of a square image fit."""
    reads, moves = geometry.sizes(size, more), _moves(group)
    axes = {a for _, _, reverses in moves for a in (0, 1) if reverses[a]}
    if any(e for _, e, _ in moves) and not all(w.alike() for w in geometry.windows):
        return False
    return reads is not None and all(
        w.fits(n[a], a, (more or {}).get(i, 0))
        for i, (w, n) in enumerate(zip(geometry.windows, reads))
        for a in axes
    )


def _repair(
    geometry: Geometry, size: tuple[int, int], group: Group
) -> tuple[tuple[str, int, int], ...] | None:
    """Find the smallest change of paddings that makes a size exact, fewest pixels first."""
    if size[0] != size[1] and any(exchanges for _, exchanges, _ in _moves(group)):
        return None
    slides = [
        i
        for i, w in enumerate(geometry.windows)
        if w.kind in ("convolution", "pooling") and (max(w.strides) > 1 or w.source == IMAGE)
    ]
    for pixels in range(1, MOST_PADDING + 1):
        for chosen in itertools.combinations_with_replacement(slides, pixels):
            for sign in itertools.product((1, -1), repeat=len(set(chosen))):
                counts = {i: chosen.count(i) for i in set(chosen)}
                more = {i: s * c for (i, c), s in zip(sorted(counts.items()), sign)}
                windows = geometry.windows
                if any(windows[i].before[a] + m < 0 for i, m in more.items() for a in (0, 1)):
                    continue
                if _exact(geometry, size, group, more):
                    return tuple(
                        (windows[i].layer, windows[i].before[0], windows[i].before[0] + m)
                        for i, m in more.items()
                    )
    return None
