"""What equivariance saves: layers in the basis of the irreps beside those of all channels.

Two CPU cores that other programs keep busy (load 15), 2026-11-27, f32, medians in turn; first by
the clock, then by the processor.

- MLP of an octic block over that of a plain one, 8 x 196 tokens: C = 768 forward 0.48 and 0.48,
  with gradient 0.35 and 0.36; C = 1024 0.39 and 0.38, with gradient 0.44 and 0.34. The products
  alone take 0.21. The rest is memory: GELU, two transforms, slices, and a fifth of the forward pass
  fetches fresh pages (where malloc keeps them it is 0.36 by the processor). Mapped over examples
  the forward pass takes 0.32 and the gradient 0.39.
- On quiet cores, 2026-11-28, where without a gradient the MLP passes one example after another
  through both layers: C = 768 forward 0.30 and 0.28, with gradient 0.39 and 0.38; C = 1024 0.29 and
  0.27, 0.35 and 0.34.
- Train step of the hybrid network over the plain one's, 224 pixels, batch 4 (quiet, 2026-11-28):
  ViT-B 0.72 and 0.71, ViT-L 0.68 and 0.68; ConvNeXt iso_small, half of the blocks over D4, 0.83 and
  0.82.
- A block of ViT-L with its gradient, 32 images, bfloat16, compiled for v5e (2026-11-28): plain 491
  GFLOPs and 1708 MB of memory traffic; octic 106 and 1745; with the kernel of `nn.fused` 104 and
  1694.
- FLOPs of the hybrid ViT-H/14, as lowered: 207 of 338 GFLOPs, 0.613.
- Convolutions over D4 of a ResNet-50, batch 8, with gradient, between maps that lie field by field
  and element by element. One pixel: 0.29 to 0.73 and 0.27 to 0.70, the less the more fields. 3 x 3:
  2.0 and 2.5 for 8 fields at 25 pixels, where patches cost more than they save; 0.77 and 0.91 for
  16 at 13; 0.16 and 0.46 for 32 at 7; 0.28 and 0.33 for 64 at 4; 0.33 and 0.34 for 128 at 7.
- In a layer of `nn.gconv`, whose channels are moved for it and back, by the processor: 3 x 3 over
  D4 1.37 for 12 fields, 1.28 for 24, 0.57 for 32, 0.46 for 48; over C4 1.19 for 32, 0.62 for 64,
  0.51 for 128; over D1 0.67 for 128. One pixel: D4 1.28 for 8, 0.59 for 16; C4 0.55 for 32. Hence
  the numbers in `gconv.pays`.
- 3 x 3 with its gradient by Winograd's tiles over XLA's convolution (`tiles`, quiet, 2026-11-28):
  64 channels at 32 pixels and batch 16 0.68 and 1.28; 96 at 25, batch 8, 0.60 and 0.81; 128 at 16,
  batch 16, 0.73 and 0.74; 280 at 13, batch 8, 0.57 and 0.62. With fewer tiles than channels the 16
  values of the kernel outweigh them: 256 at 8 pixels, batch 16, 0.73 and 0.81, where a train step
  was no faster than by irreps; 384 at 8 forward 1.3 and with its gradient no better; 512 at 4,
  batch 64, 1.0 and 1.0. Irreps over these tiles, by the processor: 1.5 for 24 fields of D4 at 16
  pixels, 1.6 for 25 and 1.5 for 28 at 25, 0.6 for 32 at 13, and 1.4 for 70 fields of C4 at 13.
  Hence `gconv._SAVED_TILE`.
- Train steps by fewer products over those by channels (`domains`, 2026-11-28, 3 to 7 in turn):
  d4resnet50, batch 8, 97 pixels, 0.49 and 0.47; with `fast` 0.78 and 0.80, and 0.85 and 0.86 of the
  plain ResNet-50; c4resnet50 0.67 and 0.66, and 0.80 and 0.72 of the plain one; d4resnet18 0.48 and
  0.46, c4resnet18 0.60 and 0.62; p4mresnet44, batch 16, 32 pixels, 0.74 and 0.71; p4resnet44 0.73
  and 0.91; `resnet44`, over C1, 0.85 and 1.00. They compile up to nineteen times as long, 9 to 57
  s.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.bench.groups import alternate, compiled_step
from jaxequi.groups import planar
from jaxequi.groups.planar import Group, dihedral
from jaxequi.models import convnext, gresnet, octic_vit, steerable_resnet, vit
from jaxequi.nn import fourier, gconv, steerable, transformer
from jaxequi.nn.conv import Window, by_winograd, conv2d, product_pays, winograd_pays
from jaxequi.plan import chips, program

D4 = dihedral(4)


class Shape(NamedTuple):
    """A convolution: side of the kernel, of the image, and fields of D4 in and out."""

    kernel: int
    side: int
    inputs: int
    outputs: int


# What a ResNet-50 over D4 of 64 to 2048 channels has in its four stages, at 97 pixels, and one of
# four times its fields.
RESNET50 = [
    Shape(k, side, *(wide * n for n in fields))
    for wide, sides in ((1, (25, 13, 7, 4)), (4, (7,)))
    for stage, side in enumerate((25, 13, 7, 4))
    if side in sides
    for k, fields in (
        (1, (32 << stage, 8 << stage)),
        (3, (8 << stage, 8 << stage)),
        (1, (8 << stage, 32 << stage)),
    )
]


class Map(NamedTuple):
    """A feature map: channels, side and images."""

    channels: int
    side: int
    images: int


MAPS = (Map(64, 32, 16), Map(96, 25, 8), Map(128, 16, 16), Map(280, 13, 8), Map(256, 8, 16))

NETWORKS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {
    "p4resnet44": (gresnet.make, 16, 32),
    "p4mresnet44": (gresnet.make, 16, 32),
    "c4resnet18": (steerable_resnet.make, 8, 97),
    "d4resnet18": (steerable_resnet.make, 8, 97),
    "c4resnet50": (steerable_resnet.make, 8, 97),
    "d4resnet50": (steerable_resnet.make, 8, 97),
    "c8resnet18": (steerable_resnet.make, 8, 97),
}


def run(
    widths: tuple[int, ...] = (768, 1024),
    tokens: int = 196,
    batch_size: int = 8,
    shapes: tuple[Shape, ...] = tuple(RESNET50),
    maps: tuple[Map, ...] = MAPS,
    vits: tuple[str, ...] = ("base", "large"),
    convnexts: tuple[str, ...] = ("iso_small",),
    networks: tuple[str, ...] = tuple(NETWORKS),
    repeats: int = 5,
) -> dict[str, Any]:
    """Time layers in turn, plain and by irreps; medians of `repeats`.

    Returns:
      `mlp`: by width, of a transformer's two layers, forward and with its gradient: seconds of both
      by the clock and ratios by the clock and by the processor. `vit_h14`: FLOPs of the hybrid
      network over the plain one's, as lowered; nothing is compiled. `conv`: by shape, seconds with
      the gradient of both, the ratios, and which is the faster one. `tiles`: of each of `maps` a
      3 x 3 convolution with its gradient, Winograd's products over XLA's. `train_step`: of each of
      `vits`, and of each of `convnexts` over D1 and D4, hybrid over plain, half the batch at 224
      pixels; the large one takes 6 GiB. `domains`:
      of each of `networks` a train step with domain="fourier" over one with "regular". `choices`:
      of each network in `NETWORKS` how a CPU computes its convolutions, and why. `v5e`: of a block
      of ViT-L, plain, octic and octic with the kernel of `nn.fused`, compiled with its gradient for
      a TPU that is not here: GFLOPs and MB of memory traffic; null where libtpu is not installed.
    """
    return {
        "mlp": {f"C={width}": mlp(width, tokens, batch_size, repeats) for width in widths},
        "vit_h14": vit_flops(),
        "conv": {
            "{}x{} {}px {}->{}".format(s.kernel, *s): conv(s, batch_size, repeats) for s in shapes
        },
        "tiles": {f"{m.channels} {m.side}px {m.images}": tiles(m, repeats) for m in maps},
        "train_step": {
            name: train_step(plain, hybrid, batch_size // 2, repeats)
            for name, (plain, hybrid) in _pairs(vits, convnexts).items()
        },
        "domains": {name: domains(name, repeats) for name in networks},
        "choices": {
            name: choices(make(name, domain="fourier"), batch, side)
            for name, (make, batch, side) in NETWORKS.items()
        },
        "v5e": on_v5e() if importlib.util.find_spec("libtpu") else None,
    }


def mlp(width: int, tokens: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """The MLP of a block of the octic transformer beside the plain one's."""
    fields = width // D4.order
    plain = transformer.MLP(4 * width), (batch_size, tokens, width)
    octic = fourier.MLP(4 * fields, D4), (D4.order, batch_size, tokens, fields)
    calls = {}
    for gradient in (False, True):
        calls[gradient] = [_layer(module, shape, gradient) for module, shape in (plain, octic)]
    return {
        name: _compared(calls[gradient], repeats)
        for name, gradient in (("forward", False), ("gradient", True))
    }


