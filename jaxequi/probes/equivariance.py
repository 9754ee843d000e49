"""Measure how far each layer of a network is from equivariance, and its output from invariance.

Edixhoven, Lengyel and van Gemert (2023); `classification/pcam/calculate_pcam_eq_errors.py`,
calc_eq_error. A layer F is compared with itself on the moved image: mean |g F(x) - F(g x)|, where g
moves pixels and, in a network over the group, the slices of each field.

Turns by other angles than 90 degrees do not map the grid onto itself: both sides interpolate
(`planar.transform`), and corners leave the image. So for them everything outside the disc that
fits into the image is set to 0 first, and maps are compared inside the disc. What interpolation
alone explains is a few percent where maps are fine-grained: such an error is a measurement, no
verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.probes import layers
from jaxequi.types import Array

ROUNDING = 1e-4
"""Relative error above which a layer is not exact in f32."""


class Errors(NamedTuple):
    """Errors of L layers under the G elements of a group; element 0 is the identity.

    Attributes:
      layers: names, in order; the last is `output`.
      absolute: f64[L, G], mean |g F(x) - F(g x)| over all entries and images.
      relative: f64[L, G], the same divided by mean |F(x)|.
      exact: bool[G], elements that map the pixel grid onto itself; the others interpolate.
    """

    layers: Sequence[str]
    absolute: np.ndarray
    relative: np.ndarray
    exact: np.ndarray

    def first_above(self, tolerance: float = ROUNDING) -> str | None:
        """Name the first layer where an exact element errs by more than a tolerance, or None."""
        above = np.flatnonzero(self.relative[:, self.exact].max(1) > tolerance)
        return self.layers[above[0]] if above.size else None

    def summed(self) -> np.ndarray:
        """f64[L]: errors added up over the elements, as the reference reports them (E_d)."""
        return self.absolute.sum(1)


def measure(
    fn: Callable[[Array], Any],
    images: Array | np.ndarray,
    group: Group,
    regular: bool = True,
    batch_size: int = 64,
    keep: Callable[[str], bool] | None = None,
) -> Errors:
    """Measure every layer of a network, and the invariance of its output.

    Args:
      fn: images f32[B, H, W, C] -> f32[B, K] or a feature map, by Linen modules.
      images: f32[N, H, W, C].
      group: whose elements move the images.
      regular: whether maps are regular fields of the group (a network over it); False compares
        every channel with itself (a plain network).
      batch_size: images at a time.
      keep: names of layers to measure; None measures all.

    Returns:
      The errors. An output without pixels should be invariant.

    Raises:
      ValueError: images that a turn does not map onto themselves, or channels that are no whole
        number of fields.
    """
    if group.rotations > 2 and images.shape[1] != images.shape[2]:
        raise Refusal(
            f"images of {images.shape[1]} x {images.shape[2]} pixels: a turn by "
            f"{360 / group.rotations:g} degrees needs square ones. Crop them, or measure a group "
            "of half turns and mirrors."
        )
    recorder = layers.recorder(fn, (1, *images.shape[1:]), keep)
    maps = [shape for shape in recorder.shapes if len(shape) == 4]
    sizes = {shape[1:3] for shape in maps}
    for shape in maps if regular else ():
        planar.fields(group, shape[-1])
    exact = np.array(group.exact)
    total, scale = np.zeros((2, len(recorder.names), group.order))
    for start in range(0, len(images), batch_size):
        whole = jnp.asarray(images[start : start + batch_size])
        for part in (exact, ~exact):
            if not part.any():
                continue
            x = whole if part[0] else whole * _disc(whole.shape)
            upright = recorder.run(x)
            for g in map(int, np.flatnonzero(part)):
                moved = recorder.run(planar.transform(group, g, x)) if g else upright
                slices = group.shift[g] if regular else None
                if part[0]:
                    places = {size: _places(group, g, size) for size in sizes}
                    found = _exact_gaps(upright, moved, places, slices)
                else:
                    turns = {n: planar.neighbours(group, g, n) for n, _ in sizes}
                    found = _interpolated_gaps(upright, moved, turns, slices)
                gaps, means = np.array(found)
                total[:, g] += len(x) * gaps
                scale[:, g] += len(x) * means
    absolute, size = total / len(images), scale / len(images)
    return Errors(recorder.names, absolute, absolute / np.maximum(size, 1e-30), exact)


def _places(group: Group, g: int, size: tuple[int, int]) -> np.ndarray:
    """i[H', W']: which pixel of a map, row by row, an exact element moves to each place."""
    return planar.act(group, g, np.arange(size[0] * size[1]).reshape(size), (0, 1))


def _reordered(maps: Array, slices: Array | None) -> Array:
    """The slices of each field in another order; None leaves them."""
    if slices is None:
        return maps
    return maps.reshape(*maps.shape[:-1], -1, len(slices))[..., slices].reshape(maps.shape)


@jax.jit
def _exact_gaps(upright: Any, moved: Any, places: Any, slices: Any) -> Any:
    """Mean |g F(x) - F(g x)| and mean |F(x)| of each layer.

    One program for all elements: what they read is an argument.
    """

    def turned(a: Array) -> Array:
        pixels = a.reshape(len(a), -1, a.shape[-1])
        return _reordered(pixels[:, places[a.shape[1:3]]], slices)

    gaps = [
        jnp.mean(jnp.abs((turned(a) if a.ndim == 4 else a) - b)) for a, b in zip(upright, moved)
    ]
    return gaps, [jnp.mean(jnp.abs(a)) for a in upright]


@jax.jit
def _interpolated_gaps(upright: Any, moved: Any, turns: Any, slices: Any) -> Any:
    """The same over a disc."""

    def turned(a: Array) -> Array:
        def add(sum_: Array, tap: Any) -> tuple[Array, None]:
            (row, column), share = tap
            return sum_ + a[:, row, column] * share[..., None], None

        return _reordered(jax.lax.scan(add, jnp.zeros(a.shape), turns[a.shape[1]])[0], slices)

    gaps, sizes = [], []
    for a, b in zip(upright, moved):
        disc = _disc(a.shape) if a.ndim == 4 else np.ones((1,) * a.ndim)
        count = disc.sum() * a.size / disc.size
        gaps.append(jnp.sum(jnp.abs((turned(a) if a.ndim == 4 else a) - b) * disc) / count)
        sizes.append(jnp.sum(jnp.abs(a) * disc) / count)
    return gaps, sizes


def _disc(shape: tuple[int, ...]) -> np.ndarray:
    """f32[1, n, n, 1]: 1 on pixels inside the disc that fits into the image, else 0."""
    n = shape[1]
    row, column = np.mgrid[:n, :n] - (n - 1) / 2
    return (np.hypot(row, column) <= n / 2).astype(np.float32)[None, :, :, None]
