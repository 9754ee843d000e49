"""What files of vision transformers share: names, tables of positions, sizes."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_collections
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import State
from jaxequi.interop.mapping import SAME, Layout
from jaxequi.models import vit
from jaxequi.nn import transformer

POSITIONS = "pos_embed"
ENCODER = {"cls_token", "pos_embed", "patch_embed", "blocks"}
_TOKENS = {"cls_token", "pos_embed", "mask_token"}
_COMPUTED = "the code of sines and cosines, which ours computes"


def rename(module: str) -> str:
    """ "backbone/blocks_3/attn/qkv" -> "blocks.3.attn.qkv", "decoder/embed" -> "decoder_embed"."""
    if module == "classifier":
        return "head"
    top, _, rest = module.partition("/")
    name = re.sub(r"^blocks_(\d+)", r"blocks.\1", rest).replace("/", ".")
    if name == "patch_embed":
        name = "patch_embed.proj"
    return name if top == "backbone" else f"{top}_{name}"


_MODULES = mapping.by_module(rename)


def table(path: str) -> tuple[str, Layout]:
    """The table of `models.vit`, of the decoder of `models.mae` and of a classifier."""
    leaf = path.rpartition("/")[2]
    return (leaf, SAME) if leaf in _TOKENS else _MODULES(path)


def parts(state: State) -> set[str]:
    """The first parts of the names."""
    return {name.partition(".")[0] for name in state}


def is_encoder(state: State) -> bool:
    """Whether these are the names of an encoder, with a head or without."""
    return parts(state) - {"head"} in (ENCODER | {"norm"}, ENCODER | {"fc_norm"})


def side(config: ml_collections.ConfigDict) -> int:
    """Pixels of a side of the images that a config learns from, or else judges.

    Raises:
      ValueError: its pipes do not say it.
    """
    pipes = config.train.views or config.val.views or ()
    found = re.findall(r"(?:crop|resize)\w*\(\(?(\d+)", pipes[0] if pipes else "")
    if not found:
        raise Refusal(
            f"the tables of positions depend on the size of the images, and the pipes {pipes} "
            "name none: give --config.train.views a crop such as random_resized_crop(224)"
        )
    return int(found[-1])


def grid(name: str, state: State) -> int:
    """Patches in a row of a table of positions [1, 1 + rows * rows, D].

    Raises:
      ValueError: no such table.
    """
    shape = np.shape(state[name])
    rows = math.isqrt(max(shape[1] - 1, 0)) if len(shape) == 3 else 0
    if not rows or shape != (1, 1 + rows * rows, shape[2]):
        raise Refusal(f"{name} {shape} is no table of the positions of a square of patches")
    return rows


def is_code(name: str, state: State) -> bool:
    """Whether a table is the fixed code of `nn.transformer.sincos_positions`, to its rounding."""
    rows, table = grid(name, state), state[name]
    if table.shape[2] % 4:
        return False
    return bool(np.allclose(table, code(table.shape[2], rows), rtol=0, atol=1e-6))


def without_codes(state: State, *names: str) -> tuple[State, tuple[str, ...]]:
    """Leave out the tables that the network computes itself.

    Raises:
      ValueError: one of them is something else.
    """
    learned = [name for name in names if name in state and not is_code(name, state)]
    if learned:
        raise Refusal(
            f"{' and '.join(learned)} is not {_COMPUTED} for --config.backbone.positions=fixed; "
            "say 'learned' if it was"
        )
    rest = {name: array for name, array in state.items() if name not in names}
    left_out = tuple(f"{name}: {_COMPUTED}" for name in names if name in state)
    return rest, left_out


def code(width: int, rows: int) -> np.ndarray:
    """The fixed code as a table of theirs, f32[1, 1 + rows * rows, width]."""
    return transformer.sincos_positions(width, rows, rows)[None]


def with_code(state: dict[str, np.ndarray], config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Give an encoder that computes its positions the table of theirs."""
    if POSITIONS in state:
        return state
    module: Any = networks.module(config)
    return {**state, POSITIONS: code(module.width, side(config) // module.patch)}


def backbone(state: State) -> dict[str, object]:
    """Describe the encoder of a file as a config does.

    Raises:
      ValueError: its sizes are those of no network that has a name, so that nothing says how many
        heads its attention has.
    """
    weight = state["patch_embed.proj.weight"]
    numbers = {int(n[1]) for name in state if (n := re.match(r"blocks\.(\d+)\.", name))}
    found = weight.shape[2], weight.shape[0], len(numbers)
    for name, size in vit.SIZES.items():
        if size[:3] == found:
            return {"name": "vit", "architecture": name}
    patch, width, depth = found
    raise Refusal(
        f"no network that has a name has patch={patch}, width={width}, depth={depth}; give a "
        "--config with its backbone, which says how many heads there are"
    )


def original(module: vit.ViT, prefix: str) -> str:
    """Name the function of theirs that makes an encoder, or "" for sizes that have no name."""
    size = vit.Size(module.patch, module.width, module.depth, module.heads)
    for name in ("base", "large", "huge"):
        if vit.SIZES[name] == size and module.mlp_ratio == 4:
            return f"{prefix}_{name}_patch{module.patch}"
    return ""


def call(module: vit.ViT, side: int, classes: int) -> str:
    """Write how `models_vit.py` of theirs makes an encoder for images of so many pixels."""
    arguments = f"img_size={side}, num_classes={classes}, global_pool={module.pool == 'mean'}"
    named = original(module, "vit")
    if not named:
        named = "VisionTransformer"
        arguments = (
            f"patch_size={module.patch}, embed_dim={module.width}, depth={module.depth}, "
            f"num_heads={module.heads}, mlp_ratio={module.mlp_ratio}, qkv_bias=True, "
            f"norm_layer=partial(nn.LayerNorm, eps=1e-6), {arguments}"
        )
    return f"{named}({arguments}) of models_vit.py"
