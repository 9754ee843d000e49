"""Files of facebookresearch/mae's linear probe: `checkpoint-*.pth` of `main_linprobe.py`.

Theirs is a checkpoint's `model`: the encoder, which learned no more, and a `head` of BatchNorm
without scale and shift and a Linear. Ours is `{"params": ..., **extra}` of `methods.linear` with
one linear head and batch_norm="before": configs/linear.py:mae. A table of positions is "fixed" if
it is the code of sines and cosines, else "learned".
"""

from __future__ import annotations

from typing import Any

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _vit, check, vit
from jaxequi.interop.mapping import Layout
from jaxequi.types import OWN, PyTree

EPSILON = 1e-6  # of theirs; the file does not hold it
_METHOD = {
    "name": "linear",
    "heads": {"classification": ("linear",)},
    "parts": ("all",),
    "batch_norm": "before",
    "norm_epsilon": EPSILON,
}
_ENCODER = f"{OWN}/backbone/"
_head = mapping.by_module(lambda module: "head.0" if module.endswith("-norm") else "head.1")


def table(path: str) -> tuple[str, Layout]:
    """The table of the frozen encoder and of the head with its norm."""
    if path.startswith(_ENCODER):
        collection, _, rest = path.removeprefix(_ENCODER).partition("/")
        return _vit.table(f"{collection}/backbone/{rest}")
    return _head(path)


def matches(state: State) -> bool:
    """Whether these are the names of an encoder and a head of two layers."""
    return _vit.is_encoder(state) and "head.1.weight" in state


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is a linear layer behind such a norm, on a vision transformer."""
    method = config.method
    if config.backbone.name != "vit" or method is None or method.name != "linear":
        return False
    heads = {task: tuple(kinds) for task, kinds in method.heads.items()}
    parts = tuple(method.get("parts", ())) in ((), ("all",))
    before = method.get("batch_norm", "") == "before"
    return heads == _METHOD["heads"] and parts and before and not method.get("drift", False)


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`. Networks with a name need no config."""
    if config is None:
        config = vit.described(state, 0)
        config.method = _METHOD
    check(native(config), config)
    _check(config)
    config.online.features = ()  # the file has no head beside the method
    classes = len(state["head.1.weight"])
    if config.method.get("num_classes") is None:
        with config.unlocked():
            config.method.num_classes = classes
    side = _vit.grid(_vit.POSITIONS, state) * networks.module(config).patch
    template = networks.shapes(config, classes, side)
    left_out = mapping.passed_over(state, mapping.COUNTERS)
    if config.backbone.get("positions", "fixed") == "fixed":
        state, computed = _vit.without_codes(state, _vit.POSITIONS)
        left_out += computed
    return Network(mapping.from_torch(state, template, table), config, left_out)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write a checkpoint with the network alone; see `formats.Format`."""
    check(native(config), config)
    _check(config)
    del epoch  # theirs reads it only with the optimizer
    state = _vit.with_code(mapping.to_torch(variables, table), config)
    module: Any = networks.module(config)
    classes, pooled = len(state["head.1.bias"]), module.pool == "mean"
    side = _vit.grid(_vit.POSITIONS, state) * module.patch
    named = _vit.original(module, "vit")
    if named and side == 224:
        pool = " --global_pool" if pooled else ""
        loads = f"main_linprobe.py --model {named} --nb_classes {classes}{pool}, by --resume --eval"
    else:
        loads = f"{_vit.call(module, side, classes)} with its head as main_linprobe.py makes it"
    return File({"model": state}, loads)


def _check(config: ml_collections.ConfigDict) -> None:
    epsilon = config.method.get("norm_epsilon", 1e-5)
    if epsilon != EPSILON:
        raise Refusal(f"norm_epsilon={epsilon}, and that of the original is {EPSILON}")
