"""Residual networks as torchvision has them, without the classifier.

He et al., CVPR 2016, with the stride of a bottleneck on its 3x3 convolution; torchvision,
`models/resnet.py`, which MoCo, SimSiam and megvii-research/revisitAIRL (`models/resnet.py`) build
upon. `models.resnet` says how SIE's networks differ. The "small" stem is that of Wangt-CN/IP-IRM,
`model.py`.

State-dict names: `interop/formats/torchvision.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.nn.conv import Conv
from jaxequi.nn.norm import BatchNorm, at_least_f32
from jaxequi.nn.pool import max_pool
from jaxequi.types import Array

# std sqrt(2 / fan_out), fan_out = out * k * k; not truncated
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# uniform in +-1 / sqrt(fan_in), as torch draws a convolution that nobody initialises
_torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
STEMS = ("imagenet", "small")


class BasicBlock(nn.Module):
    """3x3 with the stride, then 3x3.

    Attributes:
      width: channels of the stage, before the expansion.
      inner: channels between the convolutions of a bottleneck; a basic block has `width` there.
      stride: 1 or 2.
      dilation: of the 3x3 convolution of a bottleneck.
      conv, norm: layers without their sizes.
      last_scale_init: of the scale of the branch's last norm.
      field_size: channels that `conv` makes for each of its features: the order of a group, or 1.
    """

    width: int
    inner: int
    stride: int
    dilation: int
    conv: Any
    norm: Any
    last_scale_init: nn.initializers.Initializer = nn.initializers.ones
    field_size: int = 1

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self.conv(self.width, 3, self.stride, (1, 1), name="conv1")(x)
        h = nn.relu(self.norm(name="bn1")(h))
        h = self.conv(self.width, 3, padding=(1, 1), name="conv2")(h)
        h = self.norm(scale_init=self.last_scale_init, name="bn2")(h)
        return nn.relu(h + self.shortcut(x))

    def shortcut(self, x: Array) -> Array:
        """Convolve x where the branch changes its size or its channels."""
        outer = self.width * self.expansion
        if self.stride == 1 and x.shape[-1] == outer * self.field_size:
            return x
        x = self.conv(outer, 1, self.stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_bn")(x)


class Bottleneck(BasicBlock):
    """1x1, 3x3 with the stride, and 1x1 to four times the width."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self.conv(self.inner, 1, name="conv1")(x)
        h = nn.relu(self.norm(name="bn1")(h))
        around = (self.dilation, self.dilation)
        h = self.conv(self.inner, 3, self.stride, around, self.dilation, name="conv2")(h)
        h = nn.relu(self.norm(name="bn2")(h))
        h = self.conv(self.width * self.expansion, 1, name="conv3")(h)
        h = self.norm(scale_init=self.last_scale_init, name="bn3")(h)
        return nn.relu(h + self.shortcut(x))