def _pairs(
    vits: tuple[str, ...], convnexts: tuple[str, ...]
) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Plain networks, and those whose first half is over a group."""
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {
        name: (vit.make(name), octic_vit.make(name)) for name in vits
    }
    for name in convnexts:
        for group in ("d1", "d4"):
            pairs[f"{name} {group}"] = convnext.make(name), convnext.make(name, group=group)
    return pairs


def train_step(
    plain: nn.Module, hybrid: nn.Module, batch_size: int, repeats: int, side: int = 224
) -> dict[str, Any]:
    """A train step of a hybrid network beside the plain one's."""
    networks = {"plain": plain, "hybrid": hybrid}
    made = [compiled_step(network, batch_size, side) for network in networks.values()]
    found = _compared([step for step, _ in made], repeats)
    return found | {"compile_seconds": dict(zip(networks, (s for _, s in made), strict=True))}


def domains(name: str, repeats: int) -> dict[str, Any]:
    """A train step of a network in `NETWORKS` by fewer products beside one by channels."""
    make, batch_size, side = NETWORKS[name]
    networks = [make(name, domain=domain) for domain in gconv.DOMAINS]
    steps, seconds = zip(*(compiled_step(n, batch_size, side) for n in networks), strict=True)
    compiled = dict(zip(gconv.DOMAINS, seconds, strict=True))
    return _compared(list(steps), repeats, "regular", "fourier") | {"compile_seconds": compiled}


