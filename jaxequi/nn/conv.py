"""Convolution of images, channels last.

TPUs and GPUs always get XLA's convolution. On a CPU a matrix product of the same numbers is faster
for kernels of one pixel (forward and backward in 0.35 to 0.8 of the time, ResNet-50 at 96 and 224
pixels), and where the windows laid side by side are no larger than the kernel (0.5 to 0.9; two
cores, 2026-11-27); and XLA's is fifty times too slow where the output has one or two pixels a side.
Kernels of 3 x 3 may take fewer products (`winograd`), for a longer compilation. Where each channel
is convolved by itself with stride 1, a sum over the taps takes 0.07 to 0.14 of the time, with the
gradient 0.03 to 0.14 (3 x 3 and 7 x 7 at 7 to 56 pixels, by the processor), and a train step of
`gcp4resnet44` 0.33 (two shared cores, 2026-11-28).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.nn import winograd
from jaxequi.nn.norm import at_least_f32
from jaxequi.types import Array

_TINY = 2  # sides of an output up to which a CPU always takes the matrix product

# Channels and tiles from which on Winograd's products are faster on two cores
# (`bench/symmetry.py`, 2026-11-28).
_WIDE, _TILES = 64, 300


class Window(NamedTuple):
    """How a kernel moves along one axis.

    Attributes:
      stride: step between outputs.
      padding: zeros (before, after).
      dilation: step between the taps of the kernel.
    """

    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1

    def reach(self, k: int) -> int:
        """Pixels from the first of k taps to the last, both counted."""
        return self.dilation * (k - 1) + 1

    def outputs(self, n: int, k: int) -> int:
        """Number of outputs along n pixels under k taps; 0 or less if they do not fit."""
        return (n + sum(self.padding) - self.reach(k)) // self.stride + 1


def conv2d(
    x: Array,
    kernel: Array,
    rows: Window,
    columns: Window,
    groups: int = 1,
    fewer_products: bool = False,
) -> Array:
    """Correlate images with a kernel.

    Args:
      x: [B, H, W, I].
      kernel: [k, l, I / groups, O], in the dtype of x.
      rows: how the kernel moves down.
      columns: how it moves across.
      groups: parts of the channels that do not see each other.
      fewer_products: let a CPU take Winograd's where they are faster (`winograd_pays`). Ten such
        layers compile two to four seconds longer.

    Returns:
      [B, H', W', O] with H' = rows.outputs(H, k) and W' = columns.outputs(W, l).
    """
    windows = rows, columns
    native = functools.partial(_native, windows=windows, groups=groups)
    sides = _sides(x.shape, kernel.shape, windows)
    made = x.shape[0], *sides
    if groups == 1 and product_pays(made, kernel.shape):
        here = functools.partial(_one_product, windows=windows)
    elif 1 < groups == x.shape[-1] == kernel.shape[-1] and {w.stride for w in windows} == {1}:
        here = functools.partial(_by_taps, windows=windows)
    elif groups == 1 and fewer_products and winograd_pays(x.shape, kernel.shape, windows):
        here = functools.partial(by_winograd, windows=windows)
    else:
        return native(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=here, default=native)


def winograd_pays(
    images: tuple[int, ...], kernel: tuple[int, ...], windows: tuple[Window, Window]
) -> bool:
    """Whether a CPU convolves faster by Winograd's products: many channels, and tiles of outputs.

    Args:
      images: [B, H, W, I]; in an exported program B is a symbol, and says nothing.
      kernel: [k, l, I, O].
      windows: how the kernel moves.
    """
    taps = winograd.TAPS
    fits = all((w.stride, w.dilation) == (1, 1) and max(w.padding) < taps for w in windows)
    if not fits or kernel[:2] != (taps, taps) or not isinstance(images[0], int):
        return False
    sides = _sides(images, kernel, windows)
    tiles = images[0] * math.prod(winograd.tiles(n) for n in sides)
    return min(kernel[2:]) >= _WIDE and min(sides) > 0 and tiles >= max(_TILES, *kernel[2:])


def product_pays(made: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether a CPU convolves faster by one matrix product.

    Args:
      made: [B, H', W'] of the output; in an exported program B is a symbol, and says nothing.
      kernel: [k, l, I, O].
    """
    few = isinstance(made[0], int) and math.prod(made) <= kernel[-1]
    return few or kernel[:2] == (1, 1) or max(made[1:]) <= _TINY


