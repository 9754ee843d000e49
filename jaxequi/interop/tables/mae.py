"""Names of MAE: `methods.mae` and `models.vit` against facebookresearch/mae.

Our side is {"params": {"backbone": ..., "decoder": ...}}; the backbone of a classifier stands alone
or beside "classifier". Fixed tables of positions (`pos_embed`, `decoder_pos_embed` of pre-training)
are no variables of ours.
"""

from __future__ import annotations

import re

from jaxequi.interop.mapping import SAME, Layout, by_module

_NAMES = {"patch_embed": "patch_embed.proj", "classifier": "head"}


def _rename(module: str) -> str:
    """ "decoder/blocks_0/attn/qkv" -> "decoder_blocks.0.attn.qkv"."""
    module = module.removeprefix("backbone/").replace("decoder/", "decoder_")
    return re.sub(r"blocks_(\d+)/", r"blocks.\1.", _NAMES.get(module, module)).replace("/", ".")


_BY_MODULE = by_module(_rename)


def TABLE(path: str) -> tuple[str, Layout]:
    """The table; tokens and learned positions are stored alike on both sides."""
    leaf = path.rpartition("/")[2]
    if leaf in ("cls_token", "mask_token", "pos_embed"):
        return leaf, SAME
    return _BY_MODULE(path)
