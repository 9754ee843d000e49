"""Names of SIE's methods: our trees against the state dicts of facebookresearch/SIE.

Theirs is a checkpoint's `model` without the prefix `module.`; ours is `{"params": ..., **extra}` of
any SIE method with its probe.
"""

from __future__ import annotations

import re

from jaxequi.interop.mapping import by_module
from jaxequi.interop.tables import resnet

_HEADS = {"label": "classifier", "relation": "predictor_angles"}
_FEATURES = {"representation": "repr", "embedding": "emb"}


def rename(module: str) -> str:
    """ "projector_inv/norm_1" -> "projector_inv.4"."""
    top, *path = module.split("/")
    if top == "backbone":
        return resnet.rename(module)
    if top == "probe":  # label_representation-inv -> classifier_inv_repr
        kind, name = path[0].split("_")
        feature, _, part = name.partition("-")
        path[0] = "_".join(filter(None, [_HEADS[kind], part, _FEATURES[feature]]))
        top = "evaluator"
    # Theirs are numbered by their place in a Sequential: Linear, BatchNorm, ReLU in a projector,
    # Linear, ReLU elsewhere.
    stride = 3 if top.startswith("projector") else 2
    for i, part in enumerate(path):
        if match := re.fullmatch(r"(linear|norm|hypernetwork)_(\d)", part):
            kind, place = match[1], stride * int(match[2]) + (match[1] == "norm")
            path[i] = f"hypernet.net.{place}" if kind == "hypernetwork" else str(place)
        elif part == "mlp":
            path[i] = "pred"
    return ".".join([top, *path])


TABLE = by_module(rename)
