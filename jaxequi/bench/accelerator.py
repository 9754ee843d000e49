"""Published train steps on the accelerator at hand, in f32 and in bf16, beside torch where it is.

    python -m jaxequi.bench accelerator > accelerator.json

Images are drawn once, on the device: no loader, no augmentation. `sie` is SIE with ResNet-18 and
256 pixels, `moco` MoCo v2 with ResNet-50 and a queue of 65536, `mae` MAE with ViT-B/16,
`c8resnet50` and `p4resnet44` are classified; with 224 and 32 pixels. `bytes` are arguments and
what the compiler sets aside, `peak_bytes` what the device had in use, where it tells. `torch` is
the same networks and losses in torch's own layers, on its GPU if it has one: f32 as torch has it
by default, and bf16 by autocast; absent where torch is not installed.

Each measurement has a process, and so the device, to itself. One that fails, dies or takes longer
than `PATIENCE` has `error` in place of numbers. Each is a line of JSON on stderr as soon as it is
there, so that what is cut short keeps what it has. It has not run on a GPU yet.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxequi.bench import _apart, _program, _torch
from jaxequi.methods import mae, moco, sie, supervised
from jaxequi.models import gresnet, resnet, steerable_resnet, torchvision_resnet, vit
from jaxequi.train import optim
from jaxequi.types import Batch, Method

BATCH = {"sie": 128, "moco": 128, "mae": 128, "c8resnet50": 64, "p4resnet44": 128}
SIDE = {"sie": 256, "moco": 224, "mae": 224, "c8resnet50": 225, "p4resnet44": 32}
TINY_BATCH, TINY_SIDE = 4, 32
QUEUE, CLASSES = 65536, 1000
DTYPES: Mapping[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PATIENCE = 300.0  # seconds for a measurement, with all that it compiles


def run(tiny: bool = False, repeats: int = 10) -> dict[str, Any]:
    """Measure all.

    Args:
      tiny: four images of 32 pixels and narrow networks, to see that it runs.
      repeats: of each step, of which the fastest counts.

    Returns:
      By step and type of the computation its device, seconds, examples a second, bytes and
      operations a second.
    """
    found: dict[str, Any] = {"jax": jax.__version__}
    parts = [(ours, name, found) for name in BATCH]
    if importlib.util.find_spec("torch"):
        found["torch"] = {}
        parts += [(torchs, name, found["torch"]) for name in _torch.STEPS]
    order = list(BATCH)
    for measure, name, where in sorted(parts, key=lambda part: order.index(part[1])):
        where[name] = {}
        for kind in DTYPES:
            one = _apart.call(PATIENCE, measure, name, kind, tiny, repeats)
            where[name][kind] = one
            said = {"step": name, "dtype": kind, "of": measure.__name__, **one}
            print(json.dumps(said), file=sys.stderr, flush=True)
    return found


def ours(name: str, kind: str, tiny: bool, repeats: int) -> dict[str, Any]:
    """Measure one of our steps in one type."""
    device, rows = jax.devices()[0], TINY_BATCH if tiny else BATCH[name]
    batch = _batch(name, rows, TINY_SIDE if tiny else SIDE[name])
    optimizer = optim.make("sgd", momentum=0.9, base_lr=0.03, batch_size=rows, total_steps=100)
    method = _methods(tiny)[name](DTYPES[kind])
    one: dict[str, Any] = _program.measure(method, optimizer, batch, repeats)
    return {
        "device": device.device_kind,
        **one,
        "batch_size": rows,
        "examples_per_second": rows / one["seconds"],
        "flops_per_second": one["flops"] / one["seconds"],
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }


def torchs(name: str, kind: str, tiny: bool, repeats: int) -> dict[str, Any]:
    """Measure the same step of torch."""
    rows, side = (TINY_BATCH, TINY_SIDE) if tiny else (BATCH[name], SIDE[name])
    return _torch.measure(name, kind, rows, side, repeats)


def _methods(tiny: bool) -> dict[str, Callable[[Any], Method]]:
    """What makes each method, given the type of its computation."""

    def of_sie(dtype: Any) -> Method:
        name, width = ("resnet10", 8) if tiny else ("resnet18", 64)
        backbone = resnet.make(name, width=width, dtype=dtype)
        rows = TINY_BATCH if tiny else BATCH["sie"]
        equi, projector = (8, "16-16") if tiny else (256, "2048-2048-2048")
        return sie.make(
            backbone=backbone, equi=equi, projector=projector, batch_size=rows, dtype=dtype
        )

    def of_moco(dtype: Any) -> Method:
        name, width = ("resnet18", 4) if tiny else ("resnet50", 64)
        backbone = torchvision_resnet.make(name, width=width, dtype=dtype)
        return moco.make(backbone=backbone, queue=64 if tiny else QUEUE, dtype=dtype)

    def of_mae(dtype: Any) -> Method:
        backbone = vit.make("base", depth=1 if tiny else None, dtype=dtype)
        return mae.make(backbone=backbone, decoder_depth=1 if tiny else 8, dtype=dtype)

    def of_c8(dtype: Any) -> Method:
        name, width = ("c8resnet10", 2) if tiny else ("c8resnet50", None)
        return supervised.make(steerable_resnet.make(name, width, dtype=dtype), CLASSES)

    def of_p4(dtype: Any) -> Method:
        network = gresnet.make("p4resnet44", dtype=dtype)
        if tiny:
            network = network.clone(widths=(2, 4), blocks=(1, 1))
        return supervised.make(network, CLASSES)

    return {
        "sie": of_sie,
        "moco": of_moco,
        "mae": of_mae,
        "c8resnet50": of_c8,
        "p4resnet44": of_p4,
    }


def _batch(name: str, rows: int, side: int) -> Batch:
    views = 2 if name in ("sie", "moco") else 1
    return {
        "views": jax.random.normal(jax.random.key(1), (rows, views, side, side, 3)),
        "latent": jax.random.uniform(jax.random.key(2), (rows, views, 7)),
        "label": jnp.arange(rows) % CLASSES,
    }
