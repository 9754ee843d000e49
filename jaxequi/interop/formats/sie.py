"""Files of facebookresearch/SIE: `model.pth` of a training, `final_weights.pth` of its backbone.

Theirs is a checkpoint's `model` without the prefix `module.`; ours is `{"params": ..., **extra}` of
any SIE method with the heads that learn beside it. `main.py` loads strictly, so what is written for
it must be one of its fourteen classes to the last array; `original` says which, and with what
arguments. The evaluations (`eval_*.py`) load loosely and train on random weights where a name or a
shape differs, so the same is asked of a backbone alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _resnet, check, needed
from jaxequi.models import resnet
from jaxequi.types import PyTree

HEADS = "online"  # ours, in params: the heads beside the method
CLASSES = 55  # of 3DIEBench; main.py has no argument for it
_INSTEAD = "--backbone writes what the evaluations load"
_CLASSIFIER = "evaluator.classifier_repr.weight"  # its rows are the classes; every class has it
_PARTS = {"projector", "projector_inv", "projector_equi", "predictor", "evaluator"}
_HEAD_KINDS = {"label": "classifier", "relation": "predictor_angles"}
_FEATURES = {"representation": "repr", "embedding": "emb"}
_UNASKED = re.compile(r"label_\w+-equi|relation_\w+-inv")  # heads that theirs does not have

# Their classes, by what tells them apart in a config of ours. A field that a row does not name is
# that of `_FACTS`.
_FACTS = {"objective": "", "relation": "rotation", "vary_prediction": True, "free": False}
_ROTCOLOR = {"relation": "rotation+color"}
EXPERIENCES: Mapping[str, Mapping[str, Any]] = {
    "SIE": {"name": "sie"},
    "SIENoVar": {"name": "sie", "vary_prediction": False},
    "SIERotColor": {"name": "sie", **_ROTCOLOR},
    "SIEOnlyEqui": {"name": "only_equi", "objective": "vicreg"},
    "VICReg": {"name": "vicreg"},
    "VICRegPartInv": {"name": "vicreg", "free": True},
    "VICRegEquiMod": {"name": "equimod", "objective": "vicreg"},
    "SimCLR": {"name": "simclr"},
    "SimCLROnlyEqui": {"name": "only_equi", "objective": "ntxent"},
    "SimCLROnlyEquiRotColor": {"name": "only_equi", "objective": "ntxent", **_ROTCOLOR},
    "SimCLREquiMod": {"name": "equimod", "objective": "ntxent"},
    "SimCLREquiModRotColor": {"name": "equimod", "objective": "ntxent", **_ROTCOLOR},
    "SimCLRAugSelf": {"name": "augself", "objective": "ntxent"},
    "SimCLRAugSelfRotColor": {"name": "augself", "objective": "ntxent", **_ROTCOLOR},
}


def rename(module: str) -> str:
    """ "projector_inv/norm_1" -> "projector_inv.4"."""
    top, *path = module.split("/")
    if top == "backbone":
        return _resnet.rename(module)
    if top == HEADS:  # label_representation-inv -> classifier_inv_repr
        kind, name = path[0].split("_")
        feature, _, part = name.partition("-")
        path[0] = "_".join(filter(None, [_HEAD_KINDS[kind], part, _FEATURES[feature]]))
        top = "evaluator"
    # Theirs are numbered by their place in a Sequential: Linear, BatchNorm, ReLU in a projector,
    # Linear, ReLU elsewhere.
    stride = 3 if top.startswith("projector") else 2
    for i, part in enumerate(path):
        if match := re.fullmatch(r"(linear|norm|hypernetwork)_(\d+)", part):
            kind, place = match[1], stride * int(match[2]) + (match[1] == "norm")
            path[i] = f"hypernet.net.{place}" if kind == "hypernetwork" else str(place)
        elif part == "mlp":
            path[i] = "pred"
    return ".".join([top, *path])


TABLE = mapping.by_module(rename)
BACKBONE = _resnet.TABLE


def matches(state: State) -> bool:
    """Whether these are the names of a whole model, or of one of its backbones alone."""
    parts = {name.partition(".")[0] for name in state}
    if parts == {"backbone_inv", "backbone_equi"}:
        return True
    if "backbone" in parts:
        return "evaluator" in parts and parts - {"backbone"} <= _PARTS
    # a block of two layers has no convolution on that shortcut in any other system
    return _resnet.is_backbone(state) and "layer1.0.downsample.0.weight" in state


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is one of SIE's methods, or its backbone alone."""
    if config.backbone.name != "resnet":
        return False
    return config.method is None or config.method.name in {e["name"] for e in EXPERIENCES.values()}


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`. A backbone alone leaves the config no method."""
    config = needed(config, "configs/sie.py:VARIANT,paper")
    check(native(config), config)
    config = _with_their_heads(config)
    left_out = mapping.passed_over(state, mapping.COUNTERS)
    classes = len(state[_CLASSIFIER]) if _CLASSIFIER in state else CLASSES
    template = networks.shapes(config, classes)
    if any(name.startswith("backbone.") for name in state):
        return Network(mapping.from_torch(state, template, TABLE), config, left_out)
    backbone = mapping.from_torch(state, networks.backbone(template), BACKBONE)
    config.method = None
    return Network(networks.under_backbone(backbone), config, left_out)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write `model.pth`, or of a backbone alone `final_weights.pth`; see `formats.Format`.

    Their training goes on at `epoch` with a fresh optimizer: the network alone is carried over.
    """
    check(native(config), config)
    architecture = _architecture(config)
    if config.method is None:
        state = mapping.to_torch(networks.backbone(variables), BACKBONE)
        where = f"eval_classification.py and the like, --arch {architecture}"
        return File(dict(state), f'{where}; its name must have "final_weights" in it')
    arguments = original(config)
    variables, left_out = _without_unasked(variables)
    state = mapping.to_torch(variables, TABLE)
    if _CLASSIFIER not in state:
        raise Refusal(
            "main.py's models have heads that learn beside the method, and this run trained none; "
            f"{_INSTEAD}"
        )
    template = networks.shapes(_with_their_heads(config), CLASSES)
    blank = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), template)
    lacking = sorted(mapping.to_torch(blank, TABLE).keys() - state.keys())
    if lacking:
        raise Refusal(
            f"main.py's models have {', '.join(lacking[:3])}{' ...' * (len(lacking) > 3)}, and "
            "this run did not train them (config.online: whole_parts=True, features "
            f"representation and embedding); {_INSTEAD}"
        )
    if len(state[_CLASSIFIER]) != CLASSES:
        raise Refusal(
            f"main.py's heads tell {CLASSES} classes, and those of this run "
            f"{len(state[_CLASSIFIER])}; {_INSTEAD}"
        )
    content = {
        "epoch": epoch,
        "model": {f"module.{name}": array for name, array in state.items()},
        "optimizer": {"state": {}, "param_groups": [_adam(config, state)]},
    }
    return File(content, f"main.py {arguments}", left_out)


def _with_their_heads(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the heads that each of their models has."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.online = {
        "features": ("representation", "embedding"),
        "relation": "rotation",
        "every_part": False,
        "whole_parts": True,
    }
    return config


def original(config: ml_collections.ConfigDict) -> str:
    """Say with which arguments of `main.py` the original makes the network of a config.

    Raises:
      ValueError: it has no such network; says what of it.
    """
    method = config.method
    facts = {
        "name": method.name,
        "objective": method.get("objective", {"name": ""})["name"],
        "relation": method.get("relation", "rotation"),
        "vary_prediction": method.get("vary_prediction", True),
        "free": bool(method.get("free", 0)),
    }
    experience = next((k for k, row in EXPERIENCES.items() if {**_FACTS, **row} == facts), None)
    if experience is None:
        told = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        raise Refusal(
            f"the original has no class with {told}, only {', '.join(EXPERIENCES)}; {_INSTEAD}"
        )
    arguments = ["--experience", experience, "--arch", _architecture(config)]
    arguments += ["--mlp", method.get("projector", "2048-2048-2048")]
    if facts["name"] == "sie":
        arguments += ["--equi", str(method.get("equi", 256))]
    if facts["free"]:
        arguments += ["--equi", str(method.free)]
    if facts["name"] in ("sie", "only_equi", "equimod"):
        arguments += _predictor(method.get("predictor", {"name": "hypernetwork"}), experience)
    return " ".join(arguments)


def _architecture(config: ml_collections.ConfigDict) -> str:
    """Say what they call the backbone of a config.

    Raises:
      ValueError: they have none such; says what of it.
    """
    backbone = config.backbone
    architecture = backbone.get("architecture", "resnet18")
    reasons = []
    if backbone.get("stem", "imagenet") != "imagenet":
        reasons.append(f"stem={backbone.stem!r}, and theirs is 7x7 with a pool")
    if backbone.get("width", 64) != 64:
        reasons.append(f"width={backbone.width}, and theirs is 64")
    if architecture not in resnet.NETWORKS or architecture == "resnet10":
        known = ", ".join(name for name in resnet.NETWORKS if name != "resnet10")
        reasons.append(f"architecture={architecture!r}, and theirs are {known}")
    if reasons:
        raise Refusal(f"the original has no such backbone: {'; '.join(reasons)}")
    return architecture


def _predictor(predictor: Mapping[str, Any], experience: str) -> list[str]:
    """The arguments of a predictor."""
    if (
        predictor["name"] == "mlp" and experience != "SIERotColor"
    ):  # which takes no notice of the type
        return ["--predictor-type", "mlp", "--tf-num-layers", str(predictor.get("layers", 1))]
    if predictor["name"] != "hypernetwork":
        raise Refusal(
            f"the original's {experience} has no predictor {predictor['name']!r}; {_INSTEAD}"
        )
    arguments = ["--hypernetwork", "deep"] if predictor.get("deep") else []
    arguments += ["--predictor", predictor["hidden"]] if predictor.get("hidden") else []
    switches = {"bias": "bias-hypernet", "predicted_bias": "bias-pred", "relu": "predictor-relu"}
    return arguments + [f"--{theirs}" for ours, theirs in switches.items() if predictor.get(ours)]


def _without_unasked(variables: PyTree) -> tuple[PyTree, tuple[str, ...]]:
    """Leave out the heads that ask a part for what it should not know; theirs has none such."""
    leaves = traverse_util.flatten_dict(variables)
    unasked = {p for p in leaves if p[1] == HEADS and _UNASKED.fullmatch(p[2])}
    if not unasked:
        return variables, ()
    heads = sorted({path[2] for path in unasked})
    line = f"{', '.join(heads)}: the original asks no part for what it should not know"
    rest = {path: leaf for path, leaf in leaves.items() if path not in unasked}
    return traverse_util.unflatten_dict(rest), (line,)


def _adam(config: ml_collections.ConfigDict, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The group of a fresh Adam over all weights and biases, as main.py makes it."""
    parameters = [k for k in state if k.rpartition(".")[2] in ("weight", "bias")]
    optimizer = config.get("optimizer", {})
    return {
        "lr": optimizer.get("learning_rate", 1e-3),
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": optimizer.get("weight_decay", 1e-6),
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "params": list(range(len(parameters))),
    }
