"""VICReg: the embeddings of two views alike, kept from collapsing by variance and covariance.

Bardes, Ponce, LeCun, ICLR 2022; facebookresearch/SIE, `src/models.py`: `VICReg`, `VICRegPartInv`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.methods import _pair
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.objectives import vicreg
from jaxequi.types import Array, Method, Metrics


def make(
    *,
    backbone: nn.Module,
    projector: str = "2048-2048-2048",
    free: int = 0,
    similarity_weight: float = 10.0,
    variance_weight: float = 10.0,
    covariance_weight: float = 1.0,
    batch_size: int | None = None,
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make VICReg; the weights are those of its comparison with SIE.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      projector: widths.
      free: how many of the last dimensions of the embedding need not be alike (`VICRegPartInv`).
      batch_size: covariances are divided by it less one; by default it is the rows of the batch.
      norm: of the projector.
      dtype: of the projector's computations.

    Raises:
      ValueError: `free` leaves nothing to be alike, or widths that cannot be read.
    """
    head = _pair.projector(projector, norm, dtype)
    alike = head.widths[-1] - free
    if not 0 < alike <= head.widths[-1]:
        raise Refusal(
            f"free={free} of an embedding of {head.widths[-1]} dimensions; "
            f"use 0 to {head.widths[-1] - 1}"
        )

    def objective(pair: _pair.Pair) -> tuple[Array, Metrics]:
        x, y = pair.x.embedding, pair.y.embedding
        loss, terms = vicreg.regularization(x, y, variance_weight, covariance_weight, batch_size)
        terms["invariance"] = vicreg.invariance(x[:, :alike], y[:, :alike])
        return loss + similarity_weight * terms["invariance"], terms

    return _pair.make(_pair.Plain(backbone, head, free), objective)
