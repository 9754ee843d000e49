"""Predict, before any training, at which layer a network stops being equivariant, and why.

Edixhoven, Lengyel and van Gemert (2023), "Using and Abusing Equivariance", section 3. A layer
slides windows over n pixels: with kernel k, stride s and padding p there are
o = floor((n + 2 p - k) / s) + 1, the first from pixel -p. A turn or mirror reverses an axis,
x -> n - 1 - x, and the windows land on themselves only if first and last lie symmetrically,

    (o - 1) s = n + 2 p - k,     that is     (n + 2 p - k) mod s = 0.

Otherwise (n + 2 p - k) mod s pixels are left over at one side, and the moved image is sampled that
many pixels off. A transposition reverses no axis and survives. The analysis reads the windows
from the traced program (convolutions, pooling, padding, strided slices), so any model has one; it
judges where a network *samples*, and takes its filters, norms and nonlinearities for equivariant.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxequi.groups.planar import Group

IMAGE = -1  # the source of what reads the input image


@dataclasses.dataclass(frozen=True)
class Windows:
    """What one operation slides over rows and columns: pairs, one number an axis.

    Attributes:
      layer: path of the module, `layer2_0/conv1`.
      kind: `convolution`, `pooling`, `padding` or `slice`.
      kernel: pixels that a window reaches over, dilation included.
      strides: steps between windows.
      before, after: padding at both ends; negative where pixels are cut off.
      source: position of the operation whose result it reads, or `IMAGE`.
    """

    layer: str
    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    source: int

    def count(self, n: int, axis: int, more: int = 0) -> int:
        """Number of windows over n pixels, `more` pixels padded at both ends."""
        room = n + self.before[axis] + self.after[axis] + 2 * more - self.kernel[axis]
        return room // self.strides[axis] + 1

    def left_over(self, n: int, axis: int, more: int = 0) -> int:
        """Pixels by which the last window misses the mirror image of the first."""
        span = (self.count(n, axis, more) - 1) * self.strides[axis]
        return n + 2 * (self.before[axis] + more) - self.kernel[axis] - span


@dataclasses.dataclass(frozen=True)
class Geometry:
    """All windows of a network, in order.

    Attributes:
      windows: the operations.
      joins: pairs of operations (or `IMAGE`) whose results are combined, so must have one size.
      unjudged: operations that mix pixels in another way, such as a flattening: no verdict on them.
    """

    windows: tuple[Windows, ...]
    joins: frozenset[tuple[int, int]]
    unjudged: tuple[str, ...]

    def sizes(
        self, size: tuple[int, int], more: dict[int, int] | None = None
    ) -> list[tuple[int, int]]:
        """What each operation reads: rows and columns of its input, then of the last result.

        Args:
          size: rows and columns of the image.
          more: pixels of padding to add at both ends, by position of the operation.
        """
        reads, results = [], [size]  # results[i + 1] belongs to windows[i]
        for i, w in enumerate(self.windows):
            n, extra = results[w.source + 1], (more or {}).get(i, 0)
            reads.append(n)
            results.append((w.count(n[0], 0, extra), w.count(n[1], 1, extra)))
        fits = all(min(n) > 0 for n in results)
        joined = all(results[a + 1] == results[b + 1] for a, b in self.joins)
        return reads if fits and joined else []


def trace(fn: Callable[..., Any], shape: tuple[int, ...], *arguments: Any) -> Geometry:
    """Read the windows of a program.

    Args:
      fn: (images f32[B, H, W, C], *arguments) -> anything; traced, not run.
      shape: [B, H, W, C].
      arguments: trees of arrays or of `jax.ShapeDtypeStruct`, such as a network's variables.
    """
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(shape, jnp.float32), *arguments)
    reader = _Reader()
    others = len(closed.jaxpr.invars) - 1
    reader.read(closed.jaxpr, [_Pixels(IMAGE, (1, 2)), *[None] * others], "")
    return Geometry(tuple(reader.windows), frozenset(reader.joins), tuple(reader.unjudged))


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
      breaks: layers that break it, in order; empty if the network is exact.
      smaller, larger: the nearest sizes of square images at which all layers are exact, or None.
      padding: the smallest change of paddings that makes this size exact, as (layer, padding now,
        padding then), () if none is needed, None if none of up to `MOST_PADDING` pixels does.
      unjudged: as in `Geometry`.
      layers: those that slide windows, in order.
    """

    group: Group
    size: tuple[int, int]
    breaks: tuple[Break, ...]
    smaller: int | None
    larger: int | None
    padding: tuple[tuple[str, int, int], ...] | None
    unjudged: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether every layer keeps every element of the group that maps the grid onto itself."""
        return not self.breaks

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        lines = []
        if self.exact:
            lines.append(f"{self.group.name} at {size}: exact, every stride fits its grid")
        else:
            first = self.breaks[0]
            others = sorted({b.layer.layer for b in self.breaks[1:]} - {first.layer.layer})
            lines.append(
                f"{self.group.name} at {size}: NOT equivariant from {first.layer.layer} on"
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
    """Predict where a module `(images, train) -> ...` breaks a group; it needs no variables."""

    def variables() -> Any:
        return network.init(jax.random.key(0), jnp.zeros(shape), False)

    def apply(images: jax.Array, values: Any) -> Any:
        return network.apply(values, images, False)

    return judge(apply, shape, group, jax.eval_shape(variables))


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

    def exact_at(n: int) -> bool:
        """By arithmetic, then by a new trace: `SAME` depends on sizes, a model may refuse one."""
        if not _exact(geometry, (n, n), group):
            return False
        try:
            traced = trace(fn, (shape[0], n, n, shape[3]), *arguments)
        except ValueError:
            return False
        return not any(_breaks(traced, (n, n), group))

    step = math.prod(max(w.strides) for w in geometry.windows)
    reach = range(1, min(2 * step, 256) + 1)
    below = (max(size) - d for d in reach if max(size) - d > 0)
    return Verdict(
        group=group,
        size=size,
        breaks=breaks,
        smaller=next(filter(exact_at, below), None) if breaks else None,
        larger=next(filter(exact_at, (max(size) + d for d in reach)), None) if breaks else None,
        padding=_repair(geometry, size, group) if breaks else (),
        unjudged=geometry.unjudged,
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
    moves = _moves(group)
    for w, n in zip(geometry.windows, geometry.sizes(size)):
        over = [w.left_over(n[axis], axis) for axis in (0, 1)]
        same = n[0] == n[1] and all(
            pair[0] == pair[1] for pair in (w.kernel, w.strides, w.before, w.after)
        )
        broken = [
            g
            for g, exchanges, reverses in moves
            if (exchanges and not same) or any(r and o for r, o in zip(reverses, over))
        ]
        if broken:
            yield Break(w, n, tuple(broken), _why(w, n, over))


def _why(w: Windows, n: tuple[int, int], over: list[int]) -> str:
    if not any(over):
        return (
            f"rows and columns differ ({n[0]} x {n[1]} pixels), so a quarter turn changes the grid"
        )
    axis = 0 if over[0] else 1
    k, s, before, after = (v[axis] for v in (w.kernel, w.strides, w.before, w.after))
    pixels = f"{w.kind} with kernel {k}, stride {s}"
    if before != after:
        return (
            f"{pixels} and padding {before} before, {after} behind on {n[axis]} pixels: the first "
            f"and the last window do not mirror each other, they are {abs(over[axis])} pixels off"
        )
    total = f"{n[axis]} + 2*{before} - {k}"
    return (
        f"{pixels}, padding {before} on {n[axis]} pixels: ({total}) mod {s} = {over[axis] % s}, so "
        f"the windows end {over[axis]} short of the far side and a moved image is sampled "
        f"{over[axis]} off"
    )


def _exact(
    geometry: Geometry, size: tuple[int, int], group: Group, more: dict[int, int] | None = None
) -> bool:
    """Whether all windows fit: for a square image, so only reversed axes matter."""
    reads = geometry.sizes(size, more)
    axes = {a for _, _, reverses in _moves(group) for a in (0, 1) if reverses[a]}
    return bool(reads) and not any(
        w.left_over(n[a], a, (more or {}).get(i, 0))
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


class _Pixels(NamedTuple):
    """Where a value has its pixels: which operation made them, and the axes of rows and columns."""

    source: int
    axes: tuple[int, int]


class _Reader:
    """Walks a jaxpr and follows the pixels from operation to operation."""

    def __init__(self) -> None:
        self.windows: list[Windows] = []
        self.joins: set[tuple[int, int]] = set()
        self.unjudged: list[str] = []

    def read(self, jaxpr: Any, given: list[_Pixels | None], scope: str) -> list[_Pixels | None]:
        """Read one jaxpr: from the pixels of its inputs to those of its results (None: none)."""
        known: dict[Any, _Pixels | None] = dict(zip(jaxpr.invars, given))

        def pixels(v: Any) -> _Pixels | None:
            return None if isinstance(v, core.Literal) else known.get(v)

        for eqn in jaxpr.eqns:
            operands = [pixels(v) for v in eqn.invars]
            if any(operands):
                known.update(zip(eqn.outvars, self._apply(eqn, operands, scope)))
        return [pixels(v) for v in jaxpr.outvars]

    def _apply(self, eqn: Any, given: list[_Pixels | None], scope: str) -> list[_Pixels | None]:
        scope = f"{scope}/{eqn.source_info.name_stack}"
        called = _called(eqn)
        if called is not None:
            jaxpr, first = called
            return self.read(jaxpr, given[first:], scope)
        if given[0] is not None and given[0].axes == (1, 2):
            slid = _slid(eqn, _layer(scope), given[0].source)
            if slid is not None:
                self.windows.append(slid)
                return [_Pixels(len(self.windows) - 1, (1, 2))]
        return self._follow(eqn, given, scope)

    def _follow(self, eqn: Any, given: list[_Pixels | None], scope: str) -> list[_Pixels | None]:
        """Results of an operation that slides no windows: pixels kept, moved, or all summed up."""
        position, pixels = next((i, p) for i, p in enumerate(given) if p is not None)
        before = eqn.invars[position].aval.shape
        sources = sorted({p.source for p in given if p is not None})
        self.joins.update(itertools.pairwise(sources))
        made: list[_Pixels | None] = []
        for v in eqn.outvars:
            axes = _moved(eqn, pixels.axes, before, v.aval.shape)
            made.append(_Pixels(sources[0], axes) if axes else None)
            pooled = set(pixels.axes) <= set(eqn.params.get("axes", ()))
            if not axes and not pooled and any(before[a] > 1 for a in pixels.axes):
                self.unjudged.append(f"{_layer(scope) or 'the network'} ({eqn.primitive.name})")
        return made


def _moved(
    eqn: Any, axes: tuple[int, int], before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[int, int] | None:
    """Where an operation leaves the pixel axes; None if it does not keep them as they were."""
    name, p = eqn.primitive.name, eqn.params
    to: dict[int, int] = {}
    if name == "transpose":
        to = {old: new for new, old in enumerate(p["permutation"])}
    elif name == "broadcast_in_dim":
        to = dict(enumerate(p["broadcast_dimensions"]))
    elif name == "reshape":  # an axis stays itself if as much lies before it as did
        lies = {(math.prod(after[:i]), n): i for i, n in enumerate(after) if n > 1}
        to = {i: lies.get((math.prod(before[:i]), n), -1) for i, n in enumerate(before)}
    elif name == "squeeze" or "axes" in p:
        gone = p["dimensions"] if name == "squeeze" else p["axes"]
        left = [i for i in range(len(before)) if i not in gone]
        to = {old: new for new, old in enumerate(left)}
    elif len(before) == len(after):
        to = {a: a for a in axes}
    h, w = to.get(axes[0], -1), to.get(axes[1], -1)
    kept = h >= 0 and w >= 0 and (after[h], after[w]) == (before[axes[0]], before[axes[1]])
    return (h, w) if kept else None


def _layer(stack: str) -> str:
    """`GResNet/GResNet.feature_map/stem` -> `stem`: modules below the root, by their own names."""
    parts = [part for part in stack.split("/") if part]
    return "/".join(p for p in parts if "." not in p and not p[0].isupper() and "(" not in p)


def _called(eqn: Any) -> tuple[Any, int] | None:
    """The jaxpr that an operation calls, and the position of its first argument."""
    if eqn.primitive.name == "cond":  # a choice by platform: the branch that still shows windows
        branches = [branch.jaxpr for branch in eqn.params["branches"]]
        return max(branches, key=_shows_windows), 1
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            jaxpr = eqn.params[key]
            return getattr(jaxpr, "jaxpr", jaxpr), 0
    return None


def _shows_windows(jaxpr: Any) -> bool:
    shown = ("conv_general_dilated", "reduce_window_max", "reduce_window_sum", "reduce_window")
    return any(
        eqn.primitive.name in shown or ((deep := _called(eqn)) and _shows_windows(deep[0]))
        for eqn in jaxpr.eqns
    )


def _slid(eqn: Any, layer: str, source: int) -> Windows | None:
    """The windows of an operation on [B, H, W, ...], if it slides any over rows and columns."""
    p, name, operand = eqn.params, eqn.primitive.name, eqn.invars[0].aval.shape
    if len(operand) < 4:
        return None
    if name == "conv_general_dilated":
        dims = p["dimension_numbers"]
        if tuple(dims.lhs_spec[2:]) != (1, 2):
            return None
        taps = [eqn.invars[1].aval.shape[a] for a in dims.rhs_spec[2:]]
        reach = [d * (k - 1) + 1 for d, k in zip(p["rhs_dilation"], taps)]
        return _windows(layer, "convolution", reach, p["window_strides"], p["padding"], source)
    if name.startswith("reduce_window"):
        size, dilation = p["window_dimensions"][1:3], p["window_dilation"][1:3]
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, size)]
        return _windows(
            layer, "pooling", reach, p["window_strides"][1:3], p["padding"][1:3], source
        )
    if name == "slice":
        strides = (p["strides"] or (1,) * len(operand))[1:3]
        cut = [(-a, b - n) for a, b, n in zip(p["start_indices"], p["limit_indices"], operand)]
        if any(s > 1 for s in strides) or any(any(c) for c in cut[1:3]):
            return _windows(layer, "slice", (1, 1), strides, cut[1:3], source)
    if name == "pad":
        added = p["padding_config"][1:3]
        if any(a or b for a, b, _ in added):
            return _windows(layer, "padding", (1, 1), (1, 1), [a[:2] for a in added], source)
    return None


def _windows(layer: str, kind: str, reach: Any, strides: Any, ends: Any, source: int) -> Windows:
    (top, bottom), (left, right) = ends
    kernel, steps = (int(reach[0]), int(reach[1])), (int(strides[0]), int(strides[1]))
    return Windows(
        layer, kind, kernel, steps, (int(top), int(left)), (int(bottom), int(right)), source
    )
