"""Files of Wangt-CN/EqInv: `model_ipirm.pth` of stage 1, and `checkpoint.pth.tar` of what follows.

The encoder of stage 1 is a Sequential of a torchvision ResNet's children, `f`, beside a projection
`g`, which no later stage reads: ours is a backbone alone. Later files have the prefix `module.`,
and are told by what else they hold: `model.f`, `fc`, `mask_layer` and `mlp` of `methods.eqinv`;
without the last two the baseline that starts with stage 1; `model.conv1` and so on, that from
scratch, both `methods.supervised`. The environments of a training set are in none of them.

The reference loads stage 1 by names that fit, and goes on without a word where none does; here
every name has a place, or the file is refused.
"""

from __future__ import annotations

import re

import ml_collections
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _pair, _resnet, check, torchvision
from jaxequi.interop.mapping import SAME, Layout, Table
from jaxequi.types import OWN, PyTree

IGNORED = {
    r"g\.": "the projection of stage 1, which no later stage reads",
    **mapping.COUNTERS,
}
_STEM = {"conv1": "f.0", "bn1": "f.1"}
_MLP = {"linear_0": "0", "norm_0": "1", "linear_1": "3"}
HIDDEN = "512-128"  # of `mlp`; the original can have no other
ENCODER, EQINV, BASELINE, SCRATCH = "encoder", "eqinv", "baseline", "scratch"


def _kind(state: State) -> str | None:
    """Which of the four files has these names."""
    tops = {name.split(".")[0] for name in state}
    inner = {name.split(".")[1] for name in state if name.startswith("model.")}
    if tops == {"f", "g"}:
        stem = state.get("f.0.weight")
        return ENCODER if stem is not None and stem.shape[2:] == (7, 7) else None
    if tops == {"model", "fc", "mask_layer", "mlp"} and inner == {"f"}:
        return EQINV
    if tops == {"model", "fc"}:
        return BASELINE if inner == {"f"} else SCRATCH if "conv1" in inner else None
    return None


def _table(kind: str) -> Table:
    def rename(module: str) -> str:
        top, _, layer = module.partition("/")
        if top == "classifier":
            return "fc"
        if top == "projector":
            return f"mlp.{_MLP[layer]}"
        name = _resnet.rename(layer)
        if kind != SCRATCH:
            name = _STEM.get(name) or re.sub(r"^layer(\d)", lambda m: f"f.{int(m[1]) + 3}", name)
        return name if kind == ENCODER else f"model.{name}"

    modules = mapping.by_module(rename)

    def look_up(path: str) -> tuple[str, Layout]:
        return ("mask_layer", SAME) if path == "params/mask/values" else modules(path)

    return look_up


def matches(state: State) -> bool:
    """Whether these are the names of one of the four files."""
    return _kind(state) is not None


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is EqInv over one of torchvision's ResNets."""
    return _pair.is_method(config, "eqinv")


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`. It says itself what network it is of."""
    kind = _kind(state)
    assert kind is not None
    if config is not None:
        check(native(config) and kind == EQINV, config)
    classes = len(state["fc.bias"]) if kind != ENCODER else 1000
    architecture = torchvision.architecture(_of_torchvision(state))
    described = torchvision.described(architecture, classes)
    if kind == EQINV:
        described.train.num_views = 2
        described.method = {"name": "eqinv", "num_classes": classes, "examples": 1}
    config = config or described
    template = networks.shapes(config, classes)
    own = template.pop(OWN, None)
    if kind == ENCODER:
        template = networks.under_backbone(networks.backbone(template))
        config.method = None
    left_out = mapping.passed_over(state, IGNORED)
    variables = mapping.from_torch(state, template, _table(kind), IGNORED)
    if own is not None:  # a run that learns makes its environments before its first step
        variables[OWN] = {name: np.zeros(s.shape, s.dtype) for name, s in own.items()}
    return Network(variables, config, left_out)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write a checkpoint of stage 3, or of a backbone alone stage 1; see `formats.Format`."""
    alone = config.method is None and config.backbone.name == "torchvision_resnet"
    check(alone or native(config), config)
    if config.backbone.get("architecture", "resnet50") != "resnet50":
        raise Refusal(f"the original has a resnet50, and this run a {config.backbone.architecture}")
    if alone:
        state = mapping.to_torch(variables, _table(ENCODER))
        loads = "vipriors_eqinv.py --pretrain_path, which goes on without the projection g"
        return File(dict(state), loads)
    method = config.method
    activation, widths = method.get("activation", "sigmoid"), method.get("projector", HIDDEN)
    if activation == "gumbel" or widths != HIDDEN:
        raise Refusal(
            f"the original has a mask of one number a feature and an mlp of {HIDDEN}, this run has "
            f"activation {activation!r} and a projector {widths}"
        )
    variables = {name: tree for name, tree in variables.items() if name != OWN}
    state = mapping.to_torch(variables, _table(EQINV))
    content = {
        "epoch": epoch,
        "arch": "resnet18",  # as theirs says, whatever it is
        "state_dict": {f"module.{name}": array for name, array in state.items()},
        "best_acc1": 0.0,
    }
    loads = f"vipriors_eqinv.py --opt_mask --mlp --activat_type {activation} (its state_dict)"
    left_out = (f"{OWN}: the original keeps the environments in a file of its own",)
    return File(content, loads, left_out)


def _of_torchvision(state: State) -> State:
    """The arrays of the ResNet under torchvision's names."""
    stem = {theirs: ours for ours, theirs in _STEM.items()}
    found = {}
    for name, array in state.items():
        rest = name.removeprefix("model.")
        if not rest.startswith("f."):
            found[rest] = array
            continue
        _, number, inner = rest.split(".", 2)
        found[f"{stem.get(f'f.{number}') or f'layer{int(number) - 3}'}.{inner}"] = array
    return {k: v for k, v in found.items() if k.partition(".")[0] not in ("g", "mlp", "mask_layer")}
