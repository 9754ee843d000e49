"""Names of torchvision's ResNets: `models.torchvision_resnet` against `torchvision.models.resnet`.

Our side is `{"params": ..., "batch_stats": ...}` of `methods.supervised.Classifier` over such a
backbone: torchvision's `fc` is the classifier, and everything else the backbone.
"""

from __future__ import annotations

from jaxequi.interop.mapping import by_module
from jaxequi.interop.tables import resnet


def rename(module: str) -> str:
    """ "backbone/layer2_0/shortcut_conv" -> "layer2.0.downsample.0", "classifier" -> "fc"."""
    if module == "classifier":
        return "fc"
    return resnet.rename(module.removeprefix("backbone/"))


TABLE = by_module(rename)
