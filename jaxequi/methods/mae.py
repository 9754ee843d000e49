"""MAE: fill in the hidden patches of an image.

He et al., CVPR 2022; facebookresearch/mae, `models_mae.py`. The representation is the class token
that has seen the patches left.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.models import mae
from jaxequi.models.vit import ViT
from jaxequi.nn import transformer
from jaxequi.objectives.reconstruction import masked_patch_error
from jaxequi.types import Array, Batch, Features, Method, Output, Progress, PyTree


def masking(noise: Array, kept: int) -> tuple[Array, Array]:
    """Choose the patches with the least noise, f32[N, L].

    facebookresearch/mae, `models_mae.py`, `random_masking`.

    Returns:
      keep i32[N, kept], least noise first; and restore i32[N, L], where each patch stands in
      [kept, hidden] in the order of noise: it is hidden where that is `kept` or more.
    """
    order = jnp.argsort(noise, axis=1)
    return order[:, :kept], jnp.argsort(order, axis=1)


def make(
    *,
    backbone: ViT,
    mask_ratio: float = 0.75,
    normalize: bool = True,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    dtype: Any = jnp.float32,
) -> Method:
    """Make MAE; a batch has one view.

    Args:
      backbone: a `models.vit` that pools the class token.
      mask_ratio: share of the patches that are hidden; int(L (1 - ratio)) of L are kept.
      normalize: the target is each patch with mean 0 and deviation 1.
      decoder_width, decoder_depth, decoder_heads: see `models.mae`; of the backbone it takes
        `mlp_ratio` and `remat`.
      dtype: of the decoder's computations.

    Raises:
      ValueError: a ratio outside (0, 1), a backbone that pools the mean or is no `models.vit`, a
        decoder that cannot be; and when it meets a batch, patches that do not fill the images, a
        ratio that leaves none, or another number of views.
    """
    if not 0 < mask_ratio < 1:
        raise Refusal(f"mask_ratio={mask_ratio}: a share of the patches, above 0 and below 1")
    if not isinstance(backbone, ViT) or backbone.pool != "token":
        raise Refusal(
            f"MAE hides tokens of a vision transformer, and norms each of them: give a backbone "
            f"named 'vit' with pool='token', not {backbone!r}"
        )
    decoder = mae.make(
        backbone.patch,
        width=decoder_width,
        depth=decoder_depth,
        heads=decoder_heads,
        mlp_ratio=backbone.mlp_ratio,
        dtype=dtype,
        remat=backbone.remat,
    )

    def images_of(batch: Batch) -> Array:
        views = batch["views"]
        if views.ndim != 5 or views.shape[1] != 1:
            raise Refusal(
                f"MAE takes one view of each example, batch['views'] [B, 1, H, W, 3], not "
                f"{views.shape}; give the data set one pipe of `views`"
            )
        return views[:, 0]

    def grid(images: Array) -> tuple[int, int]:
        return images.shape[1] // backbone.patch, images.shape[2] // backbone.patch

    def choose(key: Array, images: Array) -> tuple[Array, Array]:
        rows, columns = grid(images)
        kept = int(rows * columns * (1 - mask_ratio))
        if not kept:
            raise Refusal(f"mask_ratio={mask_ratio} leaves none of {rows * columns} patches")
        return masking(jax.random.uniform(key, (len(images), rows * columns)), kept)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        keys, images = jax.random.split(key, 3), images_of(batch)
        keep, restore = choose(keys[0], images)
        latent, encoder = backbone.init_with_output(keys[1], images, True, keep)
        parameters = decoder.init(keys[2], latent, restore, *grid(images))
        return {"backbone": encoder["params"], "decoder": parameters["params"]}, {}

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        del progress
        images = images_of(batch)
        mask_key, drop_key = jax.random.split(key)
        keep, restore = choose(mask_key, images)
        latent: Any = backbone.apply(
            {"params": params["backbone"]}, images, True, keep, rngs={"dropout": drop_key}
        )
        prediction: Any = decoder.apply(
            {"params": params["decoder"]}, latent, restore, *grid(images)
        )
        patches = transformer.patchify(images, backbone.patch)
        hidden = (restore >= keep.shape[1]).astype(jnp.float32)
        error = masked_patch_error(prediction, patches, hidden, normalize)
        return error, Output(extra, {}, {"representation": latent[:, :1]})

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        del extra
        images = views.reshape(-1, *views.shape[2:])
        representation: Any = backbone.apply({"params": params["backbone"]}, images, False)
        return {"representation": representation.reshape(*views.shape[:2], -1)}

    return Method(init=init, loss=loss, encode=encode, mean_over_examples=True)
