"""Pre-activation ResNets over C_N and D_N; over C1 they are the plain ones.

Edixhoven, Lengyel and van Gemert (2023), "Using and Abusing Equivariance";
`experiments/models/{resnet, resnet_p4, resnet_p4m}.py` and `classification/pcam/resnet44*.py`.

Stem 3x3 without norm, stages of pre-activation blocks, the first block of each stage but the first
with stride 2, then norm, ReLU and a head that pools pixels and slices. Every 3x3 layer pads 1 and
every shortcut 0, so with S strided stages the sizes n = 1 mod 2^S, and no others, are exact.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi import names
from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.nn.gconv import GroupConv, LiftingConv, check_domain
from jaxequi.nn.norm import BatchNorm, at_least_f32
from jaxequi.nn.pool import coset_max
from jaxequi.types import Array

HEADS = ("slices", "coset_first", "coset_last")
"""How a feature map [B, H, W, C G] becomes a representation.

`slices`: mean over pixels, f32[B, C G]; not invariant, the slices are permuted. `coset_first`: max
over each field, then mean, f32[B, C] (the reference's groupcosetmaxpool). `coset_last`: mean, then
max, f32[B, C] (its PCAM and RotMNIST networks).
"""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One row of the reference's tables: group, fields and blocks of the stages, separable form."""

    group: str
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    separable: str | None = None
    head: str = "slices"


def _row(group: str, depth: int, width: int, separable: str | None = None) -> Architecture:
    blocks = {18: (2, 2, 2, 2), 44: (7, 7, 7)}[depth]
    return Architecture(group, tuple(width * 2**i for i in range(len(blocks))), blocks, separable)


ARCHITECTURES = {
    "resnet18": _row("c1", 18, 64),
    "resnet44": _row("c1", 44, 32),
    "p4resnet18": _row("c4", 18, 32),
    "p4resnet44": _row("c4", 44, 16),
    "p4mresnet18": _row("d4", 18, 23),
    "p4mresnet44": _row("d4", 44, 12),
    "gcp4resnet18": _row("c4", 18, 90, "gc"),
    "gcp4resnet44": _row("c4", 44, 47, "gc"),
    "gcp4mresnet18": _row("d4", 18, 64, "gc"),
    "gcp4mresnet44": _row("d4", 44, 35, "gc"),
    "pcam_resnet44": Architecture("c1", (8, 14, 28), (7, 7, 7)),
    "pcam_p4resnet44": Architecture("c4", (4, 7, 14), (7, 7, 7), head="coset_last"),
}


def he_fan_out(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """N(0, 2 / (O k^2)) for a kernel [k, k, T, I, O]: torch's kaiming_normal by fan_out."""
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / (shape[-1] * shape[0] * shape[1]))


class Block(nn.Module):
    """conv(relu(norm(conv(relu(norm(x)))))) + shortcut(x); the shortcut takes the raw x.

    Attributes:
      features: output fields.
      strides: of the first convolution and the shortcut.
      conv, shortcut, norm: the layers, everything bound but features, size, strides and padding.
    """

    features: int
    strides: int
    conv: Any
    shortcut: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.relu(self.norm(name="bn1")(x))
        h = self.conv(self.features, strides=self.strides, name="conv1")(h)
        h = nn.relu(self.norm(name="bn2")(h))
        h = self.conv(self.features, name="conv2")(h)
        if self.strides > 1:
            x = self.shortcut(self.features, strides=self.strides, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x)
        return h + x


class GResNet(nn.Module):
    """Images f32[B, H, W, I] to a representation f32[B, R].

    Attributes:
      group: over which the features are fields; C1 for a plain network.
      widths: fields of each stage.
      blocks: blocks of each stage; all stages but the first begin with stride 2.
      separable: None, `g` or `gc`: the form of the 3x3 kernels in the blocks.
      head: how pixels and slices are pooled (`HEADS`).
      norm: makes the norms, such as `nn.norm.BatchNorm`.
      remat: recompute each block in the backward pass.
      dtype: of the computation.
      domain: of the layers between feature maps (`nn.gconv.DOMAINS`).

    Raises:
      ValueError: an image too small for the strides.
    """

    group: Group
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    separable: str | None = None
    head: str = "slices"
    norm: Any = BatchNorm
    remat: bool = False
    dtype: Any = jnp.float32
    domain: str = "regular"

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        return self.widths[-1] * (self.group.order if self.head == "slices" else 1)

    @nn.compact
    def feature_map(self, x: Array, train: bool) -> Array:
        """Compute the last feature map, after its norm and ReLU: [B, H', W', C G]."""
        # the reference draws plain kernels by fan-out and leaves those of the groups at the default
        init = he_fan_out if self.group.order == 1 else None
        bound = {"group": self.group, "kernel_init": init, "dtype": self.dtype}
        norm = functools.partial(
            self.norm,
            use_running_average=not train,
            field_size=self.group.order,
        )
        group_conv = functools.partial(GroupConv, domain=self.domain, **bound)
        conv = functools.partial(group_conv, padding=1, separable=self.separable)
        shortcut = functools.partial(group_conv, kernel_size=1)
        block = nn.remat(Block) if self.remat else Block
        x = LiftingConv(self.widths[0], padding=1, name="stem", **bound)(x)
        for i, (width, count) in enumerate(zip(self.widths, self.blocks)):
            for b in range(count):
                strides = 2 if i > 0 and b == 0 else 1
                name = f"layer{i + 1}_{b}"
                x = block(width, strides, conv=conv, shortcut=shortcut, norm=norm, name=name)(x)
        return nn.relu(norm(name="bn")(x))

    def __call__(self, x: Array, train: bool) -> Array:
        """Compute the representation."""
        return pooled(self.feature_map(x, train), self.group, self.head)


def plain(network: GResNet) -> GResNet:
    """The network over C1, of all channels, that `nn.expansion.expand` writes this one out for.

    Its representation f32[B, C G] is that of the head `slices`; after it, `pool.coset_max` makes
    that of `coset_last`. The maximum of `coset_first` stands before a mean and stays out.
    """
    widths = tuple(width * network.group.order for width in network.widths)
    return network.clone(group=Group(1), widths=widths, separable=None, head="slices")


def pooled(x: Array, group: Group, head: str) -> Array:
    """Pool a feature map [B, H, W, C G] to f32[B, C G] or f32[B, C] as `HEADS` says."""
    x = at_least_f32(x)
    if head == "coset_first":
        x = coset_max(x, group)
    x = jnp.mean(x, (1, 2))
    return coset_max(x, group) if head == "coset_last" else x


def knows(architecture: str) -> bool:
    """Whether `make` makes a network of this name."""
    return architecture in ARCHITECTURES


def make(
    architecture: str = "p4resnet44",
    width: int | None = None,
    head: str | None = None,
    norm: Any = BatchNorm,
    remat: bool = False,
    dtype: Any = jnp.float32,
    domain: str = "regular",
) -> GResNet:
    """Make a network of the reference by its name.

    Args:
      architecture: a key of `ARCHITECTURES`.
      width: fields of the first stage, doubled from stage to stage; None takes the reference's.
      head: one of `HEADS`; None takes the reference's default, which for the ResNets is `slices`.
      norm, remat, dtype: as in `GResNet`.
      domain: `regular`, or `fourier` for fewer products where a CPU is faster by them.

    Raises:
      ValueError: no such architecture, head or domain; the message lists what exists.
    """
    if width is not None and width < 1:
        raise Refusal(f"width={width}: fields of the first stage, at least 1")
    if architecture not in ARCHITECTURES:
        raise names.unknown("architecture", architecture, ARCHITECTURES)
    row = ARCHITECTURES[architecture]
    head = head or row.head
    if head not in HEADS:
        raise names.unknown("head", head, HEADS)
    check_domain(domain)
    widths = row.widths if width is None else tuple(width * 2**i for i in range(len(row.blocks)))
    return GResNet(
        planar.named(row.group),
        widths,
        row.blocks,
        row.separable,
        head=head,
        norm=norm,
        remat=remat,
        dtype=dtype,
        domain=domain,
    )
