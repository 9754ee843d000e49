"""Files of torchvision's ResNets, with their classifier or without.

Ours is `{"params": ..., "batch_stats": ...}` of `methods.supervised.Classifier` over a
`models.torchvision_resnet`: torchvision's `fc` is the classifier, everything else the backbone.
"""

from __future__ import annotations

from collections import Counter

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _resnet, check
from jaxequi.models import torchvision_resnet
from jaxequi.types import PyTree


def rename(module: str) -> str:
    """ "backbone/layer2_0/shortcut_conv" -> "layer2.0.downsample.0", "classifier" -> "fc"."""
    if module == "classifier":
        return "fc"
    return _resnet.rename(module.removeprefix("backbone/"))


TABLE = mapping.by_module(rename)


def matches(state: State) -> bool:
    """Whether these are the names of a ResNet; without `fc` they may be another system's too."""
    rest = {name: array for name, array in state.items() if name not in ("fc.weight", "fc.bias")}
    if not _resnet.is_backbone(rest):
        return False
    # blocks of three layers widen already in the first stage, those of two do not
    return ("layer1.0.conv3.weight" in rest) == ("layer1.0.downsample.0.weight" in rest)


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is a classifier over one of torchvision's ResNets, or the backbone alone."""
    if config.backbone.name != "torchvision_resnet":
        return False
    return config.method is None or config.method.name == "supervised"


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`. It says itself what network it is of."""
    classes = len(state["fc.weight"]) if "fc.weight" in state else 0
    if config is None:
        config = described(architecture(state), classes or 1000)
    check(native(config), config)
    left_out = mapping.passed_over(state, mapping.COUNTERS)
    template = networks.shapes(config, classes)
    if not classes:
        template = networks.under_backbone(networks.backbone(template))
        config.method = None
    return Network(mapping.from_torch(state, template, TABLE), config, left_out)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write the state dict; see `formats.Format`."""
    check(native(config), config)
    del epoch  # theirs holds none
    architecture = config.backbone.get("architecture", "resnet50")
    if config.backbone.get("width", 64) != 64:
        raise Refusal(
            f"torchvision's {architecture} has width 64, and this run's {config.backbone.width}"
        )
    state = mapping.to_torch(variables, TABLE)
    loads = f"torchvision.models.{architecture}"
    if config.method is None:
        loads += "() with its fc replaced by torch.nn.Identity()"
    else:
        loads += f"(num_classes={len(state['fc.bias'])})"
    return File(dict(state), loads)


def described(architecture: str, num_classes: int) -> ml_collections.ConfigDict:
    """The config of a classifier that torchvision trained, which has no config of its own."""
    return ml_collections.ConfigDict(
        {
            "backbone": {"name": "torchvision_resnet", "architecture": architecture},
            "method": {"name": "supervised", "num_classes": num_classes},
            "online": {"features": ()},
            "dtype": "float32",
            "remat": False,
            "norm": {"groups": 1, "momentum": 0.1, "epsilon": 1e-5, "unbiased": True},
            "train": {"source": None, "views": None, "num_views": 1, "augment": None},
            "val": {
                "source": None,
                "views": ("decode|resize(256)|center_crop(224)",),
                "num_views": 1,
                "augment": ("normalise('imagenet')",),
                "batch_size": 256,
            },
        }
    )


def architecture(state: State) -> str:
    """Name the network by its blocks.

    Raises:
      ValueError: we have none with such blocks.
    """
    blocks = {tuple(name.split(".")[:2]) for name in state if name.startswith("layer")}
    counts = Counter(stage for stage, _ in blocks)
    sizes = tuple(counts[stage] for stage in sorted(counts))
    kind = torchvision_resnet.BasicBlock
    if "layer1.0.conv3.weight" in state:
        kind = torchvision_resnet.Bottleneck
    inner = len(state["layer1.0.conv2.weight"])
    for name, make in torchvision_resnet.NETWORKS.items():
        network = make()
        if (tuple(network.stage_sizes), network.block) == (sizes, kind) and (
            kind is torchvision_resnet.BasicBlock or network.width_per_group == inner
        ):
            return name
    raise Refusal(
        f"a ResNet of {kind.__name__}s, {sizes} of them, is none that we have: "
        f"{', '.join(torchvision_resnet.NETWORKS)}"
    )
