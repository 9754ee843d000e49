"""Layers of vision transformers: patches, tables of positions, attention, blocks.

Dosovitskiy et al., ICLR 2021; as timm 0.3.2 and facebookresearch/mae have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.nn.norm import at_least_f32
from jaxequi.types import Array

Dtype = Any
_xavier = nn.initializers.xavier_uniform()


def patchify(images: Array, size: int) -> Array:
    """Cut images [N, H, W, C] into patches [N, L, size * size * C].

    Patches row by row, and in each its pixels row by row, channels last: facebookresearch/mae,
    `models_mae.py`, `patchify`.

    Raises:
      ValueError: the size does not divide a side.
    """
    n, height, width, channels = images.shape
    if height % size or width % size:
        raise Refusal(
            f"patches of {size}x{size} do not fill images of {height}x{width}; resize them to "
            f"{max(height // size, 1) * size}x{max(width // size, 1) * size}, or change `patch`"
        )
    return space_to_depth(images, size).reshape(n, -1, size * size * channels)


def space_to_depth(x: Array, size: int) -> Array:
    """Put the pixels of each patch behind each other: [..., H, W, C] to [..., H', W', size^2 C].

    Patches are as `patchify` cuts them; H' = H // size, and what is left over is dropped, as by a
    convolution with that stride.
    """
    *batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[..., : rows * size, : columns * size, :]
    cut = x.reshape(*batch, rows, size, columns, size, channels)
    return cut.swapaxes(-4, -3).reshape(*batch, rows, columns, size * size * channels)


def unpatchify(patches: Array, height: int, width: int, channels: int = 3) -> Array:
    """Put patches [N, L, size * size * C] together, as `patchify` cut them: [N, H, W, C]."""
    n, _, values = patches.shape
    size = math.isqrt(values // channels)
    cut = patches.reshape(n, height // size, width // size, size, size, channels)
    return cut.swapaxes(2, 3).reshape(n, height, width, channels)


def sincos_positions(width: int, rows: int, columns: int) -> np.ndarray:
    """Fixed code of a class token and of rows * columns patches: f32[1 + rows * columns, width].

    facebookresearch/mae, `util/pos_embed.py`: sines and cosines of the *column* in the first half,
    of the row in the second. The class token's code is 0.

    Raises:
      ValueError: four does not divide the width.
    """
    if width % 4:
        raise Refusal(f"a code of positions has sines and cosines twice; width {width} % 4 != 0")
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))

    def code(x: np.ndarray) -> np.ndarray:
        angles = x.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    patches = np.concatenate([code(column), code(row)], axis=-1)
    return np.concatenate([np.zeros((1, width)), patches]).astype(np.float32)


def resize_positions(table: Array, rows: int, columns: int) -> Array:
    """Interpolate a table of a square grid to another: [1 + g * g, D] to [1 + rows * columns, D].

    Bicubic as torch's `interpolate` (a = -0.75, corners not aligned, no smoothing); the class
    token's row is kept. facebookresearch/mae, `util/pos_embed.py`, `interpolate_pos_embed`.
    """
    side = math.isqrt(len(table) - 1)
    grid = table[1:].reshape(side, side, -1)
    grid = jnp.einsum(
        "yi,xj,ijd->yxd", _bicubic(side, rows), _bicubic(side, columns), grid, precision="highest"
    )
    return jnp.concatenate([table[:1], grid.reshape(rows * columns, -1)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of cubic convolution with a = -0.75; the edge goes on outside."""

    def near(x: np.ndarray) -> np.ndarray:
        return (1.25 * x - 2.25) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((-0.75 * x + 3.75) * x - 6) * x + 3

    at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int)
    part = at - first
    weights = np.zeros((new, old))
    for tap, weight in enumerate((far(part + 1), near(part), near(1 - part), far(2 - part))):
        np.add.at(weights, (np.arange(new), np.clip(first + tap - 1, 0, old - 1)), weight)
    return weights.astype(np.float32)


def _linear(
    features: int, dtype: Dtype, name: str, init: nn.initializers.Initializer = _xavier
) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def each_token(layer: Callable[[Array], Array], x: Array) -> Array:
    """Apply a layer of rows [M, D] to tokens [N, T, D].

    For a gradient over two axes of rows XLA's CPU compiler writes both operands transposed first,
    in MAE a fifth of the time of a step.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def layer_norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    """Make a LayerNorm with epsilon 1e-6; its statistics are f32."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


class PatchEmbed(nn.Module):
    """Patches [N, L, size * size * C] to tokens [N, L, features]: a convolution with that stride.

    Parameters: `kernel` f32[size, size, C, features], `bias` f32[features].
    """

    features: int
    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        values = patches.shape[-1]
        shape = (self.size, self.size, values // self.size**2, self.features)
        init = nn.initializers.xavier_uniform(in_axis=(0, 1, 2))
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", uniform(values**-0.5), (self.features,), jnp.float32)
        kernel = kernel.reshape(values, -1).astype(self.dtype)
        return each_token(
            lambda rows: rows @ kernel + bias.astype(self.dtype), patches.astype(self.dtype)
        )


def uniform(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound); with 1 / sqrt(fan in) torch's default for a bias."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Attention(nn.Module):
    """Every token reads every token: [N, T, D] to [N, T, D], in `heads` parts of D."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, tokens, width = x.shape
        if width % self.heads:
            raise Refusal(f"{self.heads} heads do not divide the width of {width}")
        qkv = each_token(_linear(3 * width, self.dtype, "qkv"), x)
        qkv = qkv.reshape(n, tokens, 3, self.heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))  # slices; moving the axis would copy all three
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(n, tokens, width)
        return each_token(_linear(width, self.dtype, "proj"), mixed)


def gelu(x: Array) -> Array:
    """The exact GELU as torch writes it, x (1 + erf(x / sqrt 2)) / 2.

    jax.nn has erfc(-x / sqrt 2), with more digits of what is nearly 0 and nearly twice the time on
    a CPU; Pallas has no erfc. The sum is f32, of which half precision would lose the digits.
    """
    wide = at_least_f32(x)
    return (wide * (0.5 + 0.5 * jax.lax.erf(math.sqrt(0.5) * wide))).astype(x.dtype)


class MLP(nn.Module):
    """Two layers on each token with an exact GELU between them."""

    hidden: int
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = _xavier

    @nn.compact
    def __call__(self, x: Array) -> Array:
        first = _linear(self.hidden, self.dtype, "fc1", self.kernel_init)
        second = _linear(x.shape[-1], self.dtype, "fc2", self.kernel_init)
        return each_token(lambda rows: second(gelu(first(rows))), x)


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)): [N, T, D] to [N, T, D].

    Attributes:
      heads: of the attention.
      mlp_ratio: hidden width over D.
      drop_path: probability that a branch is left out for an example; what is kept is divided by
        the probability that it is (rng "dropout").
    """

    heads: int
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
        h = layer_norm(self.dtype, "norm1")(x)
        x = x + drop(Attention(self.heads, self.dtype, name="attn")(h))
        h = layer_norm(self.dtype, "norm2")(x)
        return x + drop(MLP(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")(h))