def choices(network: nn.Module, batch_size: int, side: int) -> dict[str, str]:
    """How a CPU computes the convolutions of a network over a group; nothing is compiled."""
    found = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y, layer = call(*args, **kwargs), context.module
        kinds = (gconv.GroupConv, gconv.LiftingConv, steerable.RegularConv)
        if isinstance(layer, kinds) and context.method_name == "__call__":
            over = planar.part_on_grid(layer.group)
            k, taken, made = layer.kernel_size, args[0].shape, y.shape
            name = f"{k}x{k} {made[1]}px {taken[-1]}->{made[-1]}"
            found[name] = _choice(over, layer, taken, (k, k, taken[-1], made[-1]), made[:3])
        return y

    x = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda key, x: network.init(key, x, False), jax.random.key(0), x)
    return found


def _choice(
    over: Group,
    layer: Any,
    images: tuple[int, ...],
    kernel: tuple[int, ...],
    made: tuple[int, ...],
) -> str:
    steerably = isinstance(layer, steerable.RegularConv)
    strides = layer.stride if steerably else layer.strides
    moves = gconv.windows(strides, layer.padding, layer.dilation)
    tiled = winograd_pays(images, kernel, moves)
    if isinstance(layer, gconv.LiftingConv) or (steerably and layer.lifting):
        why = "it lifts"
    else:
        saved, needed = gconv.worth(over, kernel[0], kernel[-1] // over.order, tiled)
        why = f"{saved:.0f} products saved a number, {needed} needed"
        if saved >= needed:
            return f"by irreps of {over.name}: {why}"
    how = "Winograd's products" if tiled else "XLA's convolution"
    return f"by channels, {'one product' if product_pays(made, kernel) else how}: {why}"


def on_v5e(width: int = 1024, tokens: int = 197, batch_size: int = 32) -> dict[str, Any]:
    """Compile a block of a vision transformer with its gradient for one v5e, in bfloat16."""
    heads, fields, half = width // 64, width // D4.order, jnp.bfloat16
    octic = (D4.order, batch_size, tokens, fields)
    blocks = {
        "plain": (transformer.Block(heads, dtype=half), (batch_size, tokens, width)),
        "octic": (fourier.Block(heads, D4, dtype=half), octic),
        "fused": (fourier.Block(heads, D4, dtype=half, fuse=True), octic),
    }
    device = chips.devices(chips.parse("v5e:1x1"))[0]
    here = jax.sharding.SingleDeviceSharding(device)
    found = {}
    for name, (block, shape) in blocks.items():
        x = jax.ShapeDtypeStruct(shape, half, sharding=here)
        shapes = jax.eval_shape(lambda key, x, b=block: b.init(key, x, False), jax.random.key(0), x)
        params = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), shapes
        )
        step = _with_gradient(lambda p, x, b=block: b.apply(p, x, False))
        lowered = jax.jit(step).trace(params, x).lower(lowering_platforms=("tpu",))
        cost = program.cost(lowered.compile())
        found[name] = {"gflops": cost.flops / 1e9, "traffic_mb": cost.traffic / 1e6}
    return found


