"""Where the operations of a network sample their input: windows over rows and columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

IMAGE = -1  # the source of what reads the input image
FEW = 4  # pixels of a map below which a grid off the centre proves nothing


@dataclasses.dataclass(frozen=True)
class Windows:
    """What one operation slides over rows and columns: pairs, one number an axis.

    Attributes:
      layer: path of the module, `layer2_0/conv1`.
      kind: `convolution`, `patches`, `pooling`, `padding`, `slice` or `rearrangement`.
      kernel: pixels that a window reaches over, dilation included.
      strides: steps between windows.
      before, after: padding at both ends; negative where pixels are cut off.
      source: position of the operation whose result it reads, or `IMAGE`.
      dilation: pixels from one tap of the kernel to the next.
      spread: places from one pixel of the input to the next, zeros between (transposed
        convolution); kernel, strides and padding count places.
      index: of a rearrangement, which pixel stands at each place of the result; negative numbers
        are constants. It holds for the size that was traced.
    """

    layer: str
    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    source: int
    dilation: tuple[int, int] = (1, 1)
    spread: tuple[int, int] = (1, 1)
    index: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def _places(self, n: int, axis: int) -> int:
        return (n - 1) * self.spread[axis] + 1

    def count(self, n: int, axis: int, more: int = 0) -> int:
        """Number of windows over n pixels, `more` pixels padded at both ends."""
        room = self.before[axis] + self.after[axis] + 2 * more - self.kernel[axis]
        return (self._places(n, axis) + room) // self.strides[axis] + 1

    def left_over(self, n: int, axis: int, more: int = 0) -> int:
        """Places by which the last window misses the mirror image of the first."""
        span = (self.count(n, axis, more) - 1) * self.strides[axis]
        return self._places(n, axis) + 2 * (self.before[axis] + more) - self.kernel[axis] - span

    def sees(self, n: int, axis: int, more: int = 0) -> np.ndarray:
        """Which pixel each tap of each window sees: i64[windows, taps], negative if none."""
        if self.index is not None:
            return np.asarray(self.index[axis])[:, None]
        taps = np.arange(0, self.kernel[axis], self.dilation[axis])
        first = np.arange(self.count(n, axis, more)) * self.strides[axis]
        place = first[:, None] - self.before[axis] - more + taps
        pixel, beside = np.divmod(place, self.spread[axis])
        return np.where((pixel >= 0) & (pixel < n) & (beside == 0), pixel, -1)

    def fits(self, n: int, axis: int, more: int = 0) -> bool:
        """Whether the windows land on themselves when the axis is reversed.

        A convolution's taps must then see the same pixels in reverse, a pooling only the same
        ones. Mostly `left_over` decides; but windows that miss each other see the same if they see
        the whole axis, or padding alone.
        """
        if self.index is None and not self.left_over(n, axis, more):
            return True
        sees = self.sees(n, axis, more)
        n = n if self.index is None else self._traced(axis)
        mirrored = np.where(sees >= 0, n - 1 - sees, sees)[::-1, ::-1]
        if self.kind == "pooling":
            sees, mirrored = np.sort(sees, axis=1), np.sort(mirrored, axis=1)
        return np.array_equal(sees, mirrored)

    def _traced(self, axis: int) -> int:
        """Pixels that a rearrangement was traced with."""
        assert self.index is not None
        return len(self.index[axis]) - self.before[axis] - self.after[axis]

    def alike(self) -> bool:
        """Whether rows and columns are treated alike."""
        pairs = (self.kernel, self.strides, self.before, self.after, self.dilation, self.spread)
        return all(a == b for a, b in (*pairs, self.index or (0, 0)))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """All windows of a network, in order.

    Attributes:
      windows: the operations.
      joins: pairs of operations (or `IMAGE`) whose results are combined, so must have one size.
      ends: operations (or `IMAGE`) whose result leaves the analysis, and whether it does so as the
        sum, the largest or another mean over all pixels, in which their order is lost.
      unjudged: operations that mix pixels in another way, such as a flattening: no verdict on them.
    """

    windows: tuple[Windows, ...]
    joins: frozenset[tuple[int, int]]
    ends: frozenset[tuple[int, bool]]
    unjudged: tuple[str, ...]

    def sizes(
        self, size: tuple[int, int], more: Mapping[int, int] | None = None
    ) -> list[tuple[int, int]] | None:
        """What each operation reads: rows and columns of its input; None if that does not work out.

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
        return reads if fits and joined else None

    def stays_broken(
        self, size: tuple[int, int], axes: list[int], exchanged: bool, mixed: bool
    ) -> bool:
        """Whether what breaks at some operation is broken at an end, as far as that is certain.

        It is if a result sees other pixels of the image than its mirror image does, or lies on a
        grid that is off the centre. The latter proves nothing on maps of few pixels, where all
        windows may see everything, where pixels were copied or holes are left between them, nor of
        a sum over pixels that each stayed by themselves.

        Args:
          size: rows and columns of the image.
          axes: those which a move reverses.
          exchanged: whether a move exchanges rows and columns.
          mixed: whether a kernel of several taps reads what is broken.
        """
        grids = [self.grids(size, axis) for axis in (0, 1)]
        small = min(g.n for line in grids for g in line) < FEW
        copied = any(w.index is not None or w.kernel < w.spread for w in self.windows)
        for end, pooled in self.ends:
            both = rows, columns = [line[end + 1] for line in grids]
            if not (rows.seen.any() and columns.seen.any()):
                continue  # a constant
            if any(not both[axis].sees_evenly(pooled) for axis in axes):
                return True
            if small or copied or (pooled and not mixed):
                continue
            centres = [g.centre(pooled) for g in both]
            if any(centres[axis] for axis in axes):
                return True
            unlike = rows.step != columns.step or centres[0] != centres[1]
            if exchanged and (unlike or (size[0] == size[1] and rows.n != columns.n)):
                return True
        return False

    def grids(self, size: tuple[int, int], axis: int) -> list[Grid]:
        """The grid of the image and of every result, along one axis."""
        grids = [Grid(1.0, 0.0, np.eye(size[axis], dtype=bool))]
        for i, w in enumerate(self.windows):
            grids.append(grids[w.source + 1].windowed(w, axis))
            for a, b in self.joins:
                if max(a, b) == i:
                    both = grids[a + 1].joined(grids[b + 1])
                    grids[a + 1] = grids[b + 1] = both
        return grids


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where the pixels of a map lie along one axis, in pixels of the image.

    Attributes:
      step: from one to the next.
      offset: of their centre from that of the image; None if nothing can be said.
      seen: which pixels of the image each depends on: bool[n, N].
    """

    step: float
    offset: float | None
    seen: np.ndarray

    @property
    def n(self) -> int:
        """Number of pixels."""
        return len(self.seen)

    def centre(self, pooled: bool) -> float | None:
        """Offset of the centre, of those that depend on the image if all are `pooled`."""
        if self.offset is None or not pooled:
            return self.offset
        real = np.flatnonzero(self.seen.any(1))
        return self.offset + self.step * (real[0] + real[-1] + 1 - self.n) / 2

    def sees_evenly(self, pooled: bool) -> bool:
        """Whether each pixel depends on those of which its mirror image sees the mirror image."""
        seen = np.atleast_2d(self.seen.any(0)) if pooled else self.seen
        return np.array_equal(seen, seen[::-1, ::-1])

    def windowed(self, w: Windows, axis: int) -> Grid:
        """The grid of what windows make of it."""
        sees, spread, offset = w.sees(self.n, axis), w.spread[axis], self.offset
        if not w.fits(self.n, axis):
            moved = self._moved(sees[:, 0]) if w.index else -w.left_over(self.n, axis) / 2 / spread
            if offset is not None:
                offset = None if moved is None else offset + self.step * moved
        there = np.expand_dims(sees >= 0, 2)
        seen = np.any(self.seen[sees] & there, axis=1)
        return Grid(self.step * w.strides[axis] / spread, offset, seen)

    def _moved(self, index: np.ndarray) -> float | None:
        """How far a rearrangement moves the centre, if the pixels are still there in order."""
        for first in np.flatnonzero(index == 0):
            if np.array_equal(index[first : first + self.n], np.arange(self.n)):
                return (len(index) - self.n) / 2 - float(first)
        return None

    def joined(self, other: Grid) -> Grid:
        """The grid of a sum; offsets to both sides may cancel."""
        offset = None
        if self.offset is not None and other.offset is not None and self.offset * other.offset >= 0:
            offset = max(self.offset, other.offset, key=abs)
        return Grid(self.step, offset, self.seen | other.seen)
