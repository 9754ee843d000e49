"""Published steps of augmentation-invariant learning, on small pictures.

`moco`, `byol`: MoCo v2 and BYOL with ResNet-50, 16 pairs of 96 pixels, SGD; a queue of 65536.
`mae`: ViT-B/16, 8 pictures of 128 pixels, AdamW.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxequi.bench import _program
from jaxequi.methods import byol, mae, moco
from jaxequi.models import torchvision_resnet, vit
from jaxequi.train import optim


def run(repeats: int = 3) -> dict[str, Any]:
    """Time each; see `_program.measure`."""
    sized: dict[str, Any] = {"total_steps": 100, "base_lr": 0.03}
    sgd = optim.make("sgd", momentum=0.9, weight_decay=1e-4, batch_size=16, **sized)
    adamw = optim.make(
        "adamw", betas=(0.9, 0.95), weight_decay=0.05, no_decay="bias|scale", batch_size=8, **sized
    )
    pairs = jax.random.normal(jax.random.key(1), (16, 2, 96, 96, 3), jnp.float32)
    pictures = jax.random.normal(jax.random.key(1), (8, 1, 128, 128, 3), jnp.float32)
    resnet50 = torchvision_resnet.make("resnet50")
    asked = {
        "moco": (moco.make(backbone=resnet50), sgd, pairs),
        "byol": (byol.make(backbone=resnet50), sgd, pairs),
        "mae": (mae.make(backbone=vit.make("base")), adamw, pictures),
    }
    return {
        name: _program.measure(method, optimizer, {"views": views}, repeats)
        for name, (method, optimizer, views) in asked.items()
    }
