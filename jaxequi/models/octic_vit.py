"""Vision transformers over a group, cheaper than the plain ones of the same width.

Nordström, Edstedt, Kahl and Bökman (2025), "Octic Vision Transformers", arXiv 2505.15441;
davnords/octic-vits, `octic_vits/model.py`. Over D1, the mirror alone, it is the network of Bökman,
Nordström and Kahl (2025), "Flopping for FLOPs", arXiv 2502.05169.

The first blocks are equivariant: their tokens are C / G regular fields, held as planes
(`nn.fourier`). The rest are the plain blocks of `models.vit`. `plain` writes the whole network out
as a `models.vit` with the same outputs, for whatever takes one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxequi import names
from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group, dihedral
from jaxequi.models import vit
from jaxequi.models.vit import ViT
from jaxequi.nn import fourier, transformer
from jaxequi.nn.gconv import filter_bank
from jaxequi.nn.norm import at_least_f32
from jaxequi.types import Array, PyTree


class OcticViT(ViT):
    """Images f32[N, H, W, 3] to features f32[N, R].

    The law: with all blocks equivariant and `invariant=False` the features are regular fields
    (channel = field * G + element), which an element permutes; with `invariant=True` it leaves
    them as they are, wherever the equivariant blocks end. With plain blocks after them and
    `invariant=False` there is no law.

    Attributes:
      group: C_N or D_N with N in {1, 2, 4}; D4 takes square images.
      symmetric: blocks that are equivariant, the first ones; 0 <= symmetric <= depth.
      invariant: where they end, go on with what no element moves (`fourier.invariants`): lengths,
        and a linear layer to the width if plain blocks follow.
      norm_over: what has a scale of its own in a norm, `fourier.NORMS`; octic-vits has `irreps`.
      fuse: GELU and its transforms as one kernel on a TPU, see `fourier.pointwise`.
      patch, width, depth, heads, ...: as of `ViT`; heads are of whole fields. The class token and
        the code of positions are those of the fields: a constant, and a table of C / G numbers
        which each element sees moved by it.
    """

    group: Group = dihedral(4)
    symmetric: int = 6
    invariant: bool = False
    fuse: bool = False
    norm_over: str = "fields"

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        if self.invariant and self.symmetric == self.depth:
            return self.width // self.group.order * fourier.invariant_planes(self.group)
        return self.width

    @nn.nowrap
    def layer_decay(self, decay: float) -> tuple[tuple[str, float], ...]:
        """Factors of the learning rate by layer, see `vit.layer_decay`."""
        mixed = (r"(^|/)mix_invariants/", decay ** (self.depth - self.symmetric))
        return mixed, *vit.layer_decay(self.depth, decay)

    @nn.compact
    def __call__(self, images: Array, train: bool, keep: Array | None = None) -> Array:
        """Encode images; arguments, result and errors as of `ViT`."""
        if keep is not None and self.pool != "token":
            raise Refusal(f"pool={self.pool!r} leaves tokens without a norm; take pool='token'")
        group, fields = self.group, self.width // self.group.order
        patches = transformer.patchify(images, self.patch)
        rows, columns = images.shape[1] // self.patch, images.shape[2] // self.patch
        code = self._positions(rows, columns, fields)
        at = _lifted(code, rows, columns, group)[:, None]
        if keep is not None:
            patches = jnp.take_along_axis(patches, keep[..., None], axis=1)
            at = at[:, 0, keep]
        x = fourier.PatchEmbed(fields, self.patch, group, self.dtype, name="patch_embed")(patches)
        x = x + at.astype(self.dtype)
        token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, fields))
        token = fourier.constant(token + code[:1], group).astype(self.dtype)
        token = jnp.broadcast_to(token, (group.order, x.shape[1], 1, fields))
        x = jnp.concatenate([token, x], axis=2)

        rates = [float(rate) for rate in np.linspace(0, self.drop_path, self.depth)]
        block = self._remat(fourier.Block)
        for i, rate in enumerate(rates[: self.symmetric]):
            parts = self.heads, group, self.mlp_ratio, rate, self.dtype, self.fuse, self.norm_over
            x = block(*parts, name=f"blocks_{i}")(x, train)
        if self.symmetric == self.depth:
            return self._fields_out(x, keep)

        if self.invariant:
            mix = nn.Dense(self.width, dtype=self.dtype, name="mix_invariants")
            x = transformer.each_token(mix, fourier.invariants(x, group))
        else:
            x = fourier.synthesise(x, group)
        block = self._remat(transformer.Block)
        for i, rate in enumerate(rates[self.symmetric :], self.symmetric):
            layer = block(self.heads, self.mlp_ratio, rate, self.dtype, name=f"blocks_{i}")
            x = layer(x, train)
        if self.pool == "mean":
            mean = jnp.mean(at_least_f32(x[:, 1:]), axis=1)
            return at_least_f32(transformer.layer_norm(self.dtype, "fc_norm")(mean))
        x = at_least_f32(transformer.layer_norm(self.dtype, "norm")(x))
        return x[:, 0] if keep is None else x

    def _remat(self, block: Any) -> Any:
        return nn.remat(block, static_argnums=(2,)) if self.remat else block

    def _fields_out(self, x: Array, keep: Array | None) -> Array:
        """What the network gives where no plain block follows, of planes [G, N, 1 + n, F]."""
        if self.pool == "mean":
            x = jnp.mean(at_least_f32(x[:, :, 1:]), axis=2)
            x = fourier.LayerNorm(self.group, self.norm_over, name="fc_norm")(x)
        else:
            x = at_least_f32(fourier.LayerNorm(self.group, self.norm_over, name="norm")(x))
            x = x[:, :, 0] if keep is None else x
        return (fourier.invariants if self.invariant else fourier.synthesise)(x, self.group)


def _lifted(code: Array, rows: int, columns: int, group: Group) -> Array:
    """A table f32[1 + rows * columns, F] as fields: planes [G, rows * columns, F]."""
    fields = code.shape[-1]
    return fourier.lift(code[1:].reshape(rows, columns, fields), group).reshape(
        group.order, -1, fields
    )


def make(
    architecture: str = "base",
    *,
    group: str = "d4",
    symmetric: int | None = None,
    invariant: bool = False,
    fuse: bool = False,
    norm_over: str = "fields",
    patch: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_ratio: float = 4.0,
    pool: str = "token",
    positions: str = "fixed",
    position_grid: int = 0,
    drop_path: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> OcticViT:
    """Build the network of a size of `models.vit`; arguments as of `OcticViT`.

    Args:
      group: `d4` (octic), `d1` (the mirror, flopping), `c4`, `c2`, `d2`; `c1` for the plain one.
      symmetric: None for half of the blocks, the hybrid form of the paper.
      patch, width, depth, heads: instead of those of the architecture.

    Raises:
      ValueError: as `models.vit.make`; a group that does not map the grid onto itself; a width or
        heads of no whole number of fields, with the nearest widths that work; or blocks that the
        network does not have.
    """
    base = vit.make(
        architecture,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        pool=pool,
        positions=positions,
        position_grid=position_grid,
        drop_path=drop_path,
        dtype=dtype,
        remat=remat,
    )
    over = planar.named(group)
    planar.check_on_grid(over)
    step = math.lcm(4, base.heads) * over.order
    if base.width % step:
        nearest = base.width // step * step
        widths = f"{nearest} or {nearest + step}" if nearest else f"{step}"
        raise Refusal(
            f"width {base.width} with {base.heads} heads: a head is whole fields of {over.order} "
            f"channels over {over.name}, and their code of positions has a number divisible by 4; "
            f"the nearest widths are {widths}"
        )
    if symmetric is None:
        symmetric = base.depth // 2
    if not 0 <= symmetric <= base.depth:
        raise Refusal(f"symmetric={symmetric}: from 0 to all {base.depth} blocks are equivariant")
    if norm_over not in fourier.NORMS:
        raise names.unknown("norm_over", norm_over, fourier.NORMS)
    own: dict[str, Any] = {
        "symmetric": symmetric,
        "invariant": invariant,
        "fuse": fuse,
        "norm_over": norm_over,
    }
    return OcticViT(**_of_a_vit(base), group=over, **own)


def plain(network: OcticViT, params: PyTree, rows: int, columns: int) -> tuple[ViT, dict[str, Any]]:
    """Write a network out as a `models.vit` of the same width and outputs.

    Args:
      network: with `invariant=False`.
      params: of it.
      rows, columns: patches of the images; their code becomes a learned table.

    Returns:
      The plain network and its parameters.

    Raises:
      ValueError: the network passes on invariants or has norms over irreps, which no plain one has.
    """
    if network.invariant:
        raise Refusal("a network with invariant=True takes lengths, which no plain one does")
    if network.norm_over != "fields":
        raise Refusal(
            f"norm_over={network.norm_over!r} has other means than the norm of a plain network"
        )
    group = network.group

    def repeated(values: Array) -> Array:
        return jnp.repeat(values, group.order, -1)

    def moved(table: Array) -> Array:
        """[H, W, ..., F] to [H, W, ..., F G]."""
        return fourier.synthesise(fourier.lift(table, group), group)

    def written_out(layer: dict[str, Any]) -> dict[str, Any]:
        if "kernel" not in layer:  # a norm, or a part with layers of its own
            return {
                k: written_out(v) if isinstance(v, dict) else repeated(v) for k, v in layer.items()
            }
        kernel = fourier.inverse(layer["kernel"], group)[None, None]
        return {"kernel": filter_bank(kernel, group)[0, 0], "bias": repeated(layer["bias"])}

    fields = network.width // group.order
    code = jnp.asarray(transformer.sincos_positions(fields, rows, columns))
    if network.positions == "learned":
        code = params["pos_embed"][0]
    table = moved(code[1:].reshape(rows, columns, fields)).reshape(rows * columns, -1)
    symmetric = {f"blocks_{i}" for i in range(network.symmetric)}
    if network.symmetric == network.depth:
        symmetric |= {"norm", "fc_norm"}
    embed = params["patch_embed"]
    found = {name: written_out(v) if name in symmetric else v for name, v in params.items()}
    found |= {
        "patch_embed": {"kernel": moved(embed["kernel"]), "bias": repeated(embed["bias"])},
        "cls_token": repeated(params["cls_token"]),
        "pos_embed": jnp.concatenate([repeated(code[:1]), table])[None],
    }
    return ViT(**_of_a_vit(network) | {"positions": "learned", "position_grid": 0}), found


def _of_a_vit(network: ViT) -> dict[str, Any]:
    """The attributes that a `ViT` has."""
    named = [f.name for f in dataclasses.fields(ViT) if f.name not in ("parent", "name")]
    return {name: getattr(network, name) for name in named}
