"""ConvNeXts, plain and over a group, where they are cheaper than the plain ones of the same width.

Liu et al. (2022), "A ConvNet for the 2020s", arXiv 2201.03545; facebookresearch/ConvNeXt,
`models/{convnext, convnext_isotropic}.py`. Over D1, the mirror alone, the isotropic ones are those
of Bökman, Nordström and Kahl (2025), "Flopping for FLOPs", arXiv 2502.05169;
georg-bn/flopping-for-flops, `convnext/models/d2_convnext_isotropic.py`.

The first blocks are equivariant: their maps are C / G regular fields, held as planes
(`nn.fourier`). The rest are plain. `plain` writes the whole network out as a plain one with the
same outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group, cyclic
from jaxequi.names import unknown
from jaxequi.nn import fourier, spread, transformer
from jaxequi.nn.conv import Conv, Window, conv2d
from jaxequi.nn.gconv import filter_bank
from jaxequi.nn.norm import at_least_f32
from jaxequi.types import Array, PyTree

KERNEL = 7
"""Side of the kernels within a block."""

# The reference cuts at two, of a standard deviation of 0.02: nowhere.
_normal, _zeros = nn.initializers.normal(0.02), nn.initializers.zeros


class ConvNeXt(nn.Module):
    """Images f32[N, H, W, 3] to features f32[N, R].

    The law, at sizes that patch and strides divide (`probes.exactness`; of others the last rows and
    columns are dropped): with all blocks equivariant and `invariant=False` the features are regular
    fields (channel = field * G + element), which an element permutes; with `invariant=True` it
    leaves them as they are. After plain blocks there is no law.

    Attributes:
      widths: channels of each stage.
      depths: blocks of each stage.
      patch: side of the patches that the stem reads, in pixels; each later stage starts with
        patches of 2 x 2.
      stem_norm: a LayerNorm behind the stem; the isotropic networks have none.
      group: C_N or D_N with N in {1, 2, 4}; C1 for the plain network.
      symmetric: blocks that are equivariant, the first ones; 0 <= symmetric <= sum(depths).
      invariant: give what no element moves (`fourier.invariants`), lengths; all blocks are then
        equivariant, for plain ones do not turn their kernels with the image.
      layer_scale: what the scales of a block's branch start as, one number a field; 0 for none.
      drop_path: probability that the last block's branch is left out; it rises linearly from 0.
      fuse: GELU and its transforms as one kernel on a TPU, see `fourier.pointwise`.
      dtype: of the computation; parameters and features are f32.
      remat: compute each block again in the backward pass instead of keeping its inner tensors.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    patch: int = 4
    stem_norm: bool = True
    group: Group = cyclic(1)
    symmetric: int = 0
    invariant: bool = False
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    fuse: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        if self.invariant:
            return self.widths[-1] // self.group.order * fourier.invariant_planes(self.group)
        return self.widths[-1]

    @property
    def plain_from(self) -> str:
        """Of a network over a group the first layer that is plain, "" if there is none."""
        starts = [*itertools.accumulate(self.depths)]
        if self.group.order == 1 or self.symmetric == starts[-1]:
            return ""
        if self.symmetric in starts:
            return f"downsample_{starts.index(self.symmetric) + 1}_norm"
        return f"blocks_{self.symmetric}"

    @nn.nowrap
    def layer_decay(self, decay: float) -> tuple[tuple[str, float], ...]:
        """Factors of the learning rate for parameters by their path, the first match counts.

        facebookresearch/ConvNeXt, `optim_factory.py`: a layer is three consecutive blocks of a
        stage, with what leads to it; of 3, 3, 27 and 3 blocks these are 12. It has one power of
        `decay` less than the one before, the stem one more than the first, all else 1.

        Returns:
          (regex, factor) pairs; the regexes are searched in paths such as "backbone/blocks_0/mlp".
        """
        layers: list[range] = []
        first, stages = 0, []
        for depth in self.depths:
            stages.append(len(layers))
            layers += [range(first, first + depth)[i : i + 3] for i in range(0, depth, 3)]
            first += depth
        n = len(layers)
        found = [(r"(^|/)stem(_norm)?/", decay ** (n + 1))]
        found += [
            (rf"(^|/)downsample_{s}(_norm)?/", decay ** (n - at)) for s, at in enumerate(stages)
        ]
        for at, blocks in enumerate(layers):
            found += [(rf"(^|/)blocks_{i}/", decay ** (n - at)) for i in blocks]
        return *found, ("", 1.0)

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Encode images.

        Raises:
          ValueError: images of which nothing would be left.
        """
        needed = self.patch * 2 ** (len(self.depths) - 1)
        if min(images.shape[1:3]) < needed:
            raise Refusal(
                f"images of {images.shape[1]}x{images.shape[2]}: this network reads patches of "
                f"{needed}x{needed} pixels; take larger images, or a smaller `patch`"
            )
        over, total = self.group, sum(self.depths)
        rates = [float(rate) for rate in np.linspace(0, self.drop_path, total)]
        starts = {*itertools.accumulate(self.depths[:-1])}
        of_stage = np.repeat(np.arange(len(self.depths)), self.depths)
        fields = self.widths[0] // over.order
        x = _Stem(fields, self.patch, over, self.dtype, name="stem")(images)
        if self.stem_norm:
            x = fourier.LayerNorm(over, name="stem_norm")(x)
        for i, (rate, stage) in enumerate(zip(rates, of_stage)):
            width = self.widths[stage]
            if i == self.symmetric:
                x = fourier.synthesise(x, over)
            symmetric = i < self.symmetric
            if i in starts:
                if symmetric:
                    fields = width // over.order
                    x = fourier.LayerNorm(over, name=f"downsample_{stage}_norm")(x)
                    x = _GroupDownsample(fields, over, self.dtype, name=f"downsample_{stage}")(x)
                else:
                    x = transformer.layer_norm(self.dtype, f"downsample_{stage}_norm")(x)
                    x = _Downsample(width, self.dtype, name=f"downsample_{stage}")(x)
            if symmetric:
                block: Any = self._remat(GroupBlock)
                layer = block(
                    over, rate, self.layer_scale, self.dtype, self.fuse, name=f"blocks_{i}"
                )
            else:
                block = self._remat(Block)
                layer = block(rate, self.layer_scale, self.dtype, name=f"blocks_{i}")
            x = layer(x, train)
        if self.symmetric < total:
            mean = jnp.mean(at_least_f32(x), (1, 2))
            return transformer.layer_norm(mean.dtype, "norm")(mean)
        x = fourier.LayerNorm(over, name="norm")(jnp.mean(at_least_f32(x), (2, 3)))
        return (fourier.invariants if self.invariant else fourier.synthesise)(x, over)

    def _remat(self, block: Any) -> Any:
        return nn.remat(block, static_argnums=(2,)) if self.remat else block


class Block(nn.Module):
    """x + scale MLP(LN(depthwise(x))): [N, H, W, C] to [N, H, W, C].

    Parameters: of `depthwise` `kernel` f32[7, 7, 1, C] and `bias` f32[C], of `norm`, of `mlp`, and
    `layer_scale` f32[C] unless it starts at 0.

    Attributes:
      drop_path: probability that the branch is left out for an example (rng "dropout").
      layer_scale, dtype: as of `ConvNeXt`.
    """

    drop_path: float = 0.0
    layer_scale: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        width = x.shape[-1]
        window = (KERNEL // 2, KERNEL // 2)
        depthwise = Conv(
            width,
            KERNEL,
            padding=window,
            groups=width,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=_normal,
            name="depthwise",
        )
        h = transformer.layer_norm(self.dtype, "norm")(depthwise(x))
        h = transformer.MLP(4 * width, self.dtype, _normal, name="mlp")(h)
        h = _scaled(self, h)
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        return x + drop(h)


class GroupBlock(nn.Module):
    """`Block` of planes [G, N, H, W, F]; the filter of a field is moved by each element.

    Parameters: as of `Block`, `depthwise/kernel` f32[7, 7, 1, 1, F], all others one number a field,
    those of `mlp` as of `fourier.MLP`.

    Attributes:
      group: the group G.
      drop_path, layer_scale, dtype: as of `Block`.
      fuse: as of `fourier.MLP`.
    """

    group: Group
    drop_path: float = 0.0
    layer_scale: float = 1e-6
    dtype: DTypeLike = jnp.float32
    fuse: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        fields = x.shape[-1]
        h = _GroupDepthwise(self.group, self.dtype, name="depthwise")(x)
        h = fourier.LayerNorm(self.group, name="norm")(h)
        mlp = fourier.MLP(4 * fields, self.group, self.dtype, self.fuse, _normal, name="mlp")
        h = _scaled(self, mlp(h))
        drop = nn.Dropout(self.drop_path, broadcast_dims=(0, 2, 3, 4), deterministic=not train)
        return x + drop(h)


def _scaled(block: Block | GroupBlock, x: Array) -> Array:
    """Times the layer scale of a block, a parameter of it."""
    if not block.layer_scale:
        return x
    start = nn.initializers.constant(block.layer_scale)
    return x * block.param("layer_scale", start, x.shape[-1:], jnp.float32).astype(x.dtype)


class _GroupDepthwise(nn.Module):
    """Convolve each field of planes [G, N, H, W, F] by itself, with its filter moved."""

    group: Group
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fields = x.shape[-1]
        kernel = self.param("kernel", _normal, (KERNEL, KERNEL, 1, 1, fields), jnp.float32)
        bias = self.param("bias", _zeros, (fields,), jnp.float32)

        def own(x: Array, kernel: Array) -> Array:
            bank = jnp.stack([planar.act(self.group, s, kernel, (0, 1)) for s in range(len(x))])
            made = jax.lax.platform_dependent(
                fourier.inverse(x, self.group), bank, cpu=one_by_one, default=jax.vmap(convolved)
            )
            return fourier.transform(made, self.group)

        def convolved(x: Array, kernel: Array) -> Array:
            window = Window(padding=(KERNEL // 2, KERNEL // 2))
            return conv2d(x, kernel, window, window, fields)

        def one_by_one(x: Array, bank: Array) -> Array:
            """Element after element, a fifth of the time that a CPU takes for all at once."""
            return jax.lax.map(lambda pair: convolved(*pair), (x, bank))

        kernel = kernel[:, :, 0].astype(self.dtype)
        y = spread.by_rows(own, x.astype(self.dtype), kernel, axis=1)
        constant = fourier.constant(bias, self.group).astype(y.dtype)
        return y + constant[:, None, None, None]


class _Stem(nn.Module):
    """Patches of plain images [N, H, W, I] to planes [G, N, H // size, W // size, features].

    Parameters: `kernel` f32[size, size, I, features] and `bias` f32[features].
    """

    features: int
    size: int
    group: Group
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = self.size, self.size, x.shape[-1], self.features
        kernel = self.param("kernel", _normal, shape, jnp.float32)
        bias = self.param("bias", _zeros, (self.features,), jnp.float32)
        patches = transformer.space_to_depth(x.astype(self.dtype), self.size)
        return fourier.embed(patches, kernel, self.group, bias)


class _Downsample(nn.Module):
    """Patches of 2 x 2 pixels to pixels, [N, H, W, C] to [N, H // 2, W // 2, features].

    Parameters: `kernel` f32[2, 2, C, features] and `bias` f32[features].
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _normal, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", _zeros, (self.features,), jnp.float32)
        matrix = kernel.reshape(-1, self.features).astype(self.dtype)
        patches = transformer.space_to_depth(x.astype(self.dtype), 2)
        return transformer.each_token(lambda rows: rows @ matrix + bias.astype(self.dtype), patches)


class _GroupDownsample(nn.Module):
    """The same of planes, [G, N, H, W, F] to [G, N, H // 2, W // 2, features].

    Parameters: `kernel` f32[G, 2, 2, F, features], planes as of `fourier.conv`, and `bias`.
    """

    features: int
    group: Group
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = self.group.order, 2, 2, x.shape[-1], self.features
        kernel = self.param("kernel", _normal, shape, jnp.float32)
        bias = self.param("bias", _zeros, (self.features,), jnp.float32)
        fields = fourier.inverse(x.astype(self.dtype), self.group)
        return fourier.conv(fields, kernel, self.group, Window(2), Window(2), bias)


class Size(NamedTuple):
    """What tells the networks apart; fields as of `ConvNeXt`."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    patch: int = 4
    stem_norm: bool = True
    layer_scale: float = 1e-6


def _iso(depth: int, width: int, layer_scale: float = 0.0) -> Size:
    return Size((width,), (depth,), 16, False, layer_scale)


SIZES = {
    "tiny": Size((96, 192, 384, 768), (3, 3, 9, 3)),
    "small": Size((96, 192, 384, 768), (3, 3, 27, 3)),
    "base": Size((128, 256, 512, 1024), (3, 3, 27, 3)),
    "large": Size((192, 384, 768, 1536), (3, 3, 27, 3)),
    "xlarge": Size((256, 512, 1024, 2048), (3, 3, 27, 3)),
    "iso_small": _iso(18, 384),
    "iso_base": _iso(18, 768),
    "iso_large": _iso(36, 1024, 1e-6),
}


def make(
    architecture: str = "tiny",
    *,
    group: str = "c1",
    symmetric: int | None = None,
    invariant: bool = False,
    width: int | None = None,
    depths: Sequence[int] | None = None,
    patch: int | None = None,
    layer_scale: float | None = None,
    drop_path: float = 0.0,
    fuse: bool = False,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> ConvNeXt:
    """Build the network of a size of the paper; arguments as of `ConvNeXt`.

    >>> make().features, make("iso_base", group="d1", invariant=True).features
    (768, 768)
    >>> make("base", group="d4").symmetric  # of 36 blocks
    18

    Args:
      group: `c1`, the plain network; `d1`, the mirror, flopping; `d4`, octic; `c4`, `c2`, `d2`.
      symmetric: None for half of the blocks, and with `invariant` for all.
      width: of the first stage, each later one has twice as many channels as the one before.
      depths: one number a stage.
      width, depths, patch, layer_scale: instead of those of the architecture.

    Raises:
      ValueError: unknown architecture or group; a group that does not map the grid onto itself; a
        width of no whole number of fields, with the nearest ones; blocks that the network does not
        have, or plain ones with `invariant`; or a probability outside [0, 1).
    """
    if architecture not in SIZES:
        raise unknown("architecture", architecture, SIZES)
    given: dict[str, Any] = {"patch": patch, "layer_scale": layer_scale}
    size = SIZES[architecture]._replace(**{k: v for k, v in given.items() if v is not None})
    depths = size.depths if depths is None else tuple(depths)
    first = size.widths[0] if width is None else width
    size = size._replace(depths=depths, widths=tuple(first << s for s in range(len(depths))))
    if not depths or min(*depths, first, size.patch) < 1 or size.layer_scale < 0:
        raise Refusal(
            f"width={first}, depths={depths}, patch={size.patch}, layer_scale={size.layer_scale}: "
            "one depth a stage, none below 1, and no scale below 0"
        )
    if not 0 <= drop_path < 1:
        raise Refusal(f"drop_path={drop_path} is a probability below 1")
    over, total = planar.named(group), sum(depths)
    planar.check_on_grid(over)
    if first % over.order:
        nearest = first // over.order * over.order
        widths = f"{nearest} or {nearest + over.order}" if nearest else f"{over.order}"
        raise Refusal(
            f"width {first}: maps are whole fields of {over.order} channels over {over.name}; the "
            f"nearest widths are {widths}"
        )
    if symmetric is None:
        symmetric = total if invariant else total // 2
    if not 0 <= symmetric <= total:
        raise Refusal(f"symmetric={symmetric}: from 0 to all {total} blocks are equivariant")
    if invariant and symmetric < total:
        raise Refusal(
            f"invariant=True and symmetric={symmetric}: plain blocks do not move their kernels "
            f"with the image, so nothing stays invariant; leave `symmetric` out: all {total}"
        )
    if over.order == 1:
        symmetric, invariant = 0, False  # the plain blocks are the same ones
    return ConvNeXt(
        *(size.widths, size.depths, size.patch, size.stem_norm),
        group=over,
        symmetric=symmetric,
        invariant=invariant,
        layer_scale=size.layer_scale,
        drop_path=drop_path,
        fuse=fuse,
        dtype=dtype,
        remat=remat,
    )


def plain(network: ConvNeXt, params: PyTree) -> tuple[ConvNeXt, dict[str, Any]]:
    """Write a network out as a plain one of the same widths and outputs.

    Args:
      network: with `invariant=False`.
      params: of it.

    Returns:
      The plain network and its parameters.

    Raises:
      ValueError: the network gives invariants, which no plain one does.
    """
    if network.invariant:
        raise Refusal("a network with invariant=True gives lengths, which no plain one does")
    group = network.group

    def repeated(values: Array) -> Array:
        return jnp.repeat(values, group.order, -1)

    def mixed(kernel: Array) -> Array:
        """Planes [G, I, O] to a matrix [I G, O G]."""
        return filter_bank(fourier.inverse(kernel, group)[None, None], group)[0, 0]

    def downsample(kernel: Array) -> Array:
        """Planes [G, 2, 2, I, O] to [2, 2, I G, O G]: a tap of element t is t tap of the image."""
        fields = kernel.shape[3]
        taps = mixed(kernel.reshape(group.order, -1, kernel.shape[-1]))
        taps = taps.reshape(2, 2, fields, group.order, -1)
        moved = [planar.act(group, t, taps[:, :, :, t], (0, 1)) for t in range(group.order)]
        return jnp.stack(moved, 3).reshape(2, 2, fields * group.order, -1)

    def written_out(name: str, layer: Any) -> Any:
        if not isinstance(layer, dict):  # the scale of a block
            return repeated(layer)
        if "kernel" not in layer:  # a norm, or a part with layers of its own
            return {k: written_out(k, v) for k, v in layer.items()}
        kernel = layer["kernel"]
        if name == "stem":
            kernel = fourier.synthesise(fourier.lift(kernel, group), group)
        elif name == "depthwise":
            kernel = filter_bank(kernel, group)
        else:
            kernel = downsample(kernel) if kernel.ndim == 5 else mixed(kernel)
        return {"kernel": kernel, "bias": repeated(layer["bias"])}

    starts = [0, *itertools.accumulate(network.depths)]
    symmetric = {"stem", "stem_norm", *(f"blocks_{i}" for i in range(network.symmetric))}
    for stage, start in enumerate(starts[1:-1], 1):
        if start < network.symmetric:
            symmetric |= {f"downsample_{stage}", f"downsample_{stage}_norm"}
    if network.symmetric == starts[-1]:
        symmetric.add("norm")
    found = {n: written_out(n, v) if n in symmetric else v for n, v in params.items()}
    return network.clone(group=cyclic(1), symmetric=0), found
