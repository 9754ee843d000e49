"""Residual networks as torchvision has them, without the classifier.

He et al., CVPR 2016, with the stride of a bottleneck on its 3x3 convolution; torchvision,
`models/resnet.py`. `models.resnet` says how SIE's networks differ.

State-dict names: `interop/formats/torchvision.py`.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.nn.conv import Conv
from jaxequi.nn.norm import BatchNorm
from jaxequi.types import Array

# std sqrt(2 / fan_out), fan_out = out * k * k; not truncated
_he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """3x3 with the stride, then 3x3.

    Attributes:
      width: channels of the stage, before the expansion.
      stride: 1 or 2.
      conv, norm: layers without their sizes.
      last_scale_init: of the scale of the branch's last norm.
      field_size: channels that `conv` makes for each of its features: the order of a group, or 1.
    """

    width: int
    stride: int
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
        h = self.conv(self.width, 1, name="conv1")(x)
        h = nn.relu(self.norm(name="bn1")(h))
        h = self.conv(self.width, 3, self.stride, (1, 1), name="conv2")(h)
        h = nn.relu(self.norm(name="bn2")(h))
        h = self.conv(self.width * self.expansion, 1, name="conv3")(h)
        h = self.norm(scale_init=self.last_scale_init, name="bn3")(h)
        return nn.relu(h + self.shortcut(x))


class ResNet(nn.Module):
    """Pictures f32[N, H, W, 3] to features f32[N, R]: a stem, four stages, the mean over space.

    Attributes:
      stage_sizes: blocks of each stage.
      block: `BasicBlock` or `Bottleneck`.
      width: channels of the first stage, doubled by each of the following.
      zero_init_residual: start the last norm of each branch with scale 0.
      norm: makes the norms, such as `nn.norm.BatchNorm`.
      dtype: of the computation; parameters, statistics and features are f32.
      remat: compute each block again in the backward pass instead of keeping its inner maps.
    """

    stage_sizes: tuple[int, ...]
    block: type[BasicBlock]
    width: int = 64
    zero_init_residual: bool = False
    norm: Any = BatchNorm
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def features(self) -> int:
        """R, the width of the representation."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * self.block.expansion

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=_he_fan_out)
        norm = functools.partial(self.norm, use_running_average=not train)
        block = nn.remat(self.block) if self.remat else self.block
        last = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones

        x = conv(self.width, 7, 2, (3, 3), name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                x = block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    conv=conv,
                    norm=norm,
                    last_scale_init=last,
                    name=f"layer{stage + 1}_{i}",
                )(x)
        return jnp.mean(x.astype(jnp.float32), (1, 2))


NETWORKS: dict[str, tuple[tuple[int, ...], type[BasicBlock]]] = {
    "resnet18": ((2, 2, 2, 2), BasicBlock),
    "resnet34": ((3, 4, 6, 3), BasicBlock),
    "resnet50": ((3, 4, 6, 3), Bottleneck),
    "resnet101": ((3, 4, 23, 3), Bottleneck),
    "resnet152": ((3, 8, 36, 3), Bottleneck),
}


def make(
    architecture: str = "resnet50",
    *,
    width: int = 64,
    zero_init_residual: bool = False,
    norm: Any = BatchNorm,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> ResNet:
    """Build the network that torchvision calls `architecture`; arguments as of `ResNet`.

    Raises:
      ValueError: unknown architecture.
    """
    if width < 1:
        raise Refusal(f"width={width}: channels of the first stage, at least 1")
    if architecture not in NETWORKS:
        raise unknown("architecture", architecture, NETWORKS)
    sizes, block = NETWORKS[architecture]
    return ResNet(sizes, block, width, zero_init_residual, norm, dtype, remat)
