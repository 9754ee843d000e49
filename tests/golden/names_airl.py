"""Names of `airl`: ours against the state dicts of revisitAIRL, MoCo, SimSiam and MAE.

Ours is a network's variables, {"params": ..., "batch_stats": ..., ...}. They are those of
`interop.formats`, but that a case stores an encoder without its prefix.
"""

from __future__ import annotations

from jaxequi.interop.formats import _pair, _resnet, _vit, simsiam, torchvision
from jaxequi.interop.mapping import Table, by_module

RESNET = _resnet.TABLE
SIMSIAM = simsiam.TABLE
SUPERVISED = by_module(lambda module: torchvision.rename(module).replace("fc", "fc.0"))
mae = _vit.table


def moco(projector_layers: int, batch_norm: bool, bare: bool = False) -> Table:
    """Names of an encoder of revisitAIRL or MoCo, without its prefix.

    Args:
      projector_layers: how many Linear layers come before a predictor's.
      batch_norm: the heads have norms.
      bare: a projector of one layer is called "fc", as in MoCo v1; "fc.0" else.
    """
    behind = _pair.place(f"linear_{projector_layers - 1}", batch_norm) + 1

    def rename(module: str) -> str:
        part, _, layer = module.partition("/")
        if part == "backbone":
            return _pair.backbone(module)
        if bare:
            return "fc"
        return f"fc.{_pair.place(layer, batch_norm) + (behind if part == 'predictor' else 0)}"

    return by_module(rename)
