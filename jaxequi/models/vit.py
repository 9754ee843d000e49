"""Vision transformers: images to features, no classifier.

Dosovitskiy et al., ICLR 2021; facebookresearch/mae, `models_vit.py` and the encoder of
`models_mae.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.nn import transformer
from jaxequi.nn.norm import at_least_f32
from jaxequi.nn.transformer import Block, PatchEmbed
from jaxequi.types import Array

POOLS = ("token", "mean")
POSITIONS = ("fixed", "learned")


class ViT(nn.Module):
    """Images f32[N, H, W, 3] to features f32[N, width].

    Attributes:
      patch: side of a patch in pixels.
      width, depth, heads: of tokens, blocks, attention.
      mlp_ratio: hidden width of a block's MLP over its width.
      pool: "token", the class token after the last LayerNorm; "mean", the mean of the patches'
        tokens before it, with a LayerNorm of its own.
      positions: "fixed", a constant code of sines and cosines; "learned", a parameter that starts
        as that code.
      position_grid: side of the grid whose code a learned table starts as, interpolated to the
        image's grid; 0 for the image's own. 14 fine-tunes at 448 pixels what learned at 224.
      drop_path: probability that the last block's branches are left out; it rises linearly from 0.
      dtype: of the computation; parameters and features are f32.
      remat: compute each block again in the backward pass instead of keeping its inner tensors.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    pool: str = "token"
    positions: str = "fixed"
    position_grid: int = 0
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        return self.width

    @nn.nowrap
    def layer_decay(self, decay: float) -> tuple[tuple[str, float], ...]:
        """Factors of the learning rate by layer, see `layer_decay`."""
        return layer_decay(self.depth, decay)

    @nn.compact
    def __call__(self, images: Array, train: bool, keep: Array | None = None) -> Array:
        """Encode images; with `keep`, some of their patches as if there were no others.

        Args:
          keep: i32[N, n], patches of each image.

        Returns:
          f32[N, R]; with `keep` all tokens after the last LayerNorm, f32[N, 1 + n, R]: that of the
          class, and those of the patches in the order of `keep`.

        Raises:
          ValueError: patches that do not fill the image, or `keep` for a network that pools the
            mean, and so has no last LayerNorm.
        """
        if keep is not None and self.pool != "token":
            raise Refusal(f"pool={self.pool!r} leaves tokens without a norm; take pool='token'")
        patches = transformer.patchify(images, self.patch)
        grid = images.shape[1] // self.patch, images.shape[2] // self.patch
        positions = self._positions(*grid, self.width)
        at = positions[None, 1:]
        if keep is not None:
            patches = jnp.take_along_axis(patches, keep[..., None], axis=1)
            at = positions[1:][keep]
        x = PatchEmbed(self.width, self.patch, self.dtype, name="patch_embed")(patches)
        x = x + at.astype(self.dtype)
        token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        token = (token + positions[:1]).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)

        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i, rate in enumerate(np.linspace(0, self.drop_path, self.depth)):
            layer = block(self.heads, self.mlp_ratio, float(rate), self.dtype, name=f"blocks_{i}")
            x = layer(x, train)
        if self.pool == "mean":
            mean = jnp.mean(at_least_f32(x[:, 1:]), axis=1)
            return at_least_f32(transformer.layer_norm(self.dtype, "fc_norm")(mean))
        x = at_least_f32(transformer.layer_norm(self.dtype, "norm")(x))
        return x[:, 0] if keep is None else x

    def _positions(self, rows: int, columns: int, width: int) -> Array:
        """f32[1 + rows * columns, width]."""

        def start(key: Array, shape: tuple[int, ...]) -> Array:
            del key
            side = self.position_grid
            if not side:
                return jnp.asarray(own).reshape(shape)
            table = jnp.asarray(transformer.sincos_positions(width, side, side))
            return transformer.resize_positions(table, rows, columns).reshape(shape)

        own = transformer.sincos_positions(width, rows, columns)
        if self.positions == "fixed":
            return jnp.asarray(own)
        return self.param("pos_embed", start, (1, *own.shape))[0]


class Size(NamedTuple):
    """The four numbers that tell the networks apart."""

    patch: int
    width: int
    depth: int
    heads: int


SIZES = {
    "tiny": Size(16, 192, 12, 3),
    "small": Size(16, 384, 12, 6),
    "base": Size(16, 768, 12, 12),
    "large": Size(16, 1024, 24, 16),
    "huge": Size(14, 1280, 32, 16),
}


def make(
    architecture: str = "base",
    *,
    patch: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_ratio: float = 4.0,
    pool: str = "token",
    positions: str = "fixed",
    position_grid: int = 0,
    drop_path: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> ViT:
    """Build the network of a size of the paper; arguments as of `ViT`.

    >>> make("tiny").features, make("base", depth=2).depth
    (192, 2)

    Args:
      patch, width, depth, heads: instead of those of the architecture.

    Raises:
      ValueError: unknown architecture, pool or positions; heads that do not divide the width; a
        width that four does not divide; or a probability outside [0, 1).
    """
    if architecture not in SIZES:
        raise unknown("architecture", architecture, SIZES)
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    if positions not in POSITIONS:
        raise unknown("positions", positions, POSITIONS)
    given = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    size = SIZES[architecture]._replace(**{k: v for k, v in given.items() if v is not None})
    if min(size) < 1 or size.width % size.heads or size.width % 4:
        raise Refusal(f"{size}: the heads and 4 must divide the width, and nothing be below 1")
    if not 0 <= drop_path < 1:
        raise Refusal(f"drop_path={drop_path} is a probability below 1")
    return ViT(
        *size,
        mlp_ratio=mlp_ratio,
        pool=pool,
        positions=positions,
        position_grid=position_grid,
        drop_path=drop_path,
        dtype=dtype,
        remat=remat,
    )


def layer_decay(depth: int, decay: float) -> tuple[tuple[str, float], ...]:
    """Factors of the learning rate for parameters by their path, the first match counts.

    facebookresearch/mae, `util/lr_decay.py`: decay^(depth + 1) for what makes the tokens, one power
    less for each block, 1 for everything else.

    Returns:
      (regex, factor) pairs; the regexes are searched in paths such as "backbone/blocks_0/attn".
    """
    first = (r"(^|/)(cls_token|pos_embed|patch_embed)(/|$)", decay ** (depth + 1))
    blocks = [(rf"(^|/)blocks_{i}/", decay ** (depth - i)) for i in range(depth)]
    return first, *blocks, ("", 1.0)
