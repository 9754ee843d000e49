"""Files of facebookresearch/simsiam: `checkpoint_*.pth.tar` of `main_simsiam.py`.

Theirs is a checkpoint's `state_dict` without the prefix `module.`: `encoder.*` with the projector
as its `fc`, and `predictor.*`. Ours is `{"params": ..., **extra}` of `methods.simsiam`; the bias
that no gradient reaches, `encoder.fc.6.bias`, is in the collection `frozen`.
"""

from __future__ import annotations

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _optimizer, _pair, check, needed
from jaxequi.types import PyTree


def rename(module: str) -> str:
    """ "projector/norm_1" -> "encoder.fc.4", "predictor/linear_1" -> "predictor.3"."""
    top, _, layer = module.partition("/")
    if top == "backbone":
        return f"encoder.{_pair.backbone(module)}"
    return f"{'encoder.fc' if top == 'projector' else top}.{_pair.place(layer, norm=True)}"


TABLE = mapping.by_module(rename)


def matches(state: State) -> bool:
    """Whether these are the names of an encoder and a predictor."""
    return {name.partition(".")[0] for name in state} == {"encoder", "predictor"}


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is SimSiam over one of torchvision's ResNets."""
    return _pair.is_method(config, "simsiam")


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`."""
    config = needed(config, "configs/simsiam.py:simsiam,paper")
    return _pair.read(state, config, native(config), lambda _: TABLE)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write a checkpoint that `main_simsiam.py --resume` takes; see `formats.Format`.

    Their training goes on at `epoch` with a fresh optimizer, which sets its rate for each epoch.
    """
    check(native(config), config)
    architecture = _pair.architecture(config)
    projector = _pair.widths(config, "projector", "2048-2048-2048")
    predictor = _pair.widths(config, "predictor", "512-2048")
    features = networks.module(config).features
    if len(projector) != 3 or projector[:2] != (features, features) or len(predictor) != 2:
        raise Refusal(
            f"the original's projector has three layers, the first two as wide as {architecture}'s "
            f"features ({features}), and its predictor two; this run's have widths {projector} and "
            f"{predictor}"
        )
    variables, left_out = _pair.without_heads(variables)
    state = mapping.to_torch(variables, TABLE)
    optimizer = config.get("optimizer", {})
    rate = optimizer.get("base_lr", 0.05) * config.get("batch_size", 512) / 256
    group = _optimizer.sgd(rate, 0.9, 1e-4)
    fixed = "predictor" in optimizer.get("groups", {})
    if fixed:
        groups = [
            (len(_pair.parameters(state, f"{part}.")), {**group, "fix_lr": part == "predictor"})
            for part in ("encoder", "predictor")
        ]
    else:
        groups = [(len(_pair.parameters(state)), group)]
    content = {
        "epoch": epoch,
        "arch": architecture,
        "state_dict": {f"module.{name}": array for name, array in state.items()},
        "optimizer": _optimizer.fresh(groups),
    }
    arguments = f"-a {architecture} --dim {projector[-1]} --pred-dim {predictor[0]}"
    fix = " --fix-pred-lr" if fixed else ""
    return File(content, f"main_simsiam.py {arguments}{fix}, by --resume", left_out)
