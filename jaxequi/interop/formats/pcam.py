"""Files of the PatchCamelyon networks of "Using and Abusing Equivariance".

Edixhoven, Lengyel and van Gemert (2023); `experiments/classification/pcam/{resnet44, resnet44_p4}
.py`. Ours are the networks of `models.gresnet` whose names begin with "pcam".
"""

from __future__ import annotations

import re
from typing import Any

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop.formats import File, Network, State, _gconv, check, gresnet
from jaxequi.interop.mapping import Table
from jaxequi.types import PyTree

_MAKERS = {"pcam_resnet44": "resnet44", "pcam_p4resnet44": "resnet44_p4"}


def rename(module: str) -> str:
    """ "layer2_10/shortcut_conv" -> "layer2.10.downsample.0": stages are counted from 1."""
    return re.sub(
        r"^layers\.(\d+)\.", lambda stage: f"layer{int(stage[1]) + 1}.", gresnet.rename(module)
    )


def table(backbone: Any) -> Table:
    """Make the table of a classifier over a `models.gresnet.GResNet`."""
    return _gconv.table(backbone, rename)


def matches(state: State) -> bool:
    """Whether these are the names of a ResNet of three stages that ends in a norm."""
    parts = {name.partition(".")[0] for name in state}
    return parts == {"conv1", "layer1", "layer2", "layer3", "bn1", "fc"}


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is a group ResNet of `classification/pcam`."""
    return (
        _gconv.is_classifier(config, "gresnet") and config.backbone.get("architecture") in _MAKERS
    )


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`."""
    return _gconv.read(state, config, native, table, "configs/classification.py:pcam,paper")


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write the state dict; see `formats.Format`."""
    check(native(config), config)
    del epoch  # theirs holds none
    state, classes = _gconv.classifier(config, variables, table)
    architecture, head = config.backbone.architecture, config.backbone.get("head") or None
    if config.backbone.get("width") is not None:
        raise Refusal(
            f"the widths of the original's PCAM networks are fixed, and this run has "
            f"width={config.backbone.width}"
        )
    if architecture == "pcam_p4resnet44" and head not in (None, "coset_last"):
        raise Refusal(
            f"the original's PCAM network takes the maximum over the slices last, and this run has "
            f"head={head!r}"
        )
    file = _MAKERS[architecture]
    maker = "p4resnet44" if file == "resnet44_p4" else "resnet44"
    loads = _gconv.call(maker, {"num_classes": classes})
    return File(dict(state), f"{loads} of experiments/classification/pcam/{file}.py")
