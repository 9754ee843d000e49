"""Convolution with kernels of 3 x 3 in fewer products: Winograd's F(2 x 2, 3 x 3).

Two outputs of three taps are sums of six products. They are also four coefficients of a product of
two polynomials, known from its values at four points (0, 1, -1 and infinity), each of which is one
product. Along both axes of an image 16 products make a tile of 2 x 2 outputs in place of 36. All
tiles at one point are one matrix product.

Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks", section 4.1. The three
transforms, of the image, of the kernel and of the products, are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxequi.nn.norm import at_least_f32
from jaxequi.types import Array

TAPS, OUTPUTS = 3, 2
"""Taps of a kernel and outputs of a tile, along each axis."""

Padding = tuple[tuple[int, int], tuple[int, int]]


def tiles(outputs: int) -> int:
    """Tiles along an axis of so many outputs."""
    return -(-outputs // OUTPUTS)


def conv(x: Array, kernel: Array, padding: Padding) -> Array:
    """Correlate images with a kernel, with stride 1.

    Args:
      x: [B, H, W, I].
      kernel: [3, 3, I, O].
      padding: zeros (before, after) of rows and of columns.

    Returns:
      [B, H', W', O] in the dtype of x, H' = H + before + after - 2. Sums are f32 at least.
    """
    height, width = _sides(x, padding)
    products = [v @ w for v, w in zip(_of_image(x, padding), _of_kernel(kernel), strict=True)]
    shape = x.shape[0], tiles(height), tiles(width), kernel.shape[-1]
    columns = [_outputs([p.reshape(shape) for p in row]) for row in _in_fours(products)]
    made = [_outputs(four) for four in zip(*columns, strict=True)]  # [column][row] of a tile
    y = jnp.stack([jnp.stack(row, 3) for row in zip(*made, strict=True)], 2)
    y = y.reshape(shape[0], OUTPUTS * shape[1], OUTPUTS * shape[2], shape[3])
    return y[:, :height, :width].astype(x.dtype)


def image_gradient(dy: Array, kernel: Array, padding: Padding) -> Array:
    """The cotangent of the images of `conv`: the convolution by the kernel turned by 180 degrees.

    Args:
      dy: [B, H', W', O].
      kernel: [3, 3, I, O].
      padding: as of `conv`, at most 2 on each side.

    Returns:
      [B, H, W, I].
    """
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    (top, bottom), (left, right) = padding
    reach = TAPS - 1
    return conv(dy, turned, ((reach - top, reach - bottom), (reach - left, reach - right)))


def kernel_gradient(x: Array, dy: Array, padding: Padding) -> Array:
    """The cotangent of the kernel of `conv`.

    Args:
      x: [B, H, W, I].
      dy: [B, H', W', O].
      padding: as of `conv`.

    Returns:
      [3, 3, I, O], in f32 at least.
    """
    at_points = zip(_of_image(x, padding), _of_outputs(dy), strict=True)
    sums = [jax.lax.dot_general(v, d, (((0,), (0,)), ((), ()))) for v, d in at_points]
    columns = [_taps(row) for row in _in_fours(sums)]
    made = [_taps(four) for four in zip(*columns, strict=True)]  # [column][row] of the kernel
    return jnp.stack([jnp.stack(row) for row in zip(*made, strict=True)])


def _sides(x: Array, padding: Padding) -> tuple[int, int]:
    height, width = (n + sum(p) - (TAPS - 1) for n, p in zip(x.shape[1:3], padding, strict=True))
    return height, width


def _in_fours(values: Sequence[Array]) -> list[Sequence[Array]]:
    """Values at the 16 points by rows of points."""
    return [values[start : start + 4] for start in range(0, 16, 4)]


def _of_image(x: Array, padding: Padding) -> list[Array]:
    """What each tile sees, 4 x 4 pixels, at the 16 points: [tiles, I] each."""
    x = at_least_f32(x)
    spread = [OUTPUTS * tiles(n) + TAPS - 1 for n in _sides(x, padding)]
    pads = [(p[0], m - n - p[0]) for p, m, n in zip(padding, spread, x.shape[1:3], strict=True)]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])

    def seen(x: Array, axis: int) -> list[Array]:
        span = x.shape[axis] - TAPS  # from the first pixel of the first tile to that of the last
        a, b, c, d = (jax.lax.slice_in_dim(x, i, i + span, OUTPUTS, axis) for i in range(4))
        return [a - c, b + c, c - b, b - d]

    return [value.reshape(-1, x.shape[-1]) for row in seen(x, 1) for value in seen(row, 2)]


def _of_kernel(kernel: Array) -> list[Array]:
    """The kernel at the 16 points: [I, O] each."""

    def at_points(taps: Array) -> list[Array]:
        first, middle, last = taps
        mean, half = (first + last) / 2, middle / 2
        return [first, mean + half, mean - half, last]

    return [value for row in at_points(at_least_f32(kernel)) for value in at_points(row)]


def _taps(values: Sequence[Array]) -> list[Array]:
    """The transpose of `_of_kernel` along one axis: four values to three taps."""
    first, plus, minus, last = values
    return [first + (plus + minus) / 2, (plus - minus) / 2, last + (plus + minus) / 2]


def _outputs(values: Sequence[Array]) -> list[Array]:
    """Four values of a product along one axis to the two outputs of a tile."""
    first, plus, minus, last = values
    return [first + plus + minus, plus - minus - last]


def _of_outputs(dy: Array) -> list[Array]:
    """The transpose of `_outputs` along both axes: [tiles, O] at each of the 16 points."""
    dy = jnp.pad(at_least_f32(dy), [(0, 0), *((0, n % OUTPUTS) for n in dy.shape[1:3]), (0, 0)])

    def at_points(dy: Array, axis: int) -> list[Array]:
        even, odd = (jax.lax.slice_in_dim(dy, i, None, OUTPUTS, axis) for i in range(OUTPUTS))
        return [even, even + odd, even - odd, -odd]

    return [v.reshape(-1, dy.shape[-1]) for row in at_points(dy, 1) for v in at_points(row, 2)]
