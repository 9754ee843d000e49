"""Residual networks as SIE has them: images to features, no classifier.

Reference: facebookresearch/SIE, src/resnet.py. Three things differ from torchvision's networks:

- the stride of a basic block sits on its second convolution;
- the first block of every stage has a convolution on its shortcut, also in the first stage;
- strided convolutions and the pool are padded at the right and bottom only.

State-dict names: `interop/formats/sie.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.nn.conv import Conv
from jaxequi.nn.norm import BatchNorm
from jaxequi.types import Array

Layer = Callable[..., Any]  # a module class with some of its attributes bound

# std sqrt(2 / fan_out), fan_out = out * k * k; not truncated
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _padding(stride: int) -> tuple[int, int]:
    """Of a 3x3 convolution: centred, or with stride 2 (on an even side) at the end only."""
    return (1, 1) if stride == 1 else (0, 1)


class BasicBlock(nn.Module):
    """3x3, then 3x3 with the stride.

    Attributes:
      inner, outer: channels after the first and the last convolution.
      stride: 1 or 2.
      groups: of the strided convolution.
      project: convolve the shortcut (first block of a stage); otherwise it is the identity.
      conv, norm: layers without their sizes.
      last_scale_init: of the scale of the branch's last norm.
      relu: end with a ReLU.
    """

    inner: int
    outer: int
    stride: int
    groups: int
    project: bool
    conv: Layer
    norm: Layer
    last_scale_init: nn.initializers.Initializer
    relu: bool

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self.conv(self.inner, 3, padding=_padding(1), name="conv1")(x)
        h = nn.relu(self.norm(name="bn1")(h))
        h = self.strided(self.outer, "conv2")(h)
        h = self.norm(scale_init=self.last_scale_init, name="bn2")(h)
        return self.join(h, x)

    def strided(self, features: int, name: str) -> nn.Module:
        padding = _padding(self.stride)
        return self.conv(features, 3, self.stride, padding, groups=self.groups, name=name)

    def join(self, h: Array, x: Array) -> Array:
        """Add the shortcut of x to the branch h."""
        if self.project:
            x = self.conv(self.outer, 1, self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x)
        return nn.relu(h + x) if self.relu else h + x


class Bottleneck(BasicBlock):
    """1x1 to the inner width, 3x3 with stride and groups, and 1x1 to the outer width."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self.conv(self.inner, 1, name="conv1")(x)
        h = nn.relu(self.norm(name="bn1")(h))
        h = self.strided(self.inner, "conv2")(h)
        h = nn.relu(self.norm(name="bn2")(h))
        h = self.conv(self.outer, 1, name="conv3")(h)
        h = self.norm(scale_init=self.last_scale_init, name="bn3")(h)
        return self.join(h, x)


def _max_pool(x: Array) -> Array:
    """3x3 with stride 2, after one row and column of -1e4 at the end, as the reference pads.

    One axis after the other by maxima of slices: the gradient of XLA's own max-pool takes eight
    times as long on a CPU. Equal maxima share the gradient, which torch gives to the first of them.
    """
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-1e4)
    for axis in (1, 2):
        sides = [jax.lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, 2, axis) for i in range(3)]
        x = functools.reduce(jnp.maximum, sides)
    return x


_STEMS = {"imagenet": 4, "small": 2}  # by what they divide the side of an image


