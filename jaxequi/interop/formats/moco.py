"""Files of facebookresearch/moco: `checkpoint_*.pth.tar` of `main_moco.py`, v1 and v2.

Theirs is a checkpoint's `state_dict` without the prefix `module.`: `encoder_q.*`, `encoder_k.*`,
the `queue` [D, K] and `queue_ptr`. Ours is `{"params": ..., **extra}` of `methods.moco`.
"""

from __future__ import annotations

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _optimizer, _pair, check, needed
from jaxequi.interop.mapping import Table
from jaxequi.types import PyTree

_PARTS = {"encoder_q", "encoder_k", "queue", "queue_ptr"}


def table(config: ml_collections.ConfigDict) -> Table:
    """Make the table of a config: `fc` is one layer in v1, and in v2 `fc.0` and `fc.2`."""
    one = len(_widths(config)) == 1

    def rename(module: str) -> str:
        top, _, layer = module.partition("/")
        if top == "backbone":
            return _pair.backbone(module)
        return "fc" if one else f"fc.{_pair.place(layer, norm=False)}"

    return _pair.table(rename, "encoder_q", "encoder_k", _pair.TRANSPOSED)


def matches(state: State) -> bool:
    """Whether these are the names of two encoders and a queue."""
    return {name.partition(".")[0] for name in state} == _PARTS


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is MoCo v1 or v2 over one of torchvision's ResNets."""
    if not _pair.is_method(config, "moco"):
        return False
    method = config.method
    more = ("predictor", "batch_norm", "symmetric")
    return not any(method.get(field) for field in more) and method.get("last_bias", True)


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`."""
    config = needed(config, "configs/moco.py:moco_v2,paper")
    return _pair.read(state, config, native(config), table)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write a checkpoint that `main_moco.py --resume` takes; see `formats.Format`.

    Their training goes on at `epoch` with a fresh optimizer, which sets its rate for each epoch.
    """
    check(native(config), config)
    architecture, widths = _pair.architecture(config), _widths(config)
    features = networks.module(config).features
    if len(widths) > 2 or (len(widths) == 2 and widths[0] != features):
        raise Refusal(
            f"the original's projector has one layer, or two of which the first is as wide as "
            f"{architecture}'s features ({features}); this run's has widths {widths}"
        )
    variables, left_out = _pair.without_heads(variables)
    state = mapping.to_torch(variables, table(config))
    optimizer = config.get("optimizer", {})
    rate = optimizer.get("base_lr", 0.03) * config.get("batch_size", 256) / 256
    # Their optimizer is given both encoders, of which the keys' get no gradient.
    group = (len(_pair.parameters(state)), _optimizer.sgd(rate, 0.9, 1e-4))
    content = {
        "epoch": epoch,
        "arch": architecture,
        "state_dict": {f"module.{name}": array for name, array in state.items()},
        "optimizer": _optimizer.fresh([group]),
    }
    arguments = f"-a {architecture} --moco-dim {widths[-1]} --moco-k {state['queue'].shape[1]}"
    mlp = " --mlp" if len(widths) == 2 else ""
    return File(content, f"main_moco.py {arguments}{mlp}, by --resume", left_out)


def _widths(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    return _pair.widths(config, "projector", "2048-128")
