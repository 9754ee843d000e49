"""Names of the ResNets: `models.resnet` against the state dicts of SIE's backbones."""

from __future__ import annotations

import re

from jaxequi.interop.mapping import by_module

_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}


def rename(module: str) -> str:
    """ "layer2_0/shortcut_conv" -> "layer2.0.downsample.0"; what is above the ResNet stays."""
    parts = [_SHORTCUT.get(part, part) for part in module.split("/")]
    return ".".join(re.sub(r"^layer(\d)_(\d+)$", r"layer\1.\2", part) for part in parts)


TABLE = by_module(rename)
