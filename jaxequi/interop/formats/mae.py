"""Files of facebookresearch/mae's pre-training: `checkpoint-*.pth` of `main_pretrain.py`.

Theirs is a checkpoint's `model`, encoder and decoder; ours is `{"params": ...}` of `methods.mae`,
which has no tables of positions: it computes the code that theirs hold, and a file with another is
refused. The encoder alone is in `formats.vit`.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import File, Network, State, _pair, _vit, check, needed
from jaxequi.types import PyTree

_DECODER = {
    "mask_token",
    "decoder_embed",
    "decoder_pos_embed",
    "decoder_blocks",
    "decoder_norm",
    "decoder_pred",
}
_CODES = ("pos_embed", "decoder_pos_embed")


def matches(state: State) -> bool:
    """Whether these are the names of an encoder and a decoder."""
    return _vit.parts(state) == _vit.ENCODER | _DECODER | {"norm"}


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is MAE."""
    return config.method is not None and config.method.name == "mae"


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`."""
    config = needed(config, "configs/mae.py:base,paper")
    _check(config)
    config.online.features = ()  # the file has no head beside the method
    side = _vit.grid("pos_embed", state) * networks.module(config).patch
    template = networks.shapes(config, 0, side)
    state, left_out = _vit.without_codes(state, *_CODES)
    return Network(mapping.from_torch(state, template, _vit.table), config, left_out)


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write a checkpoint with the network alone; see `formats.Format`."""
    _check(config)
    del epoch  # theirs reads it only with the optimizer
    variables, left_out = _pair.without_heads(variables)
    state = mapping.to_torch(variables, _vit.table)
    module: Any = networks.module(config)
    side = _vit.side(config)
    decoder = state["mask_token"].shape[2]
    for name, width in zip(_CODES, (module.width, decoder), strict=True):
        state[name] = _vit.code(width, side // module.patch)
    depth = config.method.get("decoder_depth", 8)
    heads = config.method.get("decoder_heads", 16)
    named = _vit.original(module, "mae_vit")
    if named and (decoder, depth, heads) == (512, 8, 16):
        loads = f"main_pretrain.py --model {named} --input_size {side}, by --resume"
    else:
        loads = (
            f"MaskedAutoencoderViT(img_size={side}, patch_size={module.patch}, "
            f"embed_dim={module.width}, depth={module.depth}, num_heads={module.heads}, "
            f"decoder_embed_dim={decoder}, decoder_depth={depth}, "
            f"decoder_num_heads={heads}, mlp_ratio={module.mlp_ratio}, "
            "norm_layer=partial(nn.LayerNorm, eps=1e-6)) of models_mae.py"
        )
    return File({"model": state}, loads, left_out)


def _check(config: ml_collections.ConfigDict) -> None:
    check(native(config), config)
    if config.backbone.get("positions", "fixed") != "fixed":
        raise Refusal(
            f"positions={config.backbone.positions!r}: the original's pre-training holds its "
            "positions fixed"
        )
