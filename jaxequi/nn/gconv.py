"""Group convolutions over C_N and D_N, N in {1, 2, 4}: lifting, group to group, and separable.

Cohen and Welling (2016), "Group Equivariant Convolutional Networks"; the separable forms are those
of Lengyel and van Gemert (2021). sepgroupy `gconv/{splitgconv2d, g_splitgconv2d,
gc_splitgconv2d}.py`.

A feature map of a group is [B, H, W, C G], field-major: channel = field * G + element. The filter
of output slice s is the parameter moved by s,

    W[s, t](x) = w[s^-1 t](s^-1 x)     (t = input slice; on plain images there is one, unmoved),

so the whole bank is one gather of the parameter, and the layer one dense convolution. The law is
y(g x)[s] = g y(x)[g^-1 s]: exact on any grid that every stride fits (`probes.exactness`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi import names
from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.fourier import planes
from jaxequi.groups.planar import Group
from jaxequi.nn import fourier, spread
from jaxequi.nn.conv import Window, conv2d, winograd_pays
from jaxequi.types import Array

Pair = int | tuple[int, int]

SEPARABLE = ("g", "gc")
"""Factors of a separable filter: w[o,i,t] = p[o,i,t] d[o,i] for `g`, p[o,i,t] d[o] for `gc`."""

DOMAINS = ("regular", "fourier")
"""Where a layer between feature maps is computed: channel by channel, or, where a CPU is faster by
it, irrep by irrep, or at the points of Winograd's tiles."""

# Products saved for each number that is copied into patches, or read, from which on two CPU cores
# were faster; the second where Winograd's products are the rival (`bench/symmetry.py`, 2026-11-28).
_SAVED_PATCH, _SAVED_TILE, _SAVED_PIXEL = 160, 200, 80


@functools.cache
def bank_index(group: Group, size: int, slices: int) -> np.ndarray:
    """Where each tap of the filter bank stands in the parameter.

    Args:
      group: C_N or D_N that maps the grid onto itself.
      size: k, the side of the kernel.
      slices: T, 1 on plain images and the order of the group on its feature maps.

    Returns:
      i32[k, k, T, G], positions in the flattened axes [k, k, T] of the parameter; the last axis is
      the output slice.

    Raises:
      ValueError: N is not 1, 2 or 4; an even k with mirrors; T neither 1 nor G.
    """
    planar.check_kernel(group, size)
    if slices not in (1, group.order):
        raise Refusal(
            f"the parameter holds {slices} slices; {group.name} takes 1 (plain images) or "
            f"{group.order} (its feature maps)."
        )
    taps = np.arange(size * size).reshape(size, size)
    moved = np.stack([planar.act(group, s, taps, axes=(0, 1)) for s in range(group.order)], -1)
    source = group.shift.T if slices > 1 else np.zeros((1, group.order), np.int32)  # [T, G]
    return (moved[:, :, None] * slices + source).astype(np.int32)


def filter_bank(kernel: Array, group: Group) -> Array:
    """Expand a parameter to the filters of an ordinary convolution, by one gather.

    Args:
      kernel: f32[k, k, T, I, O], T = 1 for a lifting layer and G for a layer between feature maps.
      group: the group G.

    Returns:
      f32[k, k, I T, O G], channels field-major.

    Raises:
      ValueError: the kernel is not square, or does not fit the group (`bank_index`).
    """
    rows, columns, slices, fields_in, fields_out = kernel.shape
    if rows != columns:
        raise Refusal(f"a kernel of {rows} x {columns} taps is not square, so it cannot turn")
    index = bank_index(group, rows, slices)
    if group.order == 1:
        return kernel[:, :, 0]
    bank = kernel.reshape(rows * rows * slices, fields_in, fields_out)[index]  # [k, k, T, G, I, O]
    bank = bank.transpose(0, 1, 4, 2, 5, 3)  # [k, k, I, T, O, G]
    return bank.reshape(rows, rows, fields_in * slices, fields_out * group.order)


