"""Names of MoCo, BYOL and SimSiam: `methods._siamese.Siamese` against the references' encoders.

Our side is the network's variables {"params": ..., "batch_stats": ..., ...}; a target network has
the same names as an online one, under another prefix (`online_encoder.`, `target_encoder.`,
`encoder_q.`, `encoder_k.`), which is taken off before.
"""

from __future__ import annotations

from jaxequi.interop.mapping import Table, by_module
from jaxequi.interop.tables import resnet


def _place(layer: str, batch_norm: bool) -> int:
    """Index of "linear_1" or "norm_1" in a torch Sequential with its ReLUs."""
    kind, number = layer.split("_")
    return (3 if batch_norm else 2) * int(number) + (kind == "norm")


def moco(projector_layers: int, batch_norm: bool, bare: bool = False) -> Table:
    """The table of an encoder of facebookresearch/moco or megvii-research/revisitAIRL.

    Args:
      projector_layers: how many Linear layers come before a predictor's.
      batch_norm: the heads have norms.
      bare: a projector of one layer is called "fc", as in facebookresearch/moco; "fc.0" else.
    """
    behind = _place(f"linear_{projector_layers - 1}", batch_norm) + 1

    def rename(module: str) -> str:
        part, _, layer = module.partition("/")
        if part == "backbone":
            return resnet.rename(layer)
        if bare:
            return "fc"
        return f"fc.{_place(layer, batch_norm) + (behind if part == 'predictor' else 0)}"

    return by_module(rename)


def _simsiam(module: str) -> str:
    part, _, layer = module.partition("/")
    if part == "backbone":
        return f"encoder.{resnet.rename(layer)}"
    place = _place(layer, batch_norm=True)
    return f"predictor.{place}" if part == "predictor" else f"encoder.fc.{place}"


SIMSIAM = by_module(_simsiam)