class ResNet(nn.Module):
    """Images f32[N, H, W, 3] to features f32[N, R]: a stem, four stages, the mean over space.

    The maps after the stem ("stem") and each stage ("layer1" to "layer4") are sown into the
    collection "intermediates".

    Attributes:
      stage_sizes: blocks of each stage.
      block: `BasicBlock` or `Bottleneck`.
      width, widen: channels of the first stage before expansion are width * widen; each following
        stage has twice as many.
      groups, width_per_group: of the strided convolutions; channels of a group at width 64.
      end_factor: times the width of the last stage.
      end_relu: end the last block with a ReLU; without, features can be negative.
      stem: "imagenet", 7x7 with stride 2 and a max-pool, divides the side by four; "small", 3x3
        with stride 2 and no pool, by two: 48 pixels give 24x24, 12x12, 6x6 and 3x3 maps.
      zero_init_residual: start the last norm of each branch at scale 0, so that every block starts
        as its shortcut.
      norm: makes the norms, such as `nn.norm.BatchNorm`.
      dtype: of the computation; parameters, statistics and features are f32.
      remat: compute a block's inner maps again in the backward pass instead of keeping them.

    Raises:
      ValueError: a side of the image that the strides do not divide.
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock]
    width: int = 64
    widen: int = 1
    groups: int = 1
    width_per_group: int = 64
    end_factor: float = 1
    end_relu: bool = True
    stem: str = "imagenet"
    zero_init_residual: bool = True
    norm: Any = BatchNorm
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def stage_width(self, stage: int) -> int:
        """Channels of a stage before expansion."""
        end = stage == len(self.stage_sizes) - 1
        return int(self.width * self.widen * 2**stage * (self.end_factor if end else 1))

    def inner_width(self, stage: int) -> int:
        """Channels inside the branches of a stage."""
        per_group = int(self.stage_width(stage) * self.width_per_group / 64)
        if not per_group:
            raise Refusal(
                f"width={self.width} leaves no channel for each of the {self.groups} groups; at "
                f"{self.width_per_group} channels a group it must be {64 // self.width_per_group} "
                "or more."
            )
        return per_group * self.groups

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        return self.stage_width(len(self.stage_sizes) - 1) * self.block.expansion

    def check_size(self, height: int, width: int) -> None:
        """Refuse sides that the stages cannot halve.

        A strided block needs an even map: on an odd one its branch rounds down and its shortcut up.
        """
        stem, stages = _STEMS[self.stem], 2 ** (len(self.stage_sizes) - 1)
        for side in (height, width):
            if side < stem * stages or side // stem % stages:
                below = side // (stem * stages) * stem * stages
                near = sorted({below, below + stem * stages} - {0})
                raise Refusal(
                    f"images of {height}x{width} do not fit a ResNet with the {self.stem!r} "
                    f"stem: side // {stem} must be a multiple of {stages}; resize {side} to "
                    f"{' or '.join(map(str, near))}, or choose another stem ({', '.join(_STEMS)})."
                )

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        self.check_size(*x.shape[1:3])
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=_he_fan_out)
        norm = functools.partial(self.norm, use_running_average=not train)
        block = nn.remat(self.block) if self.remat else self.block
        zero = self.zero_init_residual and self.end_relu
        last_scale = nn.initializers.zeros if zero else nn.initializers.ones

        if self.stem == "imagenet":
            x = conv(self.stage_width(0), 7, 2, (2, 3), name="conv1")(x)
        else:
            x = conv(self.stage_width(0), 3, 2, _padding(2), name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        if self.stem == "imagenet":
            x = _max_pool(x)
        self.sow("intermediates", "stem", x)

        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                end = (stage, i) == (len(self.stage_sizes) - 1, size - 1)
                x = block(
                    inner=self.inner_width(stage),
                    outer=self.stage_width(stage) * self.block.expansion,
                    stride=2 if stage > 0 and i == 0 else 1,
                    groups=self.groups,
                    project=i == 0,
                    conv=conv,
                    norm=norm,
                    last_scale_init=last_scale,
                    relu=self.end_relu or not end,
                    name=f"layer{stage + 1}_{i}",
                )(x)
            self.sow("intermediates", f"layer{stage + 1}", x)
        return jnp.mean(x.astype(jnp.float32), (1, 2))


class SplitPathways(nn.Module):
    """Two networks that share nothing; features f32[N, R], half of them from each.

    The output of `backbone_equi` comes first, while the split methods take the *first* dimensions
    as the invariant part: the reference's names are swapped in effect, and kept.
    """

    pathway: Callable[..., ResNet]

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        return 2 * self.pathway(parent=None).features

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        parts = [self.pathway(name=f"backbone_{part}")(x, train) for part in ("equi", "inv")]
        return jnp.concatenate(parts, -1)


_basic = functools.partial(functools.partial, ResNet, block=BasicBlock)
_bottleneck = functools.partial(functools.partial, ResNet, block=Bottleneck)
_resnet10 = _basic(stage_sizes=(1, 1, 1, 1))  # not the reference's: for small images and tests
_resnet18 = _basic(stage_sizes=(2, 2, 2, 2))
_resnet34 = _basic(stage_sizes=(3, 4, 6, 3))
_resnet50 = _bottleneck(stage_sizes=(3, 4, 6, 3))
_resnet101 = _bottleneck(stage_sizes=(3, 4, 23, 3))
_resnet152 = _bottleneck(stage_sizes=(3, 8, 36, 3))
_resnet200 = _bottleneck(stage_sizes=(3, 24, 36, 3))
_small_end = functools.partial(_resnet18, end_factor=0.5)


def _splitpathways(**options: Any) -> SplitPathways:
    return SplitPathways(functools.partial(_small_end, **options))


NETWORKS: dict[str, Callable[..., ResNet | SplitPathways]] = {
    "resnet10": _resnet10,
    "resnet18": _resnet18,
    "resnet34": _resnet34,
    "resnet50": _resnet50,
    "resnet101": _resnet101,
    "resnet152": _resnet152,
    "resnet200": _resnet200,
    "narrow_resnet50w2": functools.partial(_resnet50, width_per_group=128),
    "narrow_resnet50w4": functools.partial(_resnet50, width_per_group=256),
    "narrow_resnet101w2": functools.partial(_resnet101, width_per_group=128),
    "narrow_resnet200w2": functools.partial(_resnet200, width_per_group=128),
    "resnet50w2": functools.partial(_resnet50, widen=2),
    "resnet50w4": functools.partial(_resnet50, widen=4),
    "resnet50w5": functools.partial(_resnet50, widen=5),
    "resnet200w2": functools.partial(_resnet200, widen=2),
    "resnet200w3": functools.partial(_resnet200, widen=3),
    "resnet200w4": functools.partial(_resnet200, widen=4),
    "resnext50_32x4d": functools.partial(_resnet50, groups=32, width_per_group=4),
    "resnext101_32x8d": functools.partial(_resnet101, groups=32, width_per_group=8),
    "resnext101_32x16d": functools.partial(_resnet101, groups=32, width_per_group=16),
    "resnext101_32x32d": functools.partial(_resnet101, groups=32, width_per_group=32),
    "resnet18_wide_end": functools.partial(_resnet18, end_factor=4),
    "resnet18_small_end": _small_end,
    "resnet18_no_relu": functools.partial(_resnet18, end_relu=False),
    "resnet_18_splitpathways": _splitpathways,
}


def make(
    architecture: str = "resnet18",
    *,
    width: int = 64,
    stem: str = "imagenet",
    zero_init_residual: bool = True,
    norm: Any = BatchNorm,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> ResNet | SplitPathways:
    """Build the network that the reference calls `architecture`; arguments as of `ResNet`.

    Returns:
      A module with `__call__(x f32[N, H, W, 3], train: bool) -> f32[N, R]` and R as `features`.

    Raises:
      ValueError: an unknown name or stem, a dtype other than float32 and bfloat16, or a width that
        leaves a grouped convolution without channels.
    """
    if width < 1:
        raise Refusal(f"width={width}: channels of the first stage, at least 1")
    if architecture not in NETWORKS:
        raise unknown("architecture", architecture, NETWORKS)
    if stem not in _STEMS:
        raise unknown("stem", stem, _STEMS)
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise Refusal(f"dtype {dtype!r}: networks compute in float32 or bfloat16.")
    return NETWORKS[architecture](
        width=width,
        stem=stem,
        zero_init_residual=zero_init_residual,
        norm=norm,
        dtype=dtype,
        remat=remat,
    )
