"""Names that state dicts of residual networks share: torchvision's, and what derives from it."""

from __future__ import annotations

import re

from jaxequi.interop.formats import State
from jaxequi.interop.mapping import by_module

_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
_PARTS = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def rename(module: str) -> str:
    """ "layer2_10/shortcut_conv" -> "layer2.10.downsample.0"; what is above the ResNet stays."""
    parts = [_SHORTCUT.get(part, part) for part in module.split("/")]
    return ".".join(re.sub(r"^layer(\d+)_(\d+)$", r"layer\1.\2", part) for part in parts)


TABLE = by_module(rename)


def is_backbone(state: State) -> bool:
    """Whether these are the names of a ResNet of four stages and a 7x7 stem, and nothing else."""
    parts = {name.partition(".")[0] for name in state}
    stem = state.get("conv1.weight")
    return parts == _PARTS and stem is not None and stem.shape[2:] == (7, 7)
