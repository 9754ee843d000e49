"""Convolution of pictures, channels last."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxequi.types import Array


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
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


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
