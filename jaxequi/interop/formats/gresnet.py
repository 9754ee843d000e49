"""Files of the ResNets of "Using and Abusing Equivariance": CIFAR, Flowers and ImageNet.

Edixhoven, Lengyel and van Gemert (2023); `experiments/models/{resnet, resnet_p4, resnet_p4m}.py`.
`classification/train.py` saves them below "state_dict" under the prefix "model.",
`imagenet/main.py` under "module.". Ours are the networks of `models.gresnet`.
"""

from __future__ import annotations

import re
from typing import Any

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop.formats import File, Network, State, _gconv, _optimizer, _pair, check
from jaxequi.interop.mapping import Table
from jaxequi.models import gresnet
from jaxequi.types import PyTree

_MODULES = {
    "stem": "conv1",
    "bn": "bn1",
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
}
_MAKERS = {  # architecture -> the file below experiments/models, and the function in it
    "resnet18": ("resnet", "ResNet18"),
    "resnet44": ("resnet", "ResNet44"),
    "p4resnet18": ("resnet_p4", "P4ResNet18"),
    "p4resnet44": ("resnet_p4", "P4ResNet44"),
    "p4mresnet18": ("resnet_p4m", "P4MResNet18"),
    "p4mresnet44": ("resnet_p4m", "P4MResNet44"),
    "gcp4resnet18": ("resnet_p4", "gcP4ResNet18"),
    "gcp4resnet44": ("resnet_p4", "gcP4ResNet44"),
    "gcp4mresnet18": ("resnet_p4m", "gcP4MResNet18"),
    "gcp4mresnet44": ("resnet_p4m", "gcP4MResNet44"),
}


def rename(module: str) -> str:
    """ "layer2_10/shortcut_conv" -> "layers.1.10.downsample.0": stages are counted from 0."""
    parts = [_MODULES.get(part, part) for part in module.split("/")]
    if stage := re.fullmatch(r"layer(\d+)_(\d+)", parts[0]):
        parts[0] = f"layers.{int(stage[1]) - 1}.{stage[2]}"
    return ".".join(parts)


def table(backbone: Any) -> Table:
    """Make the table of a classifier over a `models.gresnet.GResNet`."""
    return _gconv.table(backbone, rename)


def matches(state: State) -> bool:
    """Whether these are the names of a ResNet whose stages are called "layers"."""
    parts = {name.partition(".")[0] for name in state}
    return parts == {"conv1", "layers", "bn1", "fc"} and "layers.0.0.bn1.weight" in state


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is a group ResNet of `experiments/models`."""
    return (
        _gconv.is_classifier(config, "gresnet") and config.backbone.get("architecture") in _MAKERS
    )


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`."""
    example = "configs/classification.py:cifar10,paper --config.backbone.architecture=p4resnet44"
    return _gconv.read(state, config, native, table, example)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write the state dict; see `formats.Format`.

    ImageNet's network is written as `imagenet/main.py` resumes it, with a fresh optimizer.
    """
    check(native(config), config)
    state, classes = _gconv.classifier(config, variables, table)
    architecture = config.backbone.architecture
    row, head = gresnet.ARCHITECTURES[architecture], config.backbone.get("head") or "slices"
    if row.group != "c1" and head == "coset_last":
        raise Refusal(
            "the original's ResNets take the maximum over the slices before the mean over pixels "
            "(head='coset_first') or not at all ('slices'); the arrays of head='coset_last' would "
            "fit the first, and mean something else there"
        )
    width = config.backbone.get("width") or row.widths[0]
    file, maker = _MAKERS[architecture]
    arguments = {"width": width, "num_classes": classes}
    if row.group != "c1":
        arguments["groupcosetmaxpool"] = head == "coset_first"
    imagenet = architecture == "p4resnet18" and (width, classes, head) == (32, 1000, "slices")
    if imagenet:
        content = _imagenet(state, epoch)
        return File(content, "imagenet/main.py and imagenet/evaluate_rotated.py, by --resume")
    return File(dict(state), f"{_gconv.call(maker, arguments)} of experiments/models/{file}.py")


def _imagenet(state: dict[str, Any], epoch: int) -> dict[str, Any]:
    """A checkpoint of imagenet/main.py: the network under DDP's prefix, and a fresh SGD."""
    parameters = _pair.parameters(state)
    return {
        "epoch": epoch,
        "state_dict": {f"module.{name}": array for name, array in state.items()},
        "best_prec1": 0.0,
        "optimizer": _optimizer.fresh([(len(parameters), _optimizer.sgd(0.1, 0.9, 1e-4))]),
    }
