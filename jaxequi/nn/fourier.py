"""Layers in the basis of the irreps, where an equivariant layer costs less than a plain one.

A feature map is [G, ..., C]: the coefficients of C regular fields, plane by plane, as
`groups.fourier` orders them. A linear layer is one small product for each irrep: over D4 12 C O
multiplications in place of 64 C O. Only what acts on single entries, such as a GELU, needs the
fields themselves, [G, ..., C] over the elements: `inverse`, the function, `transform`.

Every layer equals the one between regular fields (`nn.gconv`; channel = field * G + element, here
`analyse` and `synthesise`). A kernel f32[G, I, O] is transformed like a field, so that parameters
of the two domains are one rotation apart: steps of gradient descent agree, those of Adam do not.

Nordström, Edstedt, Kahl and Bökman (2025), "Octic Vision Transformers", arXiv 2505.15441; Bökman,
Nordström and Kahl (2025), "Flopping for FLOPs", arXiv 2502.05169.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxequi.errors import Refusal
from jaxequi.groups import planar
from jaxequi.groups.fourier import planes
from jaxequi.groups.planar import Group
from jaxequi.nn import fused, spread, transformer
from jaxequi.nn.conv import Window
from jaxequi.nn.norm import at_least_f32
from jaxequi.types import Array, PyTree

NORMS = ("fields", "irreps")
"""What has a scale of its own in a LayerNorm."""

TINY = 1e-12
"""Added to the squares that `invariants` takes a root of: its slope at 0 is finite."""


def transform(fields: Array, group: Group) -> Array:
    """Regular fields [G, ...] over the elements to their planes [G, ...]: orthonormal."""
    return _mix(planes(group).matrix, fields)


def inverse(x: Array, group: Group) -> Array:
    """Planes [G, ...] to the fields [G, ...] over the elements: undoes `transform`."""
    return _mix(planes(group).matrix.T, x)


def _mix(matrix: np.ndarray, x: Array) -> Array:
    # One product of [G, G] and [G, n] runs at the speed of memory; sums written out plane by plane
    # are read again for every plane, and take minutes to compile.
    if len(matrix) == 1:
        return x
    y = jax.lax.dot_general(
        jnp.asarray(matrix, x.dtype),
        x.reshape(len(matrix), -1),
        (((1,), (0,)), ((), ())),
        precision="highest",
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return y.reshape(x.shape).astype(x.dtype)


def analyse(x: Array, group: Group) -> Array:
    """Channels [..., C G] of regular fields to planes [G, ..., C].

    Raises:
      ValueError: the channels are no whole number of fields.
    """
    return transform(elements(x, group), group)


def elements(x: Array, group: Group) -> Array:
    """Channels [..., C G] of regular fields as the fields [G, ..., C] over the elements.

    Raises:
      ValueError: the channels are no whole number of fields.
    """
    fields = planar.fields(group, x.shape[-1])
    return jnp.moveaxis(x.reshape(*x.shape[:-1], fields, group.order), -1, 0)


def synthesise(x: Array, group: Group) -> Array:
    """Planes [G, ..., C] to channels [..., C G] of regular fields: undoes `analyse`."""
    elements = jnp.moveaxis(inverse(x, group), 0, -1)
    return elements.reshape(*x.shape[1:-1], -1)


def pointwise(
    function: Callable[[Array], Array], x: Array, group: Group, fuse: bool = False
) -> Array:
    """Apply a function of single entries to the fields of planes [G, ..., C].

    `function` sees [G, ..., C] over the elements, where a `nn.norm.BatchNorm` of C channels has one
    mean and variance a field, as `BatchNorm(field_size=G)` has on the channels.

    Args:
      fuse: on a TPU by `fused.pointwise`, of planes [G, N, ..., C] of examples; elsewhere nothing
        is different.
    """

    def by_xla(x: Array) -> Array:
        return transform(function(inverse(x, group)), group)

    def on_a_tpu(x: Array) -> Array:
        return fused.pointwise(function, x, group)

    if not fuse or not spread.splits(x, 1):
        return by_xla(x)

    def own(x: Array, _: None) -> Array:
        return jax.lax.platform_dependent(x, tpu=on_a_tpu, default=by_xla)

    return spread.by_rows(own, x, None, axis=1)


def constant(values: Array, group: Group) -> Array:
    """The planes of fields that have one value at every element: [...] to [G, ...]."""
    first = math.sqrt(group.order) * values[None]
    return jnp.pad(first, [(0, group.order - 1)] + [(0, 0)] * values.ndim)


def dense(x: Array, kernel: Array, group: Group, bias: Array | None = None) -> Array:
    """The convolution over the group, y[s] = sum_t w[s^-1 t] x[t], irrep by irrep.

    Args:
      x: planes [G, ..., I].
      kernel: planes [G, I, O] of w, `transform(w)`; cast to the dtype of x.
      group: the group G.
      bias: [O], added to every element of a field, or None.

    Returns:
      Planes [G, ..., O].

    Raises:
      ValueError: other planes than the group has, or other fields than the kernel takes.
    """
    order, inputs, outputs = kernel.shape
    if order != group.order or x.shape[0] != order or x.shape[-1] != inputs:
        raise Refusal(
            f"planes {x.shape} and a kernel {kernel.shape}: {group.name} takes [{group.order}, "
            f"..., I] and [{group.order}, I, O]"
        )
    how = planes(group)
    rows = x.reshape(order, -1, inputs)
    kernel = kernel.astype(x.dtype)
    first = jnp.matmul(rows[: how.ones], math.sqrt(order) * kernel[: how.ones])
    if bias is not None:
        first = first + constant(bias, group)[: how.ones, None].astype(x.dtype)
    parts = [first]
    # Row by row: axes of rows and of examples made one could not stay split over devices, and as
    # two axes they make the gradient slow (`transformer.each_token`).
    for n, matrix in enumerate(_matrices(kernel, group)):
        start = how.ones + 2 * how.rows * n
        for k, r in np.ndindex(2, how.rows):
            left, right = rows[start + r], rows[start + how.rows + r]
            if inputs < outputs:  # it costs less to join what is read than to add what is made
                made = jnp.concatenate([left, right], -1) @ jnp.concatenate([m[k] for m in matrix])
            else:
                made = left @ matrix[0][k] + right @ matrix[1][k]
            parts.append(made[None])
    return jnp.concatenate(parts).reshape(order, *x.shape[1:-1], outputs)


def one_by_one(layer: Callable[[Array, PyTree], Array], x: Array, weights: PyTree) -> Array:
    """Where a CPU computes no gradient, pass example after example through a layer.

    What one example needs stays in its cache: the MLP of an octic ViT-B takes half the time on two
    cores, and of more cores each two get an example at once. With a gradient, whose products are
    the longer ones for all examples, the layer is left as it is.

    Args:
      layer: of planes [G, N, ..., C] and the weights, example by example.
    """

    at_once = max((os.cpu_count() or 1) // 2, 1)

    def looped(x: Array, weights: PyTree) -> Array:
        parts = jnp.moveaxis(x.reshape(len(x), -1, at_once, *x.shape[2:]), 1, 0)
        made = jnp.moveaxis(jax.lax.map(lambda part: layer(part, weights), parts), 0, 1)
        return made.reshape(*x.shape[:-1], -1)

    def own(x: Array, weights: PyTree) -> Array:
        if x.shape[1] == at_once or x.shape[1] % at_once:
            return layer(x, weights)
        return jax.lax.platform_dependent(x, weights, cpu=looped, default=layer)

    @jax.custom_vjp
    def forward(x: Array, weights: PyTree) -> Array:
        if not spread.splits(x, 1):
            return layer(x, weights)
        return spread.by_rows(own, x, weights, axis=1)

    forward.defvjp(
        lambda x, weights: jax.vjp(layer, x, weights), lambda pull, cotangent: pull(cotangent)
    )
    return forward(x, weights)


def _matrices(kernel: Array, group: Group) -> list[tuple[tuple[Array, Array], tuple[Array, Array]]]:
    """For each irrep of dimension 2 what leads from its column j to its column k: [I, O] each."""
    how = planes(group)
    scale = math.sqrt(group.order / 2)
    found = []
    for part in scale * kernel[how.ones :].reshape(how.twos, 2, how.rows, *kernel.shape[1:]):
        if how.rows == 2:  # sum_u w[u] rho(u)_kj leads from column j to column k
            found.append(((part[0, 0], part[0, 1]), (part[1, 0], part[1, 1])))
        else:
            a, b = part[0, 0], part[1, 0]
            found.append(((a, -b), (b, a)))
    return found


def realigned(kernel: Array, group: Group) -> Array:
    """A kernel f32[k, k, G, I, O] of `nn.gconv` as the planes [G, k, k, I, O] that `conv` takes.

    With taps realigned for each element a convolution is a map over the group: the output at s
    reads w[u](a) at s a = t b, where t = s u and b = u^-1 a.
    """
    slices = [kernel[..., u, :, :] for u in range(group.order)]
    moved = [planar.act(group, int(group.inverse[u]), w, (0, 1)) for u, w in enumerate(slices)]
    return transform(jnp.stack(moved), group)


def unaligned(kernel: Array, group: Group) -> Array:
    """Undo `realigned`."""
    moved = enumerate(inverse(kernel, group))
    return jnp.stack([planar.act(group, u, w, (0, 1)) for u, w in moved], -3)


def patches(fields: Array, k: int, group: Group, rows: Window, columns: Window) -> Array:
    """What the k x k taps see, each element's taps moved by it.

    Args:
      fields: [G, B, H, W, C] over the elements.
      k: side of the kernel; odd, if the group has mirrors and the taps overlap.
      group: a group that maps the grid onto itself.
      rows, columns: how the kernel moves.

    Returns:
      [G, B, H', W', k k C]: at element t and tap b the pixel at t b. Regular fields again.

    Raises:
      ValueError: an even kernel whose taps overlap and mirrors, or another group.
    """
    apart = rows == columns == Window(k)
    if apart:
        planar.check_on_grid(group)
    else:
        planar.check_kernel(group, k)
    around = (0, 0), (0, 0), rows.padding, columns.padding, (0, 0)
    if k == 1:
        s, t = rows.stride, columns.stride
        return jnp.pad(fields, around)[:, :, ::s, ::t]
    heights, widths = (w.outputs(n, k) for w, n in zip((rows, columns), fields.shape[2:4]))
    channels = fields.shape[-1]
    # pixels that one patch alone reads are no slices with a stride, which `probes` would judge
    fields = transformer.space_to_depth(fields, k) if apart else jnp.pad(fields, around)

    def seen(t: int, tap: int) -> Array:
        if apart:
            return fields[t, ..., tap * channels : (tap + 1) * channels]
        top, left = (w.dilation * at for w, at in zip((rows, columns), divmod(tap, k)))
        down = slice(top, top + (heights - 1) * rows.stride + 1, rows.stride)
        across = slice(left, left + (widths - 1) * columns.stride + 1, columns.stride)
        return fields[t, :, down, across]

    taps = np.arange(k * k).reshape(k, k)
    moved = [planar.act(group, int(t), taps, (0, 1)).ravel() for t in group.inverse]
    return jnp.stack(
        [jnp.concatenate([seen(t, tap) for tap in at], -1) for t, at in enumerate(moved)]
    )


def conv(
    fields: Array,
    kernel: Array,
    group: Group,
    rows: Window,
    columns: Window,
    bias: Array | None = None,
) -> Array:
    """`gconv.group_conv` as patches and products, irrep by irrep.

    Args:
      fields: [G, B, H, W, I] over the elements, as they leave a ReLU; of planes their `inverse`.
      kernel: planes f32[G, k, k, I, O], see `realigned`.
      rows, columns: how the kernel moves.
      group, bias: as in `dense`.

    Returns:
      Planes [G, B, H', W', O].

    Raises:
      ValueError: as `patches` and `dense`.
    """
    order, k = kernel.shape[:2]
    seen = transform(patches(fields, k, group, rows, columns), group)
    return dense(seen, kernel.reshape(order, -1, kernel.shape[-1]), group, bias)


def lift(image: Array, group: Group) -> Array:
    """The planes [G, H, W, ...] of the fields f[s] = s image, of an image [H, W, ...].

    So become a kernel on plain images, and a table of positions, equivariant.

    Raises:
      ValueError: unequal sides under quarter turns, or a group that does not map the grid onto
        itself.
    """
    planar.check_on_grid(group)
    height, width = image.shape[:2]
    if group.rotations == 4 and height != width:
        raise Refusal(
            f"{height} x {width}: a quarter turn of {group.name} exchanges the sides. Take square "
            "images, or the group d1, c2 or d2."
        )
    moved = [planar.act(group, s, image, (0, 1)) for s in range(group.order)]
    return transform(jnp.stack(moved), group)


def embed(patches: Array, kernel: Array, group: Group, bias: Array | None = None) -> Array:
    """Patches of plain images to fields: a convolution with stride k, as it lifts.

    Args:
      patches: [N, L, k k I], see `transformer.patchify`.
      kernel: f32[k, k, I, O], the filter of element 0.
      group, bias: as in `dense`.

    Returns:
      Planes [G, N, L, O].

    Raises:
      ValueError: a group that does not map the grid onto itself.
    """
    bank = lift(kernel, group).reshape(group.order, -1, kernel.shape[-1]).astype(patches.dtype)
    rows = patches.reshape(-1, patches.shape[-1])
    tokens = jnp.stack([rows @ filters for filters in bank])
    tokens = tokens.reshape(group.order, *patches.shape[:-1], -1)
    if bias is not None:
        tokens = tokens + _along(constant(bias, group), tokens)
    return tokens


def layer_norm(x: Array, scale: Array, bias: Array, group: Group, epsilon: float = 1e-6) -> Array:
    """LayerNorm over all channels of the fields, with one scale and bias a field.

    Args:
      x: planes [G, ..., C].
      scale, bias: f32[C].

    Returns:
      Planes [G, ..., C] in the dtype of x; statistics are f32.
    """
    values = at_least_f32(x)
    trivial = _along(jnp.eye(1, group.order, dtype=values.dtype).T, values)
    values = values - trivial * jnp.mean(values[0], -1, keepdims=True)
    variance = jnp.mean(jnp.mean(jnp.square(values), -1, keepdims=True), 0)
    values = values * jax.lax.rsqrt(variance + epsilon) * scale
    return (values + trivial * (math.sqrt(group.order) * bias)).astype(x.dtype)


def layer_norm_by_irreps(
    x: Array, scale: Array, bias: Array, group: Group, epsilon: float = 1e-5
) -> Array:
    """LayerNorm as octic vision transformers have it: each irrep has a mean and scales of its own.

    davnords/octic-vits, `octic_vits/d8_layers.py`, `LayerNormD8`: an irrep of dimension 2 counts
    once, as one of dimension 1 does, and the sum of their variances is divided by G. Its mean is
    one over both columns of a basis that is turned by 45 degrees, here that of the last column;
    scales there, of those columns, can be carried into the next layer.

    Args:
      x: planes [G, ..., C].
      scale: f32[K, C], K = `invariant_planes(group)`: of an irrep's columns one each.
      bias: f32[C], added to every element of a field.

    Returns:
      Planes [G, ..., C] in the dtype of x; statistics are f32.
    """
    how = planes(group)
    values = at_least_f32(x)
    parts = [values[: how.ones, None, None]]  # of each irrep [columns, rows]
    if how.twos:
        shape = (how.twos, 2, how.rows) if how.rows == 2 else (how.twos, 1, 2)
        parts.append(values[how.ones :].reshape(*shape, *x.shape[1:]))
    parts = [part - _of_last_column(jnp.mean(part, -1, keepdims=True)) for part in parts]
    variances = [jnp.mean(jnp.square(part), (1, 2, -1)) for part in parts]
    deviation = jnp.sqrt((sum(jnp.sum(v, 0) for v in variances) + epsilon) / group.order)
    parts = [(part / deviation[..., None]).reshape(-1, *x.shape[1:]) for part in parts]
    columns = [*range(how.ones), *np.repeat(range(how.ones, len(scale)), 2)]
    values = jnp.concatenate(parts) * _along(scale[np.array(columns)], values)
    return (values + _along(constant(bias, group), values)).astype(x.dtype)


def _of_last_column(x: Array) -> Array:
    """[irreps, columns, ...] with zeros in all columns but the last."""
    return jnp.pad(x[:, -1:], [(0, 0), (x.shape[1] - 1, 0)] + [(0, 0)] * (x.ndim - 2))


def _along(values: Array, x: Array) -> Array:
    """Shape [G, C] to broadcast against [G, ..., C], in its dtype."""
    shape = (values.shape[0], *(1,) * (x.ndim - 2), values.shape[-1])
    return values.reshape(shape).astype(x.dtype)


def attend(qkv: Array, heads: int) -> Array:
    """Attention of every token to every token, in heads of whole fields.

    The planes of a head are as many numbers as its channels, and have the same products.

    Args:
      qkv: planes [G, N, T, 3 C], queries, keys and values behind each other.
      heads: a divisor of C.

    Returns:
      Planes [G, N, T, C].
    """
    order, n, tokens, width = qkv.shape
    each = width // (3 * heads)
    parts = qkv.reshape(order, n, tokens, 3, heads, each)
    parts = jnp.moveaxis(parts, 0, 4).reshape(n, tokens, 3, heads, order * each)
    mixed = jax.nn.dot_product_attention(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2])
    mixed = jnp.moveaxis(mixed.reshape(n, tokens, heads, order, each), 3, 0)
    return mixed.reshape(order, n, tokens, heads * each)


def invariants(x: Array, group: Group) -> Array:
    """What no element moves: the trivial plane, and of every other irrep its lengths.

    Args:
      x: planes [G, ..., C].

    Returns:
      [..., C K] with K = `invariant_planes(group)`: 6 for D4.
    """
    how = planes(group)
    found = [x[:1], jnp.abs(x[1 : how.ones])]
    if how.twos:
        twos = x[how.ones :].reshape(how.twos, 2, how.rows, *x.shape[1:])
        # the group moves rows, and where it is complex the two numbers of the only row
        squares = jnp.sum(jnp.square(twos), 2 if how.rows == 2 else 1)
        found.append(jnp.sqrt(squares + TINY).reshape(-1, *x.shape[1:]).astype(x.dtype))
    return jnp.moveaxis(jnp.concatenate(found), 0, -2).reshape(*x.shape[1:-1], -1)


def invariant_planes(group: Group) -> int:
    """K, how many numbers `invariants` makes of a field."""
    how = planes(group)
    return how.ones + how.twos * how.rows


# Of [G, I, O] the fans are those of the plain layer of all channels, G I and G O.
_xavier = nn.initializers.xavier_uniform()


class Dense(nn.Module):
    """`dense` with its parameters: `kernel` f32[G, I, O], planes, and `bias` f32[O].

    Attributes:
      features: O, fields.
      group: the group G.
      dtype: of the computation; parameters are f32.
      kernel_init: of the planes.
    """

    features: int
    group: Group
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = _xavier

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.weights(x.shape[-1])
        return dense(x.astype(self.dtype), kernel, self.group, bias)

    @nn.compact
    def weights(self, inputs: int) -> tuple[Array, Array]:
        """The parameters of a layer that reads so many fields."""
        shape = (self.group.order, inputs, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return kernel, bias


class LayerNorm(nn.Module):
    """`layer_norm` or `layer_norm_by_irreps` with its parameters.

    Attributes:
      group: the group G.
      over: what has a scale, `NORMS`: `fields`, f32[C], or `irreps`, f32[K, C]. `bias` is f32[C].
    """

    group: Group
    over: str = "fields"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape: tuple[int, ...] = (x.shape[-1],)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        function = layer_norm
        if self.over == "irreps":
            function, shape = layer_norm_by_irreps, (invariant_planes(self.group), *shape)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        return function(x, scale, bias, self.group)


class PatchEmbed(nn.Module):
    """`embed` with its parameters: `kernel` f32[size, size, I, O] and `bias` f32[O].

    Attributes:
      features: O, fields.
      size: side of a patch.
      group: the group G.
      dtype: of the computation; parameters are f32.
    """

    features: int
    size: int
    group: Group
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        values = patches.shape[-1]
        channels = values // self.size**2
        # fans of the plain layer, whose outputs are all channels
        bound = math.sqrt(6 / (values + self.group.order * self.features))
        kernel = self.param(
            "kernel",
            transformer.uniform(bound),
            (self.size, self.size, channels, self.features),
            jnp.float32,
        )
        init = transformer.uniform(values**-0.5)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        return embed(patches.astype(self.dtype), kernel, self.group, bias)


class Attention(nn.Module):
    """Every token reads every token: planes [G, N, T, C] to [G, N, T, C], in `heads` parts of C."""

    heads: int
    group: Group
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        if width % self.heads:
            raise Refusal(
                f"{self.heads} heads split the {width} fields of {self.group.order} channels; a "
                "head takes whole fields, so their number must be a divisor"
            )
        qkv = Dense(3 * width, self.group, self.dtype, name="qkv")(x)
        return Dense(width, self.group, self.dtype, name="proj")(attend(qkv, self.heads))


class MLP(nn.Module):
    """Two layers on each token with an exact GELU of the fields between them.

    `fuse` is that of `pointwise`; what a CPU does without a gradient is in `one_by_one`.
    """

    hidden: int
    group: Group
    dtype: DTypeLike = jnp.float32
    fuse: bool = False
    kernel_init: nn.initializers.Initializer = _xavier

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, init = x.shape[-1], self.kernel_init
        fc1 = Dense(self.hidden, self.group, kernel_init=init, name="fc1").weights(width)
        fc2 = Dense(width, self.group, kernel_init=init, name="fc2").weights(self.hidden)

        def layer(x: Array, weights: PyTree) -> Array:
            (kernel1, bias1), (kernel2, bias2) = weights
            h = dense(x, kernel1, self.group, bias1)
            h = pointwise(transformer.gelu, h, self.group, self.fuse)
            return dense(h, kernel2, self.group, bias2)

        return one_by_one(layer, x.astype(self.dtype), (fc1, fc2))


class Block(nn.Module):
    """`transformer.Block` of planes: x + Attention(LN(x)), then x + MLP(LN(x)).

    Attributes:
      heads: of the attention, each of whole fields.
      group: the group G.
      mlp_ratio, drop_path: as of `transformer.Block`.
      dtype: of the computation; parameters are f32.
      fuse: as of `pointwise`.
      norm_over: as `over` of `LayerNorm`.
    """

    heads: int
    group: Group
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32
    fuse: bool = False
    norm_over: str = "fields"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        drop = nn.Dropout(self.drop_path, broadcast_dims=(0, 2, 3), deterministic=not train)
        h = LayerNorm(self.group, self.norm_over, name="norm1")(x)
        x = x + drop(Attention(self.heads, self.group, self.dtype, name="attn")(h))
        h = LayerNorm(self.group, self.norm_over, name="norm2")(x)
        hidden = int(x.shape[-1] * self.mlp_ratio)
        return x + drop(MLP(hidden, self.group, self.dtype, self.fuse, name="mlp")(h))
