"""Backbones and methods of a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from jaxequi import arguments, names
from jaxequi.augment import turned_pairs
from jaxequi.errors import Refusal
from jaxequi.methods import with_online_heads, with_soft_equivariance
from jaxequi.nn.norm import BatchNorm
from jaxequi.types import Method

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def follow_names(config: ml_collections.ConfigDict, overridden: Iterable[str]) -> None:
    """Where the command line names another backbone or method, drop what that one does not take.

    What the file says of its own part stays as far as the other part knows it, an architecture if
    it is one of its `SIZES`, where it has such; what the command line says stays, and is refused
    later if it does not fit. A backbone may be named by its architecture alone, `c8resnet18`.

    Raises:
      ValueError: an architecture that several models have, or none.
    """
    if "backbone.name" in overridden:
        _spell_out(config.backbone)
    for part, folder in (("backbone", "models"), ("method", "methods")):
        if f"{part}.name" not in overridden:
            continue
        taken = inspect.signature(names.find(folder, config[part].name)).parameters
        sizes = getattr(names.module(folder, config[part].name), "SIZES", None)
        with config.unlocked():
            for field, value in list(config[part].items()):
                said = any(one.startswith(f"{part}.{field}") for one in overridden)
                foreign = field == "architecture" and sizes is not None and value not in sizes
                if field != "name" and (field not in taken or foreign) and not said:
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


def optimizer_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The options of `optim.make`, with what depends on the backbone and the run written out.

    `layer_decay` becomes the `scales` of the backbone's layers, and `base_lr_of_epochs`, pairs of
    a number of epochs and its base_lr, the rate of this run, unless `base_lr` is given.

    Raises:
      ValueError: a length of run without a rate; scales beside a layer decay, or a backbone that
        does not say how its layers lie.
    """
    options = config.optimizer.to_dict()
    rates, decay = (options.pop(name, None) for name in ("base_lr_of_epochs", "layer_decay"))
    if rates is not None and options.get("base_lr") is None:
        arguments.check("optimizer.base_lr_of_epochs", rates, Sequence[tuple[int, float]])
        options["base_lr"] = _rate_of(config.total_epochs, dict(rates))
    if decay is not None:
        if options.get("scales"):
            raise Refusal(f"optimizer.layer_decay={decay} and scales: give one of the two")
        options["scales"] = _scales(config, decay)
    return options


def _rate_of(epochs: int | None, rates: Mapping[int, float]) -> float:
    if epochs is None or epochs not in rates:
        known = ", ".join(f"{rate} for {n}" for n, rate in sorted(rates.items()))
        raise Refusal(
            f"total_epochs={epochs}: the recipe's base_lr is known for some numbers of epochs only "
            f"({known}); take one of them, or say --config.optimizer.base_lr"
        )
    return rates[epochs]


def _scales(config: ml_collections.ConfigDict, decay: float) -> tuple[tuple[str, float], ...]:
    arguments.check("optimizer.layer_decay", decay, float)
    if not 0 < decay <= 1:
        raise Refusal(f"optimizer.layer_decay={decay}: above 0 and at most 1, such as 0.75")
    backbone: Any = make_backbone(config)
    if not hasattr(backbone, "layer_decay"):
        raise Refusal(
            f"optimizer.layer_decay={decay}: a backbone named {config.backbone.name!r} does not "
            "say how its layers lie; take 'vit', or write optimizer.scales out"
        )
    return backbone.layer_decay(decay)


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
    if _softly(config):
        if config.remat:
            raise Refusal(
                "soft_equivariance and remat=True: maps that are computed again cannot be seen; "
                "set --config.remat=False"
            )
        method = with_soft_equivariance(method, **config.soft_equivariance)
    online = dict(config.online)
    if not online["features"] or not facts.get("num_classes"):
        return method
    online["num_classes"] = facts["num_classes"]
    return with_online_heads(method, dtype=common["dtype"], **online)


def _softly(config: ml_collections.ConfigDict) -> bool:
    """Whether a term of soft equivariance is asked for; runs of before it have no such field."""
    return bool(config.get("soft_equivariance", {}).get("weight"))


def shown(config: ml_collections.ConfigDict, augment: Any) -> Any:
    """The augmentation of training, with the moved pairs that soft equivariance asks for."""
    if not _softly(config):
        return augment
    return turned_pairs(augment, config.soft_equivariance.pairs)


def filled(field: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of its method, with the facts that the method takes and it leaves open.

    A fact that is a function is called if it is taken.
    """
    given = dict(field)
    taken = inspect.signature(names.find("methods", given.get("name", ""))).parameters
    for fact, value in facts.items():
        if fact in taken and given.get(fact) is None:
            given[fact] = value() if callable(value) else value
    return given
