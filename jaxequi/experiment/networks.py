"""Backbones and methods of a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from jaxequi import names
from jaxequi.errors import Refusal
from jaxequi.methods import with_online_heads
from jaxequi.nn.norm import BatchNorm
from jaxequi.types import Method

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def follow_names(config: ml_collections.ConfigDict, overridden: Iterable[str]) -> None:
    """Where the command line names another backbone or method, drop what that one does not take.

    What the file says of its own part stays as far as the other part knows it; what the command
    line says stays, and is refused later if it does not fit. A backbone may be named by its
    architecture alone, `c8resnet18`.

    Raises:
      ValueError: an architecture that several models have, or none.
    """
    if "backbone.name" in overridden:
        _spell_out(config.backbone)
    for part, folder in (("backbone", "models"), ("method", "methods")):
        if f"{part}.name" not in overridden:
            continue
        taken = inspect.signature(names.find(folder, config[part].name)).parameters
        with config.unlocked():
            for field in list(config[part]):
                said = any(one.startswith(f"{part}.{field}") for one in overridden)
                if field != "name" and field not in taken and not said:
                    del config[part][field]


def _spell_out(backbone: ml_collections.ConfigDict) -> None:
    """Where a backbone is named by its architecture, name the model that has it."""
    models = names.choices("models")
    if backbone.name in models or "." in backbone.name:
        return
    knowing = [
        m for m in models if getattr(names.module("models", m), "knows", _nothing)(backbone.name)
    ]
    if len(knowing) > 1:
        raise Refusal(
            f"{backbone.name!r} is an architecture of {' and of '.join(knowing)}; say which: "
            f"--config.backbone.name={knowing[0]} --config.backbone.architecture={backbone.name}"
        )
    if knowing:
        with backbone.unlocked():
            backbone.architecture = backbone.name
            [backbone.name] = knowing


def _nothing(architecture: str) -> bool:
    del architecture
    return False


def dtype(config: ml_collections.ConfigDict) -> Any:
    """The dtype of the computation."""
    if config.dtype not in DTYPES:
        raise names.unknown("dtype", config.dtype, DTYPES)
    return DTYPES[config.dtype]


def norm(config: ml_collections.ConfigDict) -> Any:
    """Every BatchNorm of a network, but for what a layer says of itself."""
    given = dict(config.norm)
    if not 0 < given["momentum"] <= 1 or given["epsilon"] <= 0 or given["groups"] < 1:
        raise Refusal(
            f"norm={given}: momentum above 0 and at most 1, epsilon above 0, groups at least 1"
        )
    return functools.partial(BatchNorm, **given)


def make_backbone(config: ml_collections.ConfigDict) -> nn.Module:
    """Make the config's backbone: (images f32[B, H, W, 3], train) -> f32[B, R]."""
    return names.made(
        "models", config.backbone, remat=config.remat, dtype=dtype(config), norm=norm(config)
    )


def make_method(
    config: ml_collections.ConfigDict,
    facts: Mapping[str, Any],
    backbone: nn.Module | None = None,
) -> Method:
    """Make the config's method over its backbone, with the online heads that it asks for.

    Args:
      facts: of the data and the checkpoint: `num_classes`, `examples`, ...; they are what the
        method is told where the config leaves it open.
      backbone: in place of the config's.
    """
    common = {"dtype": dtype(config), "norm": norm(config)}
    if backbone is None:
        backbone = make_backbone(config)
    method = names.made("methods", filled(config.method, facts), backbone=backbone, **common)
    online = dict(config.online)
    if not online["features"] or not facts.get("num_classes"):
        return method
    online["num_classes"] = facts["num_classes"]
    return with_online_heads(method, dtype=common["dtype"], **online)


def filled(field: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of its method, with the facts that the method takes and it leaves open."""
    given = dict(field)
    taken = inspect.signature(names.find("methods", given.get("name", ""))).parameters
    for fact, value in facts.items():
        if fact in taken and given.get(fact) is None:
            given[fact] = value
    return given