def _native(x: Array, kernel: Array, windows: tuple[Window, Window], groups: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        [w.stride for w in windows],
        [w.padding for w in windows],
        rhs_dilation=[w.dilation for w in windows],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def by_winograd(x: Array, kernel: Array, windows: tuple[Window, Window]) -> Array:
    """`conv2d` of a kernel of 3 x 3 and stride 1 by Winograd's products, on any device."""
    return winograd.conv(x, kernel, _padding(windows))


def _winograd_forward(
    x: Array, kernel: Array, windows: tuple[Window, Window]
) -> tuple[Array, tuple[Array, Array]]:
    return by_winograd(x, kernel, windows), (x, kernel)


def _winograd_backward(
    windows: tuple[Window, Window], kept: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """By transposing the sums of slices XLA would add up image by image, twice as long."""
    x, kernel = kept
    dx = winograd.image_gradient(dy, kernel, _padding(windows))
    dkernel = winograd.kernel_gradient(x, dy, _padding(windows))
    return dx, dkernel.astype(kernel.dtype)


by_winograd.defvjp(_winograd_forward, _winograd_backward)


def _padding(windows: tuple[Window, Window]) -> winograd.Padding:
    rows, columns = windows
    return rows.padding, columns.padding


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_taps(x: Array, kernel: Array, windows: tuple[Window, Window]) -> Array:
    """Convolve each channel by itself with stride 1: a sum of moved images, which XLA makes one
    loop of."""
    wide, (height, width) = _padded(x, windows), _sides(x.shape, kernel.shape, windows)
    taps = kernel[:, :, 0].astype(wide.dtype)
    y = jnp.zeros((len(x), height, width, x.shape[-1]), wide.dtype)
    for i, j in np.ndindex(kernel.shape[:2]):
        top, left = (w.dilation * at for w, at in zip(windows, (i, j)))
        y = y + wide[:, top : top + height, left : left + width] * taps[i, j]
    return y.astype(x.dtype)


def _by_taps_forward(
    x: Array, kernel: Array, windows: tuple[Window, Window]
) -> tuple[Array, tuple[Array, Array]]:
    return _by_taps(x, kernel, windows), (x, kernel)


def _by_taps_backward(
    windows: tuple[Window, Window], kept: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    ends = [w.reach(k) - 1 for w, k in zip(windows, kernel.shape[:2])]
    back = [
        Window(1, (end - w.padding[0], end - w.padding[1]), w.dilation)
        for w, end in zip(windows, ends)
    ]
    dx = _by_taps(dy, kernel[::-1, ::-1], (back[0], back[1]))
    wide, dy = _padded(x, windows), at_least_f32(dy)

    def tap(at: Array) -> Array:
        i, j = jnp.divmod(at, kernel.shape[1])
        corner = 0, i * windows[0].dilation, j * windows[1].dilation, 0
        return jnp.sum(jax.lax.dynamic_slice(wide, corner, dy.shape) * dy, (0, 1, 2))

    # One after the other: 49 sums in one program take two seconds to compile, and longer to run.
    taps = jax.lax.map(tap, jnp.arange(math.prod(kernel.shape[:2])))
    return dx, taps.reshape(kernel.shape).astype(kernel.dtype)


_by_taps.defvjp(_by_taps_forward, _by_taps_backward)


def _padded(x: Array, windows: tuple[Window, Window]) -> Array:
    """In f32 or more; padding below 0 cuts off."""
    wide = at_least_f32(x)
    around = [(0, 0, 0), *((*w.padding, 0) for w in windows), (0, 0, 0)]
    return jax.lax.pad(wide, jnp.zeros((), wide.dtype), around)


def _sides(
    images: tuple[int, ...], kernel: tuple[int, ...], windows: tuple[Window, Window]
) -> list[int]:
    return [w.outputs(n, k) for w, n, k in zip(windows, images[1:3], kernel[:2])]


def _one_product(x: Array, kernel: Array, windows: tuple[Window, Window]) -> Array:
    """Lay the windows side by side, and multiply them with the kernel as one matrix."""
    rows, columns = windows
    seen = _taps(_taps(x, 2, kernel.shape[1], columns), 1, kernel.shape[0], rows)
    # Rows and columns alone: the gradient of a product over [B, H, W] takes three times as long.
    matrix = kernel.reshape(-1, kernel.shape[-1])
    sums = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.matmul(seen.reshape(-1, len(matrix)), matrix, preferred_element_type=sums)
    return y.reshape(*seen.shape[:3], -1).astype(x.dtype)


def _taps(x: Array, axis: int, k: int, window: Window) -> Array:
    """What the k taps along an axis see, behind each other on the last axis."""
    span = (window.outputs(x.shape[axis], k) - 1) * window.stride + 1
    x = jnp.pad(x, [window.padding if a == axis else (0, 0) for a in range(x.ndim)])
    starts = range(0, k * window.dilation, window.dilation)
    slices = [jax.lax.slice_in_dim(x, at, at + span, window.stride, axis) for at in starts]
    return jnp.concatenate(slices, -1) if k > 1 else slices[0]


class Conv(nn.Module):
    """`conv2d` with its parameters: `kernel` f32[k, k, I / groups, O] and, if asked, `bias` f32[O].

    Attributes:
      features: O.
      kernel_size: k.
      stride, padding, dilation: of both axes, as of `Window`.
      groups: as of `conv2d`.
      use_bias: add a bias.
      dtype: of the computation; parameters are f32.
      kernel_init, bias_init: initializers.

    Raises:
      ValueError: groups does not divide I and O.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups or self.features % self.groups:
            raise Refusal(
                f"Conv: groups={self.groups} must divide the channels, {channels} in and "
                f"{self.features} out."
            )
        shape = (self.kernel_size, self.kernel_size, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        window = Window(self.stride, self.padding, self.dilation)
        y = conv2d(x, kernel, window, window, self.groups)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(y.dtype)
        return y
