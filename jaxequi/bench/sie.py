"""SIE's published step, and all of it that is above the backbone.

`heads`: features of ResNet-18 instead of images, projectors 2048-2048-2048, hypernetwork, losses,
online evaluator and Adam, batch 256. `step`: the same from images of 64 pixels, batch 32.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.bench import _program
from jaxequi.methods import sie, with_online_heads
from jaxequi.models import resnet
from jaxequi.nn.stored import Stored
from jaxequi.train import optim
from jaxequi.types import Batch

CLASSES, FEATURES = 55, 512


def run(repeats: int = 5) -> dict[str, Any]:
    """Time both; seconds by the clock and by the processor (least of `repeats`), bytes."""
    return {
        "heads": _measure(Stored(FEATURES), (256, 2, FEATURES), repeats),
        "step": _measure(resnet.make("resnet18"), (32, 2, 64, 64, 3), repeats),
    }


def _measure(backbone: nn.Module, shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    method = with_online_heads(
        sie.make(backbone=backbone, batch_size=shape[0]),
        num_classes=CLASSES,
        features=("representation", "embedding"),
        relation="rotation",
    )
    optimizer = optim.make(
        "adam", learning_rate=1e-3, weight_decay=1e-6, batch_size=shape[0], total_steps=100
    )
    batch: Batch = {
        "views": jax.random.normal(jax.random.key(1), shape),
        "latent": jax.random.uniform(jax.random.key(2), (shape[0], 2, 7)),
        "label": jnp.arange(shape[0]) % CLASSES,
    }
    return _program.measure(method, optimizer, batch, repeats)
