"""Steerable convolutions: between fields of any representations of C_N and D_N.

Cesa, Lang and Weiler (2022), "A Program to Build E(N)-Equivariant Steerable CNNs"; escnn 1.0.11,
`nn/modules/conv/r2convolution.py`, `nn/init.py`. The parameters are that library's coefficients
(`groups.kernels.basis` has the basis), which a step of SGD moves as it moves them there; the filter
is made of them at every call, and the basis is a constant of the program.

Feature maps are [B, H, W, C] with the fields of a `FieldType` on the last axis. Between regular
fields this is the layer that `nn.gconv` has for turns that the grid allows, with the same channels
(field * order + element) and smooth filters.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import kernels, planar, representations
from jaxequi.groups.planar import Group
from jaxequi.groups.representations import (
    FieldType,
    Representation,
    check_channels,
    check_pointwise,
)
from jaxequi.nn import spread
from jaxequi.nn.conv import winograd_pays
from jaxequi.nn.gconv import Pair, check_domain, conv_by_irreps, convolve, pays, windows
from jaxequi.nn.pool import blur_pool
from jaxequi.types import Array

Weights = Mapping[str, Array]
"""Coefficients f32[B, fields in, fields out] of each pair of representations that filters join."""


class FilterSpace(NamedTuple):
    """Which filters a layer has.

    Attributes:
      type_in, type_out: fields that it reads and makes.
      size: k, odd.
      dilation: step between the taps; the rings grow with it.
      cutoff: highest frequencies, as in `kernels.highest_frequency`.
    """

    type_in: FieldType
    type_out: FieldType
    size: int = 3
    dilation: int = 1
    cutoff: float = -1


class _Pair(NamedTuple):
    """Filters from fields of one representation to fields of another."""

    name: str
    rho_in: Representation
    rho_out: Representation
    shape: tuple[int, int, int]
    basis: kernels.Basis


@functools.lru_cache(maxsize=256)
def pairs(space: FilterSpace) -> tuple[_Pair, ...]:
    """Pairs of representations that filters join, sorted by name; those without a filter left out.

    The only pair of a layer is called `weights`, others `weights[irrep_0,regular]`.

    Raises:
      ValueError: types of different groups, an even kernel, no filter at all.
    """
    a, b = space.type_in, space.type_out
    if a.group != b.group:
        raise Refusal(
            f"the input is of {a.group.name} ({a}) and the output of {b.group.name} ({b}): a "
            "steerable layer joins fields of one group. Restrict one of them."
        )
    single = len(a.kinds) == len(b.kinds) == 1
    found = []
    for rho_in, channels_in in a.kinds:
        for rho_out, channels_out in b.kinds:
            basis = kernels.basis(rho_in, rho_out, space.size, space.dilation, space.cutoff)
            count = len(basis.frequency)
            if count:
                name = "weights" if single else f"weights[{rho_in.name},{rho_out.name}]"
                shape = (count, len(channels_in), len(channels_out))
                found.append(_Pair(name, rho_in, rho_out, shape, basis))
    if not found:
        raise Refusal(
            f"no filter of size {space.size} with cutoff={space.cutoff} leads from {a} to {b}. "
            "Take a larger kernel or a higher cutoff."
        )
    return tuple(found)


@functools.lru_cache(maxsize=256)
def initial_scales(space: FilterSpace) -> Mapping[str, np.ndarray]:
    """Standard deviations of the coefficients at the start: generalised He, f64[B] of each pair.

    escnn `nn/init.py`, generalized_he_init, in closed form: 1 / sqrt(T n), where n counts the basis
    filters, over all input fields, from one irrep to the output irrep, and T the irreps with any.
    """
    found = pairs(space)
    counts: dict[tuple[str, int], dict[Any, int]] = {}
    for pair in found:
        for i, o in zip(pair.basis.in_irrep, pair.basis.out_irrep):
            here = counts.setdefault((pair.rho_out.name, int(o)), {})
            which = pair.rho_in.irreps[i]
            here[which] = here.get(which, 0) + pair.shape[1]
    scales = {}
    for pair in found:
        reach = [counts[pair.rho_out.name, int(o)] for o in pair.basis.out_irrep]
        mine = [here[pair.rho_in.irreps[i]] for i, here in zip(pair.basis.in_irrep, reach)]
        scales[pair.name] = 1 / np.sqrt(np.array([len(r) * n for r, n in zip(reach, mine)]))
    return scales


@functools.partial(jax.jit, static_argnames="space")  # equal layers are traced once
def expand(weights: Weights, space: FilterSpace) -> Array:
    """Make the filter of an ordinary convolution.

    One product with the sampled basis for each pair of representations. Between regular fields the
    first row of the filter says all, and needs |G| times less arithmetic; but on a CPU the two
    small products and the permutation of that way take longer than the one large product.

    Args:
      weights: f32[B, fields in, fields out] by the names of `pairs`.
      space: which filters.

    Returns:
      f32[k, k, C_in, C_out].
    """
    made = {
        (p.rho_in.name, p.rho_out.name): _expand(p, weights[p.name], space) for p in pairs(space)
    }
    a, b = space.type_in, space.type_out
    columns = []
    for rho_out, channels_out in b.kinds:
        rows = [
            made.get((rho_in.name, rho_out.name), jnp.zeros((channels.size, channels_out.size)))
            for rho_in, channels in a.kinds
        ]
        rows = [jnp.broadcast_to(r, (space.size**2, *r.shape[-2:])) for r in rows]
        columns.append(_joined(rows, 1))
    filters = _ordered(_ordered(_joined(columns, 2), a, 1), b, 2)
    return filters.reshape(space.size, space.size, a.size, b.size)


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _ordered(filters: Array, kind: FieldType, axis: int) -> Array:
    """Put channels that stand kind by kind where the fields of the type have them."""
    if len(kind.kinds) == 1:
        return filters
    place = np.argsort(np.concatenate([channels.ravel() for _, channels in kind.kinds]))
    return jnp.take(filters, place, axis)


def _expand(pair: _Pair, weights: Array, space: FilterSpace) -> Array:
    """f32[k k, C_in, C_out] of one pair: one product with the sampled basis."""
    matrix = _matrix(pair.rho_in, pair.rho_out, *space[2:])
    count, *fields = pair.shape
    filters = jnp.matmul(
        matrix, weights.reshape(count, -1), precision=jax.lax.Precision.HIGHEST
    ).reshape(-1, pair.rho_in.size, pair.rho_out.size, *fields)
    filters = filters.transpose(0, 3, 1, 4, 2)
    return filters.reshape(-1, fields[0] * pair.rho_in.size, fields[1] * pair.rho_out.size)


@functools.lru_cache(maxsize=64)
def _matrix(
    rho_in: Representation, rho_out: Representation, size: int, dilation: int, cutoff: float
) -> np.ndarray:
    """The sampled basis, f32[k k d_in d_out, B]."""
    filters = kernels.basis(rho_in, rho_out, size, dilation, cutoff).filters
    return filters.transpose(3, 2, 1, 0).reshape(-1, len(filters)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("space", "part"))
def first_filters(weights: Weights, space: FilterSpace, part: Group) -> Array:
    """The filters between regular fields as `gconv` has them, over a subgroup H of the group G.

    A regular field of G is G / H ones of H, one for each of its `planar.cosets`.

    Args:
      weights, space: as in `expand`, of one pair of regular representations.
      part: H.

    Returns:
      f32[k, k, H, fields in * G / H, fields out * G / H], what ends at element 0 of H.
      `gconv.filter_bank` of it is `expand`, but for the order of elements in a field.
    """
    [pair] = pairs(space)
    order, (count, *_) = pair.rho_in.size, pair.shape
    table = planar.cosets(space.type_in.group, part)
    matrix = _matrix(pair.rho_in, pair.rho_out, *space[2:]).reshape(-1, order, order, count)
    filters = jnp.einsum(
        "xuctb,bio->xuicot",
        matrix[:, table.T][:, :, :, table[:, 0]],
        weights[pair.name],
        precision="highest",
    )
    fields = (space.type_in.count * len(table), space.type_out.count * len(table))
    return filters.reshape(space.size, space.size, part.order, *fields)


def _part_by_irreps(space: FilterSpace, rival: bool) -> Group | None:
    """Over which subgroup a CPU convolves faster by irreps; None if over none, or other fields.

    Args:
      space: which filters.
      rival: by channels it would take Winograd's products.
    """
    kinds = [rho for kind in (space.type_in, space.type_out) for rho, _ in kind.runs]
    group = space.type_in.group
    part = planar.part_on_grid(group)
    fields = space.type_out.count * group.order // part.order
    regular = all(rho == representations.regular(group) for rho in kinds)
    return part if regular and pays(part, space.size, fields, rival) else None


def _conv_by_irreps(
    x: Array, weights: Weights, space: FilterSpace, part: Group, moves: tuple[Pair, Pair, Pair]
) -> Array:
    order = planar.cosets(space.type_in.group, part).ravel()
    kernel = first_filters(weights, space, part)
    y = conv_by_irreps(_reordered(x, tuple(order.tolist())), kernel, part, *moves)
    return _reordered(y, tuple(np.argsort(order).tolist()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reordered(x: Array, order: tuple[int, ...]) -> Array:
    """Take the elements of each field of [..., n G] in another order.

    The gradient is the same in the opposite order; by itself it would be added up one by one.
    """
    if order == tuple(range(len(order))):
        return x
    elements = x.reshape(*x.shape[:-1], -1, len(order))
    return elements[..., np.array(order)].reshape(x.shape)


def _reordered_forward(x: Array, order: tuple[int, ...]) -> tuple[Array, None]:
    return _reordered(x, order), None


def _reordered_backward(order: tuple[int, ...], _: None, cotangent: Array) -> tuple[Array]:
    return (_reordered(cotangent, tuple(np.argsort(order).tolist())),)


_reordered.defvjp(_reordered_forward, _reordered_backward)


def expand_bias(bias: Array, kind: FieldType) -> Array:
    """Spread one number for each trivial irrep over the channels it moves: f32[t] to f32[C].

    A regular field gets bias / sqrt(order) on each channel; a field without a trivial irrep none.
    """
    parts, start = [], 0
    for representation, count in kind.runs:
        stop = start + count * len(representation.trivials)
        own = bias[start:stop].reshape(count, -1)
        parts.append((own @ representation.trivials.astype(np.float32)).ravel())
        start = stop
    return jnp.concatenate(parts)


def count_biases(kind: FieldType) -> int:
    """How many numbers `expand_bias` takes."""
    return sum(count * len(representation.trivials) for representation, count in kind.runs)


def steerable_conv(
    x: Array,
    weights: Weights,
    space: FilterSpace,
    bias: Array | None = None,
    strides: Pair = 1,
    padding: Pair = 0,
    domain: str = "regular",
) -> Array:
    """Convolve a feature map with steerable filters.

    Args:
      x: [B, H, W, C_in].
      weights: as in `expand`.
      space: which filters.
      bias: as in `expand_bias`, or None.
      strides, padding: one number, or one for rows and one for columns; zeros are padded.
      domain: as in `gconv.group_conv`, for layers between regular fields, over those elements of
        the group that map the grid onto itself: C4 of C8. Others are computed by channels.

    Returns:
      [B, H', W', C_out] in the dtype of x. The filter is made in f32.

    Raises:
      ValueError: other channels than the input type has, an image smaller than the kernel, or
        another domain.
    """
    check_channels(space.type_in, x.shape[-1])
    check_domain(domain)

    moves = strides, padding, space.dilation
    bank = space.size, space.size, space.type_in.size, space.type_out.size
    rival = winograd_pays(x.shape, bank, windows(*moves))
    part = _part_by_irreps(space, rival) if domain == "fourier" else None

    def by_channels(x: Array, weights: Weights) -> Array:
        return convolve(x, expand(weights, space), *moves, domain=domain)

    def own(x: Array, weights: Weights) -> Array:
        if part is None:
            return by_channels(x, weights)
        jax.eval_shape(by_channels, x, weights)  # refuses what does not fit
        by_irreps = functools.partial(_conv_by_irreps, space=space, part=part, moves=moves)
        return jax.lax.platform_dependent(x, weights, cpu=by_irreps, default=by_channels)

    y = spread.by_rows(own, x, weights)
    return y if bias is None else y + expand_bias(bias, space.type_out).astype(y.dtype)


class _Layer(nn.Module):
    """What the two layers share."""

    def _convolve(self, x, space, use_bias, strides, padding, dtype, domain="regular"):
        check_channels(space.type_in, x.shape[-1])
        scales = initial_scales(space)

        def draw(key: Array, shape: Any, scale: np.ndarray) -> Array:
            return jax.random.normal(key, shape) * scale.astype(np.float32)[:, None, None]

        weights = {p.name: self.param(p.name, draw, p.shape, scales[p.name]) for p in pairs(space)}
        bias = None
        if use_bias:
            shape = (count_biases(space.type_out),)
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return steerable_conv(x.astype(dtype), weights, space, bias, strides, padding, domain)


class SteerableConv(_Layer):
    """Convolve fields of one type to fields of another.

    Params: `weights` f32[B, fields in, fields out], or one such for each pair of representations
    (`pairs`); `bias` f32[t] (`expand_bias`), one for each trivial irrep of the output fields.

    Attributes:
      type_in, type_out: what the channels are, and what they become.
      kernel_size: k, odd.
      strides, padding: as in `steerable_conv`.
      dilation: step between the taps.
      cutoff: highest frequencies, as in `kernels.highest_frequency`.
      use_bias: add a bias.
      dtype: of the convolution; parameters and filter are f32.

    Raises:
      ValueError: as `pairs` and `steerable_conv`.
    """

    type_in: FieldType
    type_out: FieldType
    kernel_size: int = 3
    strides: Pair = 1
    padding: Pair = 0
    dilation: int = 1
    cutoff: float = -1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        space = FilterSpace(
            self.type_in, self.type_out, self.kernel_size, self.dilation, self.cutoff
        )
        return self._convolve(x, space, self.use_bias, self.strides, self.padding, self.dtype)


class RegularConv(_Layer):
    """Convolve images, or regular fields, to regular fields: the layer of the ResNets.

    Params: `weights` f32[B, I, O].

    Attributes:
      features: O, fields that it makes.
      kernel_size: k, odd.
      stride, padding: as in `steerable_conv`.
      dilation: step between the taps.
      group: the group.
      lifting: the input is an image of trivial fields, not regular ones.
      antialias: convolve without the stride, and `blur_pool` with it.
      dtype: of the convolution.
      domain: as in `steerable_conv`; the parameters are the same.

    Raises:
      ValueError: the input holds no whole number of fields, or as `steerable_conv`.
    """

    features: int
    kernel_size: int
    stride: Pair = 1
    padding: Pair = 0
    dilation: int = 1
    group: Group = Group(1)
    lifting: bool = False
    antialias: bool = False
    dtype: Any = jnp.float32
    domain: str = "regular"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        regular, channels = representations.regular(self.group), x.shape[-1]
        if self.lifting:
            run = (representations.trivial(self.group), channels)
        else:
            run = (regular, planar.fields(self.group, channels))
        space = FilterSpace(
            FieldType((run,)),
            FieldType(((regular, self.features),)),
            self.kernel_size,
            self.dilation,
        )
        blur = self.antialias and self.stride != 1
        stride = 1 if blur else self.stride
        x = self._convolve(x, space, False, stride, self.padding, self.dtype, self.domain)
        return blur_pool(x, strides=self.stride) if blur else x


def relu(x: Array, kind: FieldType) -> Array:
    """max(x, 0) of [..., C].

    Raises:
      ValueError: other channels than the type has, or fields that do not permute.
    """
    check_channels(kind, x.shape[-1])
    check_pointwise(kind, "ReLU")
    return nn.relu(x)


class NormReLU(nn.Module):
    """Shorten each field by a learned bias, to no less than zero, and keep its direction.

    escnn `nn/modules/nonlinearities/norm.py`, NormNonLinearity, n_relu:
    v max(|v| - exp(b), 0) / |v|. Any representation will do. Params: `log_bias` f32[fields], b.

    Attributes:
      kind: what the channels are.

    Raises:
      ValueError: other channels than the type has.
    """

    kind: FieldType

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_channels(self.kind, x.shape[-1])
        zeros, count = nn.initializers.zeros, self.kind.count
        bias = jnp.exp(self.param("log_bias", zeros, (count,), jnp.float32))
        parts, channel, field = [], 0, 0
        for representation, fields in self.kind.runs:
            stop = channel + fields * representation.size
            v = x[..., channel:stop].astype(jnp.float32)
            v = v.reshape(*x.shape[:-1], fields, representation.size)
            square = jnp.sum(v * v, -1, keepdims=True)
            length = jnp.sqrt(jnp.where(square > 1e-20, square, 1))  # no gradient from length 0
            own = bias[field : field + fields, None]
            v = jnp.where(square > 1e-20, v * nn.relu(length - own) / length, 0)
            parts.append(v.reshape(*x.shape[:-1], -1))
            channel, field = stop, field + fields
        return jnp.concatenate(parts, -1).astype(x.dtype)
