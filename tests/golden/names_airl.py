"""Names of `airl`: ours against the state dicts of revisitAIRL, MoCo, SimSiam and MAE.

Ours is a network's variables, {"params": ..., "batch_stats": ..., ...}. A target network has the
names of an online one under another prefix, which is taken off before.
"""

from __future__ import annotations

import re

from jaxequi.interop.mapping import SAME, Layout, Table, by_module

_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}


def resnet(module: str) -> str:
    """ "layer2_0/shortcut_conv" -> "layer2.0.downsample.0"."""
    parts = [_SHORTCUT.get(part, part) for part in module.split("/")]
    return re.sub(r"^layer(\d+)_", r"layer\1.", ".".join(parts))


RESNET = by_module(resnet)


def _place(layer: str, batch_norm: bool) -> int:
    """Index of "linear_1" or "norm_1" in a Sequential with its ReLUs."""
    kind, number = layer.split("_")
    return (3 if batch_norm else 2) * int(number) + (kind == "norm")


def moco(projector_layers: int, batch_norm: bool, bare: bool = False) -> Table:
    """Names of an encoder of revisitAIRL or MoCo, without its prefix.

    Args:
      projector_layers: how many Linear layers come before a predictor's.
      batch_norm: the heads have norms.
      bare: a projector of one layer is called "fc", as in MoCo v1; "fc.0" else.
    """
    behind = _place(f"linear_{projector_layers - 1}", batch_norm) + 1

    def rename(module: str) -> str:
        part, _, layer = module.partition("/")
        if part == "backbone":
            return resnet(layer)
        if bare:
            return "fc"
        return f"fc.{_place(layer, batch_norm) + (behind if part == 'predictor' else 0)}"

    return by_module(rename)


def _simsiam(module: str) -> str:
    part, _, layer = module.partition("/")
    if part == "backbone":
        return f"encoder.{resnet(layer)}"
    place = _place(layer, batch_norm=True)
    return f"predictor.{place}" if part == "predictor" else f"encoder.fc.{place}"


SIMSIAM = by_module(_simsiam)


def _classifier(module: str) -> str:
    return "fc.0" if module == "classifier" else resnet(module.removeprefix("backbone/"))


SUPERVISED = by_module(_classifier)

_MAE_NAMES = {"patch_embed": "patch_embed.proj", "classifier": "head"}


def _mae(module: str) -> str:
    """ "decoder/blocks_0/attn/qkv" -> "decoder_blocks.0.attn.qkv"."""
    module = module.removeprefix("backbone/").replace("decoder/", "decoder_")
    return re.sub(r"blocks_(\d+)/", r"blocks.\1.", _MAE_NAMES.get(module, module)).replace("/", ".")


_MAE_MODULES = by_module(_mae)


def mae(path: str) -> tuple[str, Layout]:
    """Names of MAE's network or of a classifier on it; tokens and positions are stored alike."""
    leaf = path.rpartition("/")[2]
    if leaf in ("cls_token", "mask_token", "pos_embed"):
        return leaf, SAME
    return _MAE_MODULES(path)
