"""SimSiam: the prediction of one view should be the embedding of the other, which is held still.

Chen and He, CVPR 2021; facebookresearch/simsiam, `simsiam/builder.py` and `main_simsiam.py`. The
backbone of the reference starts with `zero_init_residual`.

Logged: what shows a collapse (`_siamese.signs`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.methods import _siamese
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.objectives.regression import cosine_similarity
from jaxequi.types import Array, Batch, Features, Method, Output, Progress, PyTree


def make(
    *,
    backbone: nn.Module,
    projector: str = "2048-2048-2048",
    predictor: str = "512-2048",
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make SimSiam.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      projector: widths; it ends with a BatchNorm without scale and shift.
      predictor: widths; parameters under "predictor/" keep their first learning rate in the
        reference's `--fix-pred-lr`.
      norm: of projector and predictor.
      dtype: of their computations.

    Raises:
      ValueError: widths that cannot be read or that end differently; and when it meets a batch,
        one without two views.
    """
    options = {"norm": norm, "dtype": dtype, "bias": False, "last_bias": True}
    f = _siamese.projector(projector, last_norm=True, **options)
    h = _siamese.projector(predictor, **options)
    _siamese.check_widths(f, h)
    network = _siamese.Siamese(backbone, f, h)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        return _siamese.start(network, key, batch)

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        del progress
        views = _siamese.two_views(batch)
        seen, extra = network.see(params, extra, [views[:, 0], views[:, 1]], key)
        (_, z_1, p_1), (_, z_2, p_2) = seen
        z_1, z_2 = jax.lax.stop_gradient((z_1, z_2))
        epsilon = 1e-8  # of torch's CosineSimilarity
        both = cosine_similarity(p_1, z_2, epsilon) + cosine_similarity(p_2, z_1, epsilon)
        return -both / 2, Output(extra, _siamese.signs(seen), _siamese.stack(seen))

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        return network.evaluate(params, extra, views)

    return Method(init=init, loss=loss, encode=encode)
