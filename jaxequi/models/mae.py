"""The decoder of masked autoencoders: tokens of the visible patches to the pixels of all.

He et al., CVPR 2022, section 3; facebookresearch/mae, `models_mae.py`, `forward_decoder`. It
learns beside a `models.vit` and is thrown away.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.nn import transformer
from jaxequi.nn.norm import at_least_f32
from jaxequi.nn.transformer import Block
from jaxequi.types import Array

_xavier = nn.initializers.xavier_uniform()


class Decoder(nn.Module):
    """Tokens f32[N, 1 + n, D] of some patches to pixels f32[N, L, outputs] of all.

    Attributes:
      outputs: values of a patch, patch * patch * 3.
      width, depth, heads, mlp_ratio: of its own tokens and blocks.
      dtype, remat: as of `models.vit.ViT`.
    """

    outputs: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, latent: Array, restore: Array, rows: int, columns: int) -> Array:
        """Decode; `restore` i32[N, L] is where each patch stands in [visible, hidden]."""
        n, length = restore.shape
        embed = nn.Dense(self.width, dtype=self.dtype, kernel_init=_xavier, name="embed")
        tokens = transformer.each_token(embed, latent)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        hidden = length - (tokens.shape[1] - 1)
        masked = jnp.broadcast_to(mask_token.astype(self.dtype), (n, hidden, self.width))
        patches = jnp.concatenate([tokens[:, 1:], masked], axis=1)
        patches = jnp.take_along_axis(patches, restore[..., None], axis=1)
        x = jnp.concatenate([tokens[:, :1], patches], axis=1)
        positions = transformer.sincos_positions(self.width, rows, columns)
        x = x + jnp.asarray(positions, self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.depth):
            x = block(self.heads, self.mlp_ratio, 0.0, self.dtype, name=f"blocks_{i}")(x, True)
        x = transformer.layer_norm(self.dtype, "norm")(x)
        predict = nn.Dense(self.outputs, dtype=self.dtype, kernel_init=_xavier, name="pred")
        return at_least_f32(transformer.each_token(predict, x)[:, 1:])


def make(
    patch: int,
    *,
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> Decoder:
    """Build the decoder for patches of `patch` pixels a side; arguments as of `Decoder`.

    Raises:
      ValueError: heads that do not divide the width, or a width that four does not divide.
    """
    if min(patch, width, depth, heads) < 1 or width % heads or width % 4:
        raise Refusal(
            f"a decoder with width={width}, depth={depth}, heads={heads}: the heads and 4 must "
            "divide the width, and nothing be below 1"
        )
    return Decoder(3 * patch**2, width, depth, heads, mlp_ratio, dtype, remat)
