"""Pooling of feature maps: over windows of pixels, and over the slices of a group."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.groups.representations import FieldType, check_channels, check_pointwise
from jaxequi.nn.gconv import Pair, convolve, pair
from jaxequi.types import Array


def max_pool(
    x: Array,
    window: Pair,
    strides: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """Take the maximum over windows; of tied entries the first gets the gradient.

    sepgroupy `gconv/pooling.py`, GroupMaxPool2d.

    Args:
      x: [B, H, W, C].
      window, strides, padding, dilation: one number, or one for rows and one for columns. Strides
        are the window unless given; the padding is minus infinity.
      ceil_mode: also take a last window that hangs over the far side. It makes no size exact that
        was not: the overhang is on one side.

    Returns:
      [B, H', W', C].

    Raises:
      ValueError: the image is smaller than the window.
    """
    return _max(x, _windows(x, window, strides, padding, dilation, ceil_mode))


def avg_pool(x: Array, window: Pair, strides: Pair | None = None, padding: Pair = 0) -> Array:
    """Take the mean over windows, the zeros of the padding included, as torch does.

    Args and errors are those of `max_pool`.
    """
    windows = _windows(x, window, strides, padding)
    return _reduce(x, jax.lax.add, 0.0, windows) / math.prod(windows.size)


def coset_max(x: Array, group: Group) -> Array:
    """Take the maximum of each regular field; of tied slices the first gets the gradient.

    sepgroupy `gconv/pooling.py`, GroupCosetMaxPool.

    Args:
      x: [..., C G].
      group: the group G.

    Returns:
      [..., C].

    Raises:
      ValueError: the channels are no whole number of fields.
    """
    return _max_of_fields(x, planar.fields(group, x.shape[-1]), group.order)


def field_max(x: Array, kind: FieldType) -> Array:
    """Take the maximum of each field of any type, in the order of the fields.

    escnn `nn/modules/invariantmaps/gpool.py`, GroupPooling; of regular fields it is `coset_max`.

    Args:
      x: [..., C].
      kind: what the channels are.

    Returns:
      [..., fields].

    Raises:
      ValueError: other channels than the type has, or fields whose channels do not permute.
    """
    check_channels(kind, x.shape[-1])
    check_pointwise(kind, "a maximum")
    parts, start = [], 0
    for representation, count in kind.runs:
        stop = start + count * representation.size
        parts.append(_max_of_fields(x[..., start:stop], count, representation.size))
        start = stop
    return jnp.concatenate(parts, -1)


def _max_of_fields(x: Array, fields: int, size: int) -> Array:
    parts = x.reshape(*x.shape[:-1], fields, size)
    first = jnp.argmax(parts, -1, keepdims=True) == jnp.arange(size)
    return jnp.sum(jnp.where(first, parts, 0), -1)


def blur_pool(x: Array, sigma: float = 0.66, strides: Pair = 2) -> Array:
    """Blur each channel with a Gaussian and take every s-th pixel: a stride that aliases less.

    escnn `nn/modules/pooling/pointwise_avg.py`, PointwiseAvgPoolAntialiased. The filter has
    2 round(3 sigma) + 1 taps and the padding, of zeros, keeps the size before the stride.

    Args:
      x: [B, H, W, C].
      sigma: in pixels, above 0.
      strides: one number, or one for rows and one for columns.

    Returns:
      [B, ceil(H / s), ceil(W / s), C].

    Raises:
      ValueError: sigma is not above 0.
    """
    if sigma <= 0:
        raise Refusal(f"sigma={sigma}: the width of a blur is above 0")
    reach = round(3 * sigma)
    line = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    taps = np.outer(line, line) / line.sum() ** 2
    bank = jnp.broadcast_to(
        jnp.asarray(taps, x.dtype)[..., None, None], (*taps.shape, 1, x.shape[-1])
    )
    return convolve(x, bank, strides, reach, 1, groups=x.shape[-1])


class MaxPool(nn.Module):
    """`max_pool` as a layer with a name, so that probes can point at it.

    Attributes:
      window, strides, padding: as in `max_pool`.
    """

    window: Pair
    strides: Pair | None = None
    padding: Pair = 0

    def __call__(self, x: Array) -> Array:
        return max_pool(x, self.window, self.strides, self.padding)


class _Windows(NamedTuple):
    """Windows over rows and columns: all pairs."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, int]


def _windows(x, window, strides, padding, dilation=1, ceil_mode=False) -> _Windows:
    window, padding, dilation = pair(window), pair(padding), pair(dilation)
    strides = window if strides is None else pair(strides)
    ends = []
    for n, k, s, p, d in zip(x.shape[1:3], window, strides, padding, dilation):
        room = n + 2 * p - d * (k - 1) - 1
        if room < 0:
            raise Refusal(f"a side of {n} pixels with padding {p} is smaller than the window {k}")
        overhang = -room % s
        # torch drops a last window that would start in the far padding
        hangs = ceil_mode and room + overhang < n + p
        ends.append((p, p + overhang if hangs else p))
    return _Windows(window, strides, tuple(ends), dilation)


def _reduce(x: Array, reducer: Any, initial: float, windows: _Windows) -> Array:
    return jax.lax.reduce_window(
        x,
        np.asarray(initial, x.dtype),  # a constant: jax knows the gradient of no other
        reducer,
        (1, *windows.size, 1),
        (1, *windows.strides, 1),
        ((0, 0), *windows.padding, (0, 0)),
        window_dilation=(1, *windows.dilation, 1),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max(x: Array, windows: _Windows) -> Array:
    return _reduce(x, jax.lax.max, -np.inf, windows)


def _max_forward(x: Array, windows: _Windows) -> tuple[Array, Array]:
    return _max(x, windows), x


def _max_backward(windows: _Windows, x: Array, cotangent: Array) -> tuple[Array]:
    # XLA's own gradient of a windowed maximum takes thirty times as long on a CPU
    return jax.vjp(functools.partial(_max_of_slices, windows=windows), x)[1](cotangent)


_max.defvjp(_max_forward, _max_backward)


def _max_of_slices(x: Array, windows: _Windows) -> Array:
    """The same maximum tap by tap; `>` leaves ties with the first tap, in rows and then columns."""
    padded = jnp.pad(x, ((0, 0), *windows.padding, (0, 0)), constant_values=-np.inf)
    reach = [d * (k - 1) for d, k in zip(windows.dilation, windows.size)]
    taps = []
    for i, j in np.ndindex(*windows.size):
        top, left = i * windows.dilation[0], j * windows.dilation[1]
        bottom, right = padded.shape[1] - reach[0] + top, padded.shape[2] - reach[1] + left
        taps.append(padded[:, top : bottom : windows.strides[0], left : right : windows.strides[1]])
    return functools.reduce(lambda best, tap: jnp.where(tap > best, tap, best), taps)
