"""Files of vision transformers: MAE's encoder alone, fine-tuned with a classifier, timm's.

facebookresearch/mae: the released `mae_pretrain_vit_*.pth`, and `checkpoint-*.pth` of
`main_finetune.py`; with pool="token" also timm's `vit_{base, large}_patch16_224`, which has the
same names. Ours is `methods.supervised.Classifier` over a `models.vit`, or the backbone alone. A
table of positions is "fixed" in a backbone alone that has the code of sines and cosines, else
"learned".
"""

from __future__ import annotations

from typing import Any

import ml_collections

from jaxequi.data import recipes
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _pair, _vit, check, torchvision
from jaxequi.types import PyTree


def matches(state: State) -> bool:
    """Whether these are the names of an encoder, with a classifier or without."""
    return _vit.is_encoder(state) and "head.1.weight" not in state  # of `formats.mae_linear`


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is a classifier over a vision transformer, or the backbone alone."""
    if config.backbone.name != "vit":
        return False
    return config.method is None or config.method.name == "supervised"


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`. Networks with a name need no config."""
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    if config is None:
        config = described(state, classes)
    check(native(config), config)
    config.online.features = ()  # the file has no head beside the method
    side = _vit.grid(_vit.POSITIONS, state) * networks.module(config).patch
    template = networks.shapes(config, classes, side)
    left_out: tuple[str, ...] = ()
    if config.backbone.get("positions", "fixed") == "fixed":
        state, left_out = _vit.without_codes(state, _vit.POSITIONS)
    if not classes:
        template = networks.under_backbone(networks.backbone(template))
        config.method = None
    return Network(mapping.from_torch(state, template, _vit.table), config, left_out)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write a checkpoint with the network alone; see `formats.Format`."""
    check(native(config), config)
    del epoch  # theirs reads it only with the optimizer
    variables, left_out = _pair.without_heads(variables)
    state = _vit.with_code(mapping.to_torch(variables, _vit.table), config)
    module: Any = networks.module(config)
    classes = len(state.get("head.bias", ()))
    side = _vit.grid(_vit.POSITIONS, state) * module.patch
    loads = _vit.call(module, side, classes)
    if not classes:
        loads += ", and main_finetune.py by --finetune"
    return File({"model": state}, loads, left_out)


def described(state: State, classes: int) -> ml_collections.ConfigDict:
    """The config of a file that has none of its own: its sizes have a name, as in the paper.

    Raises:
      ValueError: they have none.
    """
    config = torchvision.described("resnet50", classes or 1000)
    backbone: dict[str, Any] = dict(_vit.backbone(state))
    backbone["pool"] = "mean" if "fc_norm.weight" in state else "token"
    fixed = not classes and _vit.is_code(_vit.POSITIONS, state)
    backbone["positions"] = "fixed" if fixed else "learned"
    config.backbone = backbone
    patch = state["patch_embed.proj.weight"].shape[2]
    recipe = recipes.mae_eval(_vit.grid(_vit.POSITIONS, state) * patch)
    config.val.views, config.val.augment = recipe.views, recipe.augment
    return config