def vit_flops() -> dict[str, float]:
    """FLOPs of ViT-H/14 on one image of 224 pixels: plain, hybrid octic, and their ratio."""

    def flops(network: nn.Module) -> float:
        x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        params = jax.eval_shape(lambda k, x: network.init(k, x, False), jax.random.key(0), x)
        lowered = jax.jit(lambda p, x: network.apply(p, x, False)).lower(params, x)
        cost: Any = lowered.cost_analysis()
        return cost["flops"]

    plain, hybrid = flops(vit.make("huge")), flops(octic_vit.make("huge"))
    return {"plain_gflops": plain / 1e9, "hybrid_gflops": hybrid / 1e9, "ratio": hybrid / plain}


def conv(shape: Shape, batch_size: int, repeats: int) -> dict[str, Any]:
    """A convolution over D4 with its gradient: as `gconv` has it, and by irreps."""
    k, side, inputs, outputs = shape
    window = Window(1, (k // 2, k // 2))

    def regular(x: Any, kernel: Any) -> Any:
        return gconv.group_conv(x, kernel, D4, padding=k // 2)

    def by_irreps(x: Any, kernel: Any) -> Any:
        return fourier.inverse(fourier.conv(x, kernel, D4, window, window), D4)

    pairs = [
        (regular, (batch_size, side, side, inputs * 8), (k, k, 8, inputs, outputs)),
        (by_irreps, (8, batch_size, side, side, inputs), (8, k, k, inputs, outputs)),
    ]
    calls = [
        _compiled(_with_gradient(function), _normal(x), _normal(kernel))
        for function, x, kernel in pairs
    ]
    found = _compared(calls, repeats)
    return found | {"faster": "irreps" if found["processor_ratio"] < 1 else "channels"}


def tiles(map: Map, repeats: int) -> dict[str, Any]:
    """A 3 x 3 convolution of a feature map with its gradient: XLA's, and by Winograd's products."""
    window = Window(1, (1, 1))
    x = _normal((map.images, map.side, map.side, map.channels))
    kernel = _normal((3, 3, map.channels, map.channels))

    def native(x: Any, kernel: Any) -> Any:
        return conv2d(x, kernel, window, window)

    def winograd(x: Any, kernel: Any) -> Any:
        return by_winograd(x, kernel, (window, window))

    calls = [_compiled(_with_gradient(function), x, kernel) for function in (native, winograd)]
    return _compared(calls, repeats, "native", "winograd")


def _layer(module: nn.Module, shape: tuple[int, ...], gradient: bool) -> Callable[[], None]:
    x = _normal(shape)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda a: _normal(a.shape) / a.shape[-1] ** 0.5, shapes)

    def layer(params: Any, x: Any) -> Any:
        return module.apply(params, x)

    return _compiled(_with_gradient(layer) if gradient else layer, params, x)


def _with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        y, pull = jax.vjp(function, *arguments)
        return y, pull(y)

    return both


def _normal(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    program = jax.jit(function).lower(*arguments).compile()

    def call() -> None:
        jax.block_until_ready(program(*arguments))

    return call


def _compared(
    calls: list[Callable[[], None]], repeats: int, one: str = "plain", other: str = "irreps"
) -> dict[str, Any]:
    first, second = alternate(calls, repeats, statistics.median)
    return {
        f"{one}_seconds": first[0],
        f"{other}_seconds": second[0],
        "ratio": second[0] / first[0],
        "processor_ratio": second[1] / first[1],
    }
