"""SimCLR: each view names its partner among all views of the batch.

Chen, Kornblith, Norouzi, Hinton, ICML 2020; facebookresearch/SIE, `src/models.py`: `SimCLR`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi.methods import _pair, _specs
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.types import Array, Method, Metrics


def make(
    *,
    backbone: nn.Module,
    projector: str = "2048-2048-2048",
    temperature: float = 0.1,
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make SimCLR, with the projector and temperature of its comparison with SIE.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      projector: widths.
      temperature: divides the cosines of the embeddings.
      norm: of the projector.
      dtype: of the projector's computations.

    Raises:
      ValueError: widths that cannot be read, or a temperature that is not above 0.
    """
    goal = _specs.objective({"name": "ntxent", "temperature": temperature})
    network = _pair.Plain(backbone, _pair.projector(projector, norm, dtype), free=0)

    def objective(pair: _pair.Pair) -> tuple[Array, Metrics]:
        x, y = pair.x.embedding, pair.y.embedding
        loss, terms = goal(x, x, y)
        return loss, {"invariance": terms["similarity"]}

    return _pair.make(network, objective)