def group_conv(
    x: Array,
    kernel: Array,
    group: Group,
    bias: Array | None = None,
    strides: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    domain: str = "regular",
) -> Array:
    """Convolve a plain image or a feature map of the group with a filter bank.

    Args:
      x: [B, H, W, I T].
      kernel: f32[k, k, T, I, O]; T = 1 lifts plain images.
      group: the group G.
      bias: f32[O], added to every slice of a field, or None.
      strides, padding, dilation: one number, or one for rows and one for columns. Padding is with
        zeros, the same at both ends (`SAME` of XLA pads even sides unevenly, which breaks the law).
      domain: `fourier` for fewer products where they are faster, on CPUs: by irreps (`pays`), else
        Winograd's (`conv.winograd_pays`). The result is the same up to rounding.

    Returns:
      [B, H', W', O G] in the dtype of x, H' = (H + 2 p - d (k - 1) - 1) // s + 1.

    Raises:
      ValueError: kernel and group do not fit, the image is smaller than the kernel, or another
        domain.
    """
    check_domain(domain)

    def by_channels(x: Array, kernel: Array) -> Array:
        bank = filter_bank(kernel, group)
        return _convolve(x, bank, group, strides, padding, dilation, domain=domain)

    def by_irreps(x: Array, kernel: Array) -> Array:
        return conv_by_irreps(x, kernel, group, strides, padding, dilation)

    size, _, slices, inputs, outputs = kernel.shape
    bank = size, size, inputs * slices, outputs * group.order
    rival = winograd_pays(x.shape, bank, windows(strides, padding, dilation))
    chosen = domain == "fourier" and slices > 1 and pays(group, size, outputs, rival)

    def own(x: Array, kernel: Array) -> Array:
        if not chosen:
            return by_channels(x, kernel)
        jax.eval_shape(by_channels, x, kernel)  # refuses what does not fit
        return jax.lax.platform_dependent(x, kernel, cpu=by_irreps, default=by_channels)

    return _with_bias(spread.by_rows(own, x, kernel), group, bias)


def conv_by_irreps(
    x: Array, kernel: Array, group: Group, strides: Pair, padding: Pair, dilation: Pair
) -> Array:
    """`group_conv` of a feature map as products by irreps, on any device."""
    fields, taps = fourier.elements(x, group), fourier.realigned(kernel, group)
    moves = windows(strides, padding, dilation)
    return fourier.synthesise(fourier.conv(fields, taps, group, *moves), group)


def check_domain(domain: str) -> None:
    """Refuse another domain than those of `DOMAINS`."""
    if domain not in DOMAINS:
        raise names.unknown("domain", domain, DOMAINS)


def pays(group: Group, size: int, outputs: int, rival: bool = False) -> bool:
    """Whether a CPU convolves faster by irreps: where each number read saves enough products.

    Args:
      group: the group.
      size: k, the side of the kernel.
      outputs: O, output fields.
      rival: by channels it would take Winograd's products (`conv.winograd_pays`).
    """
    saved, needed = worth(group, size, outputs, rival)
    return saved >= needed


def worth(group: Group, size: int, outputs: int, rival: bool) -> tuple[float, float]:
    """Products that irreps save for each number that they read, and how many make a CPU faster."""
    saved = (group.order - planes(group).multiplications / group.order) * outputs
    if size == 1:
        return saved, _SAVED_PIXEL
    return saved, _SAVED_TILE if rival else _SAVED_PATCH


def separable_group_conv(
    x: Array,
    depthwise: Array,
    pointwise: Array,
    group: Group,
    bias: Array | None = None,
    strides: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    domain: str = "regular",
) -> Array:
    """Convolve with filters that are a spatial factor times a mixing of the slices.

    `gc` (one spatial filter for each output field) mixes first and then convolves every channel by
    itself, which is K^2 times cheaper than the product filter. `g` (one for each pair of fields)
    takes the product filter: factor by factor it would need O G I feature maps.

    Args:
      x: [B, H, W, I G].
      depthwise: f32[k, k, 1, J, O], J = I for `g`, 1 for `gc`.
      pointwise: f32[1, 1, G, I, O].
      group, bias, strides, padding, dilation, domain: as in `group_conv`.

    Returns:
      [B, H', W', O G].

    Raises:
      ValueError: as `group_conv`.
    """
    if depthwise.shape[-2] == pointwise.shape[-2]:
        product = depthwise * pointwise
        return group_conv(x, product, group, bias, strides, padding, dilation, domain)

    def own(x: Array, factors: tuple[Array, Array]) -> Array:
        # the zeros of the padding come after the mixing, which has no bias: the borders agree
        mixed = group_conv(x, factors[1], group, domain=domain)
        bank = filter_bank(factors[0], group)
        return _convolve(mixed, bank, group, strides, padding, dilation, mixed.shape[-1])

    return _with_bias(spread.by_rows(own, x, (depthwise, pointwise)), group, bias)


def _with_bias(y: Array, group: Group, bias: Array | None) -> Array:
    return y if bias is None else y + jnp.repeat(bias, group.order).astype(y.dtype)


def _convolve(
    x: Array,
    bank: Array,
    group: Group,
    strides: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int = 1,
    domain: str = "regular",
) -> Array:
    if x.shape[-1] != groups * bank.shape[-2]:
        raise Refusal(
            f"the input has {x.shape[-1]} channels and the filters take {groups * bank.shape[-2]}. "
            f"A layer between feature maps of {group.name} takes {group.order} for each field."
        )
    return convolve(x, bank, strides, padding, dilation, groups, domain)


