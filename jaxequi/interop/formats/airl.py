"""Files of megvii-research/revisitAIRL: `last_epoch_ckpt.pth.tar` of MoCo, S-MoCo and BYOL.

Theirs is a checkpoint's `model` without the prefix `module.`: `online_encoder.*`,
`target_encoder.*`, for MoCo the `queue` [K, D] and `queue_ptr`; beside it stands the `classifier`
that learns on representations. Ours is `{"params": ..., **extra}` of `methods.moco` or
`methods.byol`. Of `exp/supervised.py` it is torchvision's network with its `fc` called `fc.0`,
which is written so by --format=airl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.interop import mapping
from jaxequi.interop.formats import (
    File,
    Network,
    State,
    _optimizer,
    _pair,
    check,
    needed,
    torchvision,
)
from jaxequi.interop.mapping import Table
from jaxequi.types import PyTree

_CLASSIFIER = "label_representation"  # ours, of the heads beside the method
CLASSES = 1000  # theirs have no argument for it
_FILES = {  # BYOL, MoCo v2+ or BYOL, LARS -> below exp/
    (True, True, False): "byol",
    (True, True, True): "byol_based/byol_lars",
    (False, True, False): "mocov2_plus",
    (False, True, True): "moco_based/mcv2p_lars",
    (False, False, False): "mocov2",
}
_WIDTHS = {"resnet50": 1, "wide_resnet50_2": 2}  # ours -> their `width`
# Their heads by what they are in ours: layers of the projector, whether there is a predictor,
# batch_norm, last_bias, predict_keys.
HEADS = {
    (1, False, False, True, False): "cls",
    (2, False, False, True, False): "moco",
    (2, True, True, True, False): "byol",
    (2, False, True, False, False): "mcv2p_2l",
    (2, True, True, False, True): "mcv2p",
}


def table(config: ml_collections.ConfigDict) -> Table:
    """Make the table of a config: projector and predictor are one Sequential `fc`."""
    norm = config.method.name == "byol" or config.method.get("batch_norm", False)
    # the predictor goes on where the projector ends, with its last Linear
    start = _pair.place(f"linear_{len(_projector(config)) - 1}", norm) + 1

    def rename(module: str) -> str:
        top, _, layer = module.partition("/")
        if top == "backbone":
            return _pair.backbone(module)
        return f"fc.{_pair.place(layer, norm) + (start if top == 'predictor' else 0)}"

    return _pair.table(rename, "online_encoder", "target_encoder", classifier="classifier")


def matches(state: State) -> bool:
    """Whether these are the names of an online and a target encoder, or of the classifier."""
    parts = {name.partition(".")[0] for name in state}
    if "fc.0.weight" in state:
        return torchvision.matches(_with_fc(state))
    return {"online_encoder", "target_encoder"} <= parts


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is MoCo or BYOL over one of torchvision's ResNets."""
    return _pair.is_method(config, "moco", "byol")


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`. The classifier says itself what network it is of."""
    if "fc.0.weight" in state:
        return torchvision.read(_with_fc(state), config)
    config = needed(config, "configs/moco.py:VARIANT,paper or configs/byol.py:sgd,paper")
    classes = len(state.get("classifier.weight", ()))
    return _pair.read(state, config, native(config), table, classes)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write a checkpoint that `train.py --resume` takes; see `formats.Format`.

    Their training goes on at `epoch` with a fresh optimizer, whose first step is next to nothing:
    its rate is set after each step, for the next.
    """
    if _pair.is_method(config, "supervised"):
        return _supervised(config, variables, epoch)
    check(native(config), config)
    options = original(config)
    variables, left_out = _pair.without_heads(variables, _CLASSIFIER)
    state = mapping.to_torch(variables, table(config))
    classifier = {k: state.pop(k) for k in list(state) if k.startswith("classifier.")}
    content = {
        "start_epoch": epoch,
        "model": {f"module.{name}": array for name, array in state.items()},
        "optimizer": _optimizer.fresh(_groups(config, state)),
    }
    if len(classifier.get("classifier.bias", ())) == CLASSES:
        rate = config.get("optimizer", {}).get("groups", {}).get("online", {})
        group = _optimizer.sgd(rate.get("learning_rate", 30.0), 0.9, 0.0)
        content["classifier"] = {
            name.replace("classifier", "module"): array for name, array in classifier.items()
        }
        content["optimizer_cls"] = _optimizer.fresh([(2, group)])
    else:
        options += " CLS=False"  # resumes without a classifier
        if classifier:
            count = len(classifier["classifier.bias"])
            left_out += (f"{_CLASSIFIER}: of {count} classes, and theirs tells {CLASSES}",)
    return File(content, f"train.py {options}", left_out)


def original(config: ml_collections.ConfigDict) -> str:
    """Say with which arguments of `train.py` the original makes the network of a config.

    Raises:
      ValueError: it has no such network; says what of it.
    """
    method, width = config.method, _width(config)
    byol = method.name == "byol"
    projector, predictor = _projector(config), _predictor(config)
    batch_norm = byol or method.get("batch_norm", False)
    last_bias, predict_keys = method.get("last_bias", True), method.get("predict_keys", False)
    row = (len(projector), bool(predictor), batch_norm, last_bias, predict_keys)
    if row not in HEADS or (predictor and predictor != projector):
        raise Refusal(
            f"the original has no heads with projector={projector}, predictor={predictor}, "
            f"batch_norm={batch_norm}, last_bias={last_bias}, predict_keys={predict_keys}; its "
            "projector has one layer or two, and its predictor, if there is one, the same widths"
        )
    name = HEADS[row]
    plus = batch_norm or bool(method.get("symmetric"))  # whose trainer has a predictor
    lars = config.get("optimizer", {}).get("name") == "lars"
    file = _FILES[byol, plus, lars and plus]
    options = {"MLP": name, "low_dim": projector[-1], "width": width}
    if len(projector) == 2:
        options["hidden_dim"] = projector[0]
    if not byol:
        options["queue_size"] = method.get("queue", 65536)
    told = " ".join(f"{key}={value}" for key, value in options.items())
    return f"-f exp/{file}.py --exp-options {told}"


def _width(config: ml_collections.ConfigDict) -> int:
    """What theirs calls the width of the backbone."""
    architecture = _pair.architecture(config)
    if architecture not in _WIDTHS:
        raise Refusal(
            f"the original has no backbone {architecture!r}, only {' and '.join(_WIDTHS)}"
        )
    return _WIDTHS[architecture]


def _projector(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    default = "4096-256" if config.method.name == "byol" else "2048-128"
    return _pair.widths(config, "projector", default)


def _predictor(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    return _pair.widths(config, "predictor", "4096-256" if config.method.name == "byol" else "")


def _groups(
    config: ml_collections.ConfigDict, state: Mapping[str, np.ndarray]
) -> list[tuple[int, dict[str, Any]]]:
    """The groups of a fresh optimizer over the online encoder."""
    optimizer, names = config.get("optimizer", {}), _pair.parameters(state, "online_encoder.")
    decay = optimizer.get("weight_decay", 1e-4)
    if optimizer.get("name") != "lars":  # of which theirs has v2+ and BYOL alone
        return [(len(names), _optimizer.sgd(1e-6, 0.9, decay))]
    matrices = sum(state[name].ndim > 1 for name in names)
    lars = {"lr": 1e-6, "momentum": 0.9, "eta": 0.001, "max_epoch": 200}
    return [
        (matrices, {**lars, "weight_decay": decay}),
        (len(names) - matrices, {**lars, "weight_decay": 0.0}),
    ]


def _supervised(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    file = torchvision.write(config, _pair.without_heads(variables)[0], epoch)
    width = _width(config)
    state = {
        f"module.{name.replace('fc.', 'fc.0.')}": array for name, array in file.content.items()
    }
    decay = config.get("optimizer", {}).get("weight_decay", 1e-4)
    group = (len(_pair.parameters(state)), _optimizer.sgd(1e-6, 0.9, decay))
    content = {"start_epoch": epoch, "model": state, "optimizer": _optimizer.fresh([group])}
    options = f"low_dim={len(state['module.fc.0.bias'])} width={width}"
    return File(content, f"train.py -f exp/supervised.py --exp-options {options}")


def _with_fc(state: State) -> dict[str, np.ndarray]:
    return {name.replace("fc.0.", "fc."): array for name, array in state.items()}
