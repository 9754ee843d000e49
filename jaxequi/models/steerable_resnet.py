"""ResNets of steerable convolutions over C_N and D_N, equivariant to turns by 360 / N degrees.

equivision, `equivision/{e2resnet, models}.py`: torchvision's ResNets with regular fields for
channels. Stem 7x7 of stride 2, norm, ReLU, 3x3 maximum of stride 2; four stages, each but the first
with stride 2; mean over pixels, then maximum over each field.

Odd kernels with stride 2 keep quarter turns and mirrors only on odd sides, so the network is exact
on sides of 32 m + 1 pixels and on no others: at 224 it is not. `fit` moves any side to an exact
one; `antialias` blurs where it strides. Both are off in the reference.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxequi import names
from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.models.gresnet import pooled
from jaxequi.models.torchvision_resnet import BasicBlock, Bottleneck, ResNet
from jaxequi.nn.gconv import check_domain
from jaxequi.nn.norm import BatchNorm
from jaxequi.nn.pool import MaxPool, avg_pool, blur_pool
from jaxequi.nn.steerable import RegularConv
from jaxequi.types import Array

DEPTHS: dict[int, tuple[tuple[int, ...], type[BasicBlock]]] = {
    10: ((1, 1, 1, 1), BasicBlock),
    18: ((2, 2, 2, 2), BasicBlock),
    50: ((3, 4, 6, 3), Bottleneck),
    101: ((3, 4, 23, 3), Bottleneck),
}
"""Blocks of the stages, and their kind; 10, for small experiments, is not in the reference."""

STEP = 32
"""Product of the strides: exact sides are one more than its multiples."""


class SteerableResNet(nn.Module):
    """Images f32[B, H, W, I] to a representation f32[B, R] that the group leaves as it is.

    Attributes:
      group: C_N or D_N.
      width: regular fields of the first stage, doubled by each of the following.
      stage_sizes: blocks of each stage.
      block: `BasicBlock` or `Bottleneck`.
      fit: pad images to sides of 32 m + 1; even sides first move by half a pixel (2x2 means).
      antialias: convolve without stride and blur before pixels are left out.
      norm: makes the norms, such as `nn.norm.BatchNorm`.
      remat: recompute each block in the backward pass.
      dtype: of the computation.
      domain: of the layers between feature maps (`nn.gconv.DOMAINS`).
    """

    group: Group
    width: int
    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] = BasicBlock
    fit: bool = False
    antialias: bool = False
    norm: Any = BatchNorm
    remat: bool = False
    dtype: Any = jnp.float32
    domain: str = "regular"

    @property
    def features(self) -> int:
        """R, the width of the representation: one number a field."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * self.block.expansion

    @nn.compact
    def feature_map(self, x: Array, train: bool) -> Array:
        """Compute the last feature map: [B, H', W', C G], regular fields."""
        conv = functools.partial(
            RegularConv,
            group=self.group,
            antialias=self.antialias,
            dtype=self.dtype,
            domain=self.domain,
        )
        norm = functools.partial(
            self.norm,
            use_running_average=not train,
            field_size=self.group.order,
        )
        block = nn.remat(self.block) if self.remat else self.block
        if self.fit:
            x = fitted(x)
        x = conv(self.width, 7, 2, (3, 3), lifting=True, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        if self.antialias:
            x = blur_pool(MaxPool(3, 1, 1, name="pool")(x))
        else:
            x = MaxPool(3, 2, 1, name="pool")(x)
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                width = self.width * 2**stage
                x = block(
                    width=width,
                    inner=width,
                    stride=2 if stage > 0 and i == 0 else 1,
                    dilation=1,
                    conv=conv,
                    norm=norm,
                    field_size=self.group.order,
                    name=f"layer{stage + 1}_{i}",
                )(x)
        return x

    def __call__(self, x: Array, train: bool) -> Array:
        """Compute the representation."""
        return pooled(self.feature_map(x, train), self.group, "coset_last")


def plain(network: SteerableResNet) -> ResNet:
    """The plain network that `nn.expansion.expand` writes this one out for.

    Its representation f32[B, R G] holds all channels; `pool.coset_max` makes it the network's own.

    Raises:
      ValueError: `fit` and `antialias` are no layers of a plain network.
    """
    if network.fit or network.antialias:
        raise Refusal("a plain ResNet neither fits its images nor blurs: fit and antialias are off")
    return ResNet(
        network.stage_sizes,
        network.block,
        network.width * network.group.order,
        norm=network.norm,
        dtype=network.dtype,
        remat=network.remat,
    )


def fitted(x: Array) -> Array:
    """Bring images [B, H, W, C] to sides of 32 m + 1 without losing a symmetry.

    An even side has no middle pixel: means of two neighbours give it one. Zeros at both ends do the
    rest.
    """
    even = [n % 2 == 0 for n in x.shape[1:3]]
    if any(even):
        x = avg_pool(x, (1 + even[0], 1 + even[1]), 1, (int(even[0]), int(even[1])))
    ends = [((-n + 1) % STEP // 2,) * 2 for n in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *ends, (0, 0)))


WIDTHS = {
    10: {"c1": 78},
    18: {"c1": 78, "d1": 55, "c4": 39, "d4": 28, "c8": 28, "d8": 20},
    50: {"c1": 70, "d1": 50, "c4": 35, "d4": 25, "c8": 25},
    101: {"c1": 70, "d1": 50, "c4": 35, "d4": 25, "c8": 25},
}
"""Fields of the first stage that give about as many parameters as the plain network has."""

FAST_WIDTHS = {"c1": 64, "d1": 32, "c4": 16, "d4": 8, "c8": 8, "d8": 3}
"""Fields of the first stage that give about as many channels as the plain network has."""


def default_width(group: Group, depth: int, fast: bool) -> int:
    """Fields of the first stage: the reference's, and by the same rule for groups it has not.

    Parameters grow with width^2 |G|, so the width falls with sqrt(|G|), and channels with |G|.
    """
    listed = FAST_WIDTHS if fast else WIDTHS[depth]
    if group.name in listed:
        return listed[group.name]
    return max(1, round(listed["c1"] / (group.order if fast else math.sqrt(group.order))))


def knows(architecture: str) -> bool:
    """Whether `make` makes a network of this name."""
    return _parts(architecture) is not None


def _parts(architecture: str) -> re.Match[str] | None:
    found = re.fullmatch(r"([cd][1-9]\d*)resnet(\d+)", architecture.lower())
    return found if found and int(found[2]) in DEPTHS else None


def make(
    architecture: str = "c8resnet18",
    width: int | None = None,
    fast: bool = False,
    fit: bool = False,
    antialias: bool = False,
    norm: Any = BatchNorm,
    remat: bool = False,
    dtype: Any = jnp.float32,
    domain: str = "regular",
) -> SteerableResNet:
    """Make a network by its name: a group and a depth, `c8resnet18`, `d4resnet50`.

    Args:
      architecture: `c<N>resnet<depth>` or `d<N>resnet<depth>`, any N, depth in `DEPTHS`.
      width: fields of the first stage; None takes the reference's.
      fast: take the reference's narrow widths, with the channels of the plain network.
      fit, antialias, norm, remat, dtype: as in `SteerableResNet`.
      domain: `regular`, or `fourier` for products by irreps where a CPU is faster by them, over
        the elements that map the pixel grid onto itself.

    Raises:
      ValueError: no such architecture or domain, both a width and `fast`, or a domain that the
        group has not; the message says what exists.
    """
    parts = _parts(architecture)
    if parts is None:
        forms = [f"{g}<N>resnet{depth}" for g in "cd" for depth in DEPTHS]
        raise names.unknown("architecture", architecture, forms)
    if width is not None and fast:
        raise Refusal(f"width={width} and fast=True are two widths; give one of them")
    group, depth = planar.named(parts[1]), int(parts[2])
    check_domain(domain)
    if domain == "fourier" and planar.part_on_grid(group).order == 1 < group.order:
        raise Refusal(
            f"domain='fourier' moves pixels onto pixels, which no element of {group.name} does: "
            "take an even N, or mirrors, or domain='regular'"
        )
    sizes, block = DEPTHS[depth]
    width = default_width(group, depth, fast) if width is None else width
    return SteerableResNet(group, width, sizes, block, fit, antialias, norm, remat, dtype, domain)