def convolve(
    x: Array,
    bank: Array,
    strides: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int = 1,
    domain: str = "regular",
) -> Array:
    """Convolve with filters that are made already, [k, k, C_in / groups, C_out].

    Args:
      x: [B, H, W, C_in].
      bank: cast to the dtype of x.
      strides, padding, dilation: as in `group_conv`.
      groups: parts of the channels that do not see each other.
      domain: as in `group_conv`; by irreps it is not computed here.

    Raises:
      ValueError: the image is smaller than the kernel.
    """
    rows, columns = windows(strides, padding, dilation)
    k = bank.shape[0]
    if rows.outputs(x.shape[1], k) < 1 or columns.outputs(x.shape[2], k) < 1:
        raise Refusal(
            f"an image of {x.shape[1]} x {x.shape[2]} pixels with padding {pair(padding)} is "
            f"smaller than the kernel, which reaches over {rows.reach(k)} x {columns.reach(k)}."
        )
    return conv2d(x, bank.astype(x.dtype), rows, columns, groups, domain == "fourier")


def windows(strides: Pair, padding: Pair, dilation: Pair) -> tuple[Window, Window]:
    """How a kernel moves down and across, zeros padded alike at both ends."""
    (s, t), (p, q), (d, e) = pair(strides), pair(padding), pair(dilation)
    return Window(s, (p, p), d), Window(t, (q, q), e)


def pair(value: Pair) -> tuple[int, int]:
    """A number for both axes, or the two numbers."""
    return (value, value) if isinstance(value, int) else value


def bounded_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-a, a) with a = 1 / sqrt(fan_in), torch's default for convolutions and linear layers."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class _Layer(nn.Module):
    """Attributes and parameters that the two layers share.

    Attributes:
      features: output fields O.
      group: the group G.
      kernel_size: k.
      strides, padding, dilation: as in `group_conv`.
      use_bias: one number a field.
      kernel_init: None takes the reference's U(-a, a), a = 1 / sqrt(I k^2), for all parameters. It
        leaves the order of the group out of the fan-in, so hidden layers start sqrt(G) too large.
      dtype: of the computation; parameters are f32.
    """

    features: int
    group: Group
    kernel_size: int = 3
    strides: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer | None = None
    dtype: Any = jnp.float32

    def _geometry(self) -> dict[str, Any]:
        return {"strides": self.strides, "padding": self.padding, "dilation": self.dilation}

    def _param(self, name: str, shape: tuple[int, ...], fields_in: int) -> Array:
        default = bounded_uniform(fields_in * self.kernel_size**2)
        return self.param(name, self.kernel_init or default, shape, jnp.float32)

    def _bias(self, fields_in: int) -> Array | None:
        if not self.use_bias:
            return None
        init = bounded_uniform(fields_in * self.kernel_size**2)
        return self.param("bias", init, (self.features,), jnp.float32)


class LiftingConv(_Layer):
    """Convolve plain images [B, H, W, I] to a feature map of the group [B, H', W', O G].

    Params: `kernel` f32[k, k, 1, I, O], `bias` f32[O]. The attributes are those of `GroupConv`,
    save `separable`.

    Raises:
      ValueError: as `group_conv`.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, fields_in = self.kernel_size, x.shape[-1]
        kernel = self._param("kernel", (k, k, 1, fields_in, self.features), fields_in)
        bias = self._bias(fields_in)
        return group_conv(x.astype(self.dtype), kernel, self.group, bias, **self._geometry())


class GroupConv(_Layer):
    """Convolve a feature map of the group [B, H, W, I G] to another [B, H', W', O G].

    Params: `kernel` f32[k, k, G, I, O], or `depthwise` f32[k, k, 1, I or 1, O] and `pointwise`
    f32[1, 1, G, I, O]; `bias` f32[O].

    Attributes:
      separable: None for a full kernel, or how it factors (`SEPARABLE`).
      domain: as in `group_conv`; the parameters are the same.

    Raises:
      ValueError: the input holds no whole number of fields, or `separable` has another name, or as
        `group_conv`.
    """

    separable: str | None = None
    domain: str = "regular"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, order, out = self.kernel_size, self.group.order, self.features
        fields_in = planar.fields(self.group, x.shape[-1])
        x = x.astype(self.dtype)
        how = self._geometry() | {"domain": self.domain}
        if self.separable is None:
            kernel = self._param("kernel", (k, k, order, fields_in, out), fields_in)
            return group_conv(x, kernel, self.group, self._bias(fields_in), **how)
        if self.separable not in SEPARABLE:
            raise names.unknown("separable form", self.separable, SEPARABLE)
        shared = fields_in if self.separable == "g" else 1
        depthwise = self._param("depthwise", (k, k, 1, shared, out), fields_in)
        pointwise = self._param("pointwise", (1, 1, order, fields_in, out), fields_in)
        bias = self._bias(fields_in)
        return separable_group_conv(x, depthwise, pointwise, self.group, bias, **how)