class ResNet(nn.Module):
    """Images f32[N, H, W, 3] to features f32[N, R]: a stem, four stages, the mean over space.

    The maps after each stage ("layer1" to "layer4") are sown into the collection "intermediates".

    Attributes:
      stage_sizes: blocks of each stage.
      block: `BasicBlock` or `Bottleneck`.
      width: channels of the stem.
      stage_widths: channels of each stage before expansion; by default `width`, and twice as many
        in each following stage.
      width_per_group: channels between the convolutions of a bottleneck, at a stage of 64; 128
        makes them twice as wide, and leaves the outputs of the stages as they are.
      dilate: for the second and each following stage, whether it dilates its convolutions instead
        of striding (torchvision's `replace_stride_with_dilation`).
      stem: "imagenet", 7x7 with stride 2 and a max-pool, divides the side by four; "small", 3x3 and
        no pool, leaves it: for images of 32 pixels.
      zero_init_residual: start the last norm of each branch with scale 0.
      norm: makes the norms, such as `nn.norm.BatchNorm`.
      dtype: of the computation; parameters, statistics and features are f32.
      remat: compute each block again in the backward pass instead of keeping its inner maps.
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock]
    width: int = 64
    stage_widths: tuple[int, ...] = ()
    width_per_group: int = 64
    dilate: tuple[bool, ...] = ()
    stem: str = "imagenet"
    zero_init_residual: bool = False
    norm: Any = BatchNorm
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage before expansion."""
        return self.stage_widths or tuple(
            self.width * 2**stage for stage in range(len(self.stage_sizes))
        )

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        return self.widths[-1] * self.block.expansion

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=_he_fan_out)
        norm = functools.partial(self.norm, use_running_average=not train)
        block = nn.remat(self.block) if self.remat else self.block
        last = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones

        if self.stem == "small":
            x = conv(self.width, 3, 1, (1, 1), kernel_init=_torch_default, name="conv1")(x)
        else:
            x = conv(self.width, 7, 2, (3, 3), name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, 1)
        dilation = 1
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths)):
            before, stride = dilation, 2 if stage else 1
            if stage and self.dilate and self.dilate[stage - 1]:
                dilation, stride = dilation * stride, 1
            for i in range(size):
                x = block(
                    width=width,
                    inner=width * self.width_per_group // 64,
                    stride=stride if i == 0 else 1,
                    dilation=before if i == 0 else dilation,  # the first follows what it reads
                    conv=conv,
                    norm=norm,
                    last_scale_init=last,
                    name=f"layer{stage + 1}_{i}",
                )(x)
            self.sow("intermediates", f"layer{stage + 1}", x)
        return jnp.mean(at_least_f32(x), (1, 2))


_basic = functools.partial(functools.partial, ResNet, block=BasicBlock)
_bottleneck = functools.partial(functools.partial, ResNet, block=Bottleneck)
NETWORKS: dict[str, Callable[..., ResNet]] = {
    "resnet18": _basic(stage_sizes=(2, 2, 2, 2)),
    "resnet34": _basic(stage_sizes=(3, 4, 6, 3)),
    "resnet50": _bottleneck(stage_sizes=(3, 4, 6, 3)),
    "resnet101": _bottleneck(stage_sizes=(3, 4, 23, 3)),
    "resnet152": _bottleneck(stage_sizes=(3, 8, 36, 3)),
    "wide_resnet50_2": _bottleneck(stage_sizes=(3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": _bottleneck(stage_sizes=(3, 4, 23, 3), width_per_group=128),
}


def knows(architecture: str) -> bool:
    """Whether `make` makes a network of this name."""
    return architecture in NETWORKS


def make(
    architecture: str = "resnet50",
    *,
    width: int = 64,
    stage_widths: tuple[int, ...] = (),
    dilate: tuple[bool, ...] = (),
    stem: str = "imagenet",
    zero_init_residual: bool = False,
    norm: Any = BatchNorm,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> ResNet:
    """Build the network that torchvision calls `architecture`; arguments as of `ResNet`.

    >>> make("resnet50").features, make("resnet18", width=16).features
    (2048, 128)

    Raises:
      ValueError: unknown architecture or stem; stage widths for another number of stages; or a
        dilation for another number of stages, or of basic blocks.
    """
    if width < 1:
        raise Refusal(f"width={width}: channels of the first stage, at least 1")
    if architecture not in NETWORKS:
        raise unknown("architecture", architecture, NETWORKS)
    if stem not in STEMS:
        raise unknown("stem", stem, STEMS)
    network = NETWORKS[architecture](
        width=width,
        stage_widths=tuple(stage_widths),
        dilate=tuple(dilate),
        stem=stem,
        zero_init_residual=zero_init_residual,
        norm=norm,
        dtype=dtype,
        remat=remat,
    )
    stages = len(network.stage_sizes)
    if stage_widths and len(stage_widths) != stages:
        raise Refusal(f"stage_widths={tuple(stage_widths)}: give one for each of {stages} stages")
    if dilate and (len(dilate) != stages - 1 or (any(dilate) and network.block is BasicBlock)):
        raise Refusal(
            f"dilate={tuple(dilate)} of {architecture}: say of stages 2 to {stages} whether they "
            "dilate; networks of basic blocks cannot"
        )
    return network
