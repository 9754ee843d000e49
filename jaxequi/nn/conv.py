"""Convolution of pictures, channels last.

TPUs and GPUs always get XLA's convolution. On a CPU that one is fifty times too slow where the
output has one or two pixels a side, so there, and only there, it is written as a matrix product.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxequi.types import Array

_TINY = 2  # sides of an output up to which a CPU takes the matrix product


def conv2d(
    x: Array,
    kernel: Array,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """Correlate pictures with a kernel.

    Args:
      x: [B, H, W, I].
      kernel: [k, k, I / groups, O], in the dtype of x.
      stride: step between outputs, on both axes.
      padding: zeros (before, after), on both axes.
      dilation: step between the taps of the kernel.
      groups: parts of the channels that do not see each other.

    Returns:
      [B, H', W', O] with H' = (H + before + after - dilation (k - 1) - 1) // stride + 1.
    """
    windows = _Windows(stride, padding, dilation)
    native = functools.partial(_native, windows=windows, groups=groups)
    sides = [windows.side(n, k) for n, k in zip(x.shape[1:3], kernel.shape[:2])]
    if groups > 1 or max(sides) > _TINY or kernel.shape[:2] == (1, 1):
        return native(x, kernel)
    one_product = functools.partial(_one_product, windows=windows)
    return jax.lax.platform_dependent(x, kernel, cpu=one_product, default=native)


class _Windows(NamedTuple):
    """How a kernel moves over pictures, alike on both axes; as of `conv2d`."""

    stride: int
    padding: tuple[int, int]
    dilation: int

    def side(self, n: int, k: int) -> int:
        """Number of outputs along n pixels under k taps."""
        return (n + sum(self.padding) - self.dilation * (k - 1) - 1) // self.stride + 1


def _native(x: Array, kernel: Array, windows: _Windows, groups: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (windows.stride, windows.stride),
        (windows.padding, windows.padding),
        rhs_dilation=(windows.dilation, windows.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _one_product(x: Array, kernel: Array, windows: _Windows) -> Array:
    """Lay the windows side by side, and multiply them with the kernel as one matrix."""
    k = kernel.shape[0]
    seen = _taps(_taps(x, 2, k, windows), 1, k, windows)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return jnp.matmul(seen, matrix, preferred_element_type=jnp.float32).astype(x.dtype)


def _taps(x: Array, axis: int, k: int, windows: _Windows) -> Array:
    """What the k taps along an axis see, behind each other on the last axis."""
    span = (windows.side(x.shape[axis], k) - 1) * windows.stride + 1
    x = jnp.pad(x, [windows.padding if a == axis else (0, 0) for a in range(x.ndim)])
    starts = range(0, k * windows.dilation, windows.dilation)
    slices = [jax.lax.slice_in_dim(x, at, at + span, windows.stride, axis) for at in starts]
    return jnp.concatenate(slices, -1)


class Conv(nn.Module):
    """`conv2d` with its parameters: `kernel` f32[k, k, I / groups, O] and, if asked, `bias` f32[O].

    Attributes:
      features: O.
      kernel_size: k.
      stride, padding, dilation, groups: as of `conv2d`.
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
            raise ValueError(
                f"Conv: groups={self.groups} must divide the channels, {channels} in and "
                f"{self.features} out."
            )
        shape = (self.kernel_size, self.kernel_size, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = conv2d(x, kernel, self.stride, self.padding, self.dilation, self.groups)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(y.dtype)
        return y
