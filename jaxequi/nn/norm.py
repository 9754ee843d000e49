"""Batch normalisation with statistics groups and torch's running statistics.

Everything is written for the global batch: under `jit` with a sharded batch the reductions become
collectives by themselves, so one group is synchronised BatchNorm. More groups give the statistics
of as many devices that do not talk to each other, on however many devices the program runs. Linen's
own layer cannot do that, and keeps a biased running variance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups.representations import FieldType, check_channels, check_pointwise
from jaxequi.types import Array


def at_least_f32(x: Array) -> Array:
    """Take bfloat16 to f32; what is f32 or f64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _rows(x: Array, groups: int) -> Array:
    """View [B, ..., C] as f32[G, n, C], or f32[n, C] for one group.

    XLA's CPU reductions are two to five times slower over an array with axes of length one.
    """
    channels = x.shape[-1]
    _check_groups(len(x), groups)
    shape = (-1, channels) if groups == 1 else (groups, -1, channels)
    return at_least_f32(x).reshape(shape)


def _check_groups(batch: int, groups: int) -> None:
    if groups < 1 or batch % groups:
        raise Refusal(
            f"BatchNorm: groups={groups} does not divide the batch of {batch}; choose a divisor."
        )


def _field_means(rows: Array, groups: int, field_size: int) -> Array:
    """Mean over the rows of each group and the channels of each field: f32[G, F]."""
    if field_size < 1 or rows.shape[-1] % field_size:
        raise Refusal(
            f"BatchNorm: field_size={field_size} does not divide the {rows.shape[-1]} channels."
        )
    return jnp.mean(jnp.mean(rows, -2).reshape(groups, -1, field_size), -1)


def _spread(values: Array, rows: Array) -> Array:
    """Shape f32[G, F] to broadcast against `_rows`, every field over its channels."""
    values = jnp.repeat(values, rows.shape[-1] // values.shape[-1], -1)
    return values if values.shape[0] == 1 else values[:, None]


def moments(x: Array, groups: int = 1, field_size: int = 1) -> tuple[Array, Array]:
    """Mean and biased variance of each statistics group and field.

    The variance is taken in two passes, about the mean: E[x^2] - E[x]^2 loses all digits in f32
    where the mean is large against the spread.

    Args:
      x: [B, ..., C] with C = F * field_size, field-major (channel = field * field_size + g).
      groups: G contiguous parts of the batch axis.
      field_size: channels that share their statistics.

    Returns:
      mean f32[G, F], var f32[G, F].

    Raises:
      ValueError: groups does not divide B, or field_size does not divide C.
    """
    rows = _rows(x, groups)
    mean = _field_means(rows, groups, field_size)
    var = _field_means(jnp.square(rows - _spread(mean, rows)), groups, field_size)
    return mean, var


def normalize(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float = 1e-5
) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, computed in f32.

    Args:
      x: [B, ..., C].
      mean, var: f32[G, F], where G divides B and F divides C: the statistics of G contiguous parts
        of the batch, each over fields of C / F channels.
      scale, bias: f32[F].

    Returns:
      [B, ..., C] in the dtype of x.
    """
    groups = mean.shape[0]
    # One group needs no rows: pixels stay where they are, as `probes.exactness` wants to see them.
    rows = at_least_f32(x) if groups == 1 else _rows(x, groups)
    gain = jax.lax.rsqrt(var + epsilon) * scale
    rows = (rows - _spread(mean, rows)) * _spread(gain, rows) + _spread(bias[None], rows)
    return rows.reshape(x.shape).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
    x: Array,
    scale: Array,
    bias: Array,
    groups: int = 1,
    field_size: int = 1,
    epsilon: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """`normalize` x by its own `moments`; returns the result, the means and the biased variances.

    The gradient is written out (reverse mode only): two sums over the batch and one pass, where the
    derivative of the formulas above takes several times as long on a CPU.
    """
    return _batch_norm_forward(x, scale, bias, groups, field_size, epsilon)[0]


def _batch_norm_forward(x, scale, bias, groups, field_size, epsilon):
    mean, var = moments(x, groups, field_size)
    y = normalize(x, mean, var, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(groups, field_size, epsilon, residuals, cotangents):
    x, scale, mean, var = residuals
    dy, dmean, dvar = cotangents
    dy, rows = _rows(dy, groups), _rows(x, groups)
    rows = rows - _spread(mean, rows)
    count = rows.size // mean.size
    rstd = jax.lax.rsqrt(var + epsilon)
    gain = scale * rstd
    mean_dy = _field_means(dy, groups, field_size)
    mean_dy_x = _field_means(dy * rows, groups, field_size)
    shift = dmean / count - gain * mean_dy
    slope = 2 * dvar / count - gain * jnp.square(rstd) * mean_dy_x
    dx = _spread(gain, rows) * dy + _spread(slope, rows) * rows + _spread(shift, rows)
    dscale, dbias = count * jnp.sum(mean_dy_x * rstd, 0), count * jnp.sum(mean_dy, 0)
    return dx.reshape(x.shape).astype(x.dtype), dscale, dbias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class BatchNorm(nn.Module):
    """Batch normalisation of [B, ..., C] of any rank.

    In training each group is normalised by its own biased variance, and the running statistics
    follow torch: running <- (1 - momentum) running + momentum batch, taken from group 0 (what rank
    0 keeps and saves) with the unbiased variance. Two calls, as on two views of a batch, update
    them twice, in order. Statistics and parameters are f32 whatever the dtype of x.

    With F = C / field_size: params `scale`, `bias` f32[F]; collection `batch_stats`: `mean`, `var`
    f32[F]. The result has the dtype of x.

    Attributes:
      use_running_average: normalise with the running statistics (evaluation) and leave them be;
        may be given to the call instead.
      groups: G, the contiguous parts of the batch with statistics of their own.
      field_size: channels that share statistics, scale and bias: the order of the group for a
        field of the regular representation (channel = field * field_size + g).
      momentum: weight of the new statistics, as torch counts it.
      epsilon: added to the variance.
      unbiased: running variance with n - 1.
      affine: with `scale` and `bias`; without, the module has no parameters.
      scale_init: zeros for the last norm of a residual branch.

    The flavours of revisitAIRL (`models/utils/batch_norm.py`) on W workers are `vanilla` and
    `customized`, groups=W; `torchsync`, groups=1; `plainsync`, groups=1 and, for W > 1,
    unbiased=False.

    Raises:
      ValueError: groups does not divide B, field_size does not divide C, or a training batch has
        one number a channel.
    """

    use_running_average: bool | None = None
    groups: int = 1
    field_size: int = 1
    momentum: float = 0.1
    epsilon: float = 1e-5
    unbiased: bool = True
    affine: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        evaluate = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        fields = (x.shape[-1] // self.field_size,)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, fields, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, fields, jnp.float32)
        scale, bias = jnp.ones(fields), jnp.zeros(fields)
        if self.affine:
            scale = self.param("scale", self.scale_init, fields, jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, fields, jnp.float32)
        if evaluate:
            mean, var = running_mean.value[None], running_var.value[None]
            return normalize(x, mean, var, scale, bias, self.epsilon)
        y, mean, var = batch_norm(x, scale, bias, self.groups, self.field_size, self.epsilon)
        if not self.is_initializing():
            count = x.size // mean.size
            if count < 2:
                raise Refusal(
                    f"BatchNorm: input {x.shape} in {self.groups} groups leaves one number a "
                    "channel, which has no variance; use a larger batch or fewer groups."
                )
            correction = count / (count - 1) if self.unbiased else 1.0
            keep, take = 1 - self.momentum, self.momentum
            running_mean.value = keep * running_mean.value + take * mean[0]
            running_var.value = keep * running_var.value + take * correction * var[0]
        return y


def by_segment(segment: Array, segments: int) -> AbstractContextManager[Any]:
    """Inside, every `BatchNorm` in training normalises each segment by its own statistics.

    As if the segments passed one after the other: a network sees parts of any sizes, which are not
    known when it is compiled, in one pass of a whole batch. A norm with groups G cuts each segment
    of n examples into parts of ceil(n / G), as torch's `DataParallel` scatters it. Running
    statistics follow the first part of each segment in turn, if it has two examples or more; what
    smaller ones give is to be left out.

    Args:
      segment: i32[B], of each example.
      segments: how many there are.
    """

    def parts(norm: BatchNorm) -> tuple[Array, int]:
        return _part(segment, segments, norm.groups), segments * norm.groups

    return _normalising(parts, least=2)


def regrouped(place: Array) -> AbstractContextManager[Any]:
    """Inside, every `BatchNorm` in training groups the examples as if they stood elsewhere.

    What a network gives is that of a batch in another order, put back, but no example moves between
    devices: sums travel in their place.

    Args:
      place: i32[B], of each example; a permutation.

    Raises:
      ValueError: while tracing, groups do not divide B.
    """

    def parts(norm: BatchNorm) -> tuple[Array, int] | None:
        _check_groups(len(place), norm.groups)
        return None if norm.groups == 1 else (place // (len(place) // norm.groups), norm.groups)

    return _normalising(parts, least=1)


def _normalising(
    parts: Callable[[BatchNorm], tuple[Array, int] | None], least: int
) -> AbstractContextManager[Any]:
    """Inside, norms in training normalise parts of the batch by their own statistics.

    Args:
      parts: of a norm the part of each example, i32[B], and how many there are; None for its own.
      least: examples that the running statistics ask of a part.
    """

    def normalise(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, BatchNorm) or context.method_name != "__call__":
            return next_function(*args, **kwargs)
        x, evaluate = (*args, kwargs.get("use_running_average"))[:2]
        evaluates = nn.merge_param("use_running_average", module.use_running_average, evaluate)
        cut = None if evaluates else parts(module)
        if cut is None:
            return next_function(*args, **kwargs)
        return _normalise_parts(module, x, *cut, least)

    return nn.intercept_methods(normalise)


def _part(segment: Array, segments: int, groups: int) -> Array:
    """Number the parts of all segments, `groups` of each: i32[B]."""
    if groups == 1:
        return segment
    hot = (segment == jnp.arange(segments)[:, None]).astype(jnp.int32)
    place = jnp.sum(hot * jnp.cumsum(hot, axis=1), axis=0) - 1
    size = -(-jnp.sum(hot, axis=1) // groups)
    return segment * groups + place // size[segment]


def _normalise_parts(module: BatchNorm, x: Array, part: Array, parts: int, least: int) -> Array:
    batch, fields = len(x), x.shape[-1] // module.field_size
    means, variances = moments(x, batch, module.field_size)  # of each example
    hot = (part == jnp.arange(parts)[:, None]).astype(means.dtype)
    members = jnp.sum(hot, axis=1, keepdims=True)
    share = hot / jnp.maximum(members, 1)

    def mean_of(values: Array) -> Array:
        return jnp.matmul(share, values, precision="highest")

    mean = mean_of(means)
    var = mean_of(variances + jnp.square(means - mean[part]))
    scale, bias = jnp.ones(fields), jnp.zeros(fields)
    if module.affine:
        scale, bias = (module.get_variable("params", name) for name in ("scale", "bias"))
    count = members * (x.size // (batch * fields))
    correction = count / jnp.maximum(count - 1, 1) if module.unbiased else 1.0
    running: dict[str, Any] = {
        name: module.get_variable("batch_stats", name) for name in ("mean", "var")
    }
    unbiased = var * correction
    for i in range(0, parts, module.groups):
        take = jnp.where(members[i] >= least, module.momentum, 0.0)
        for name, value in zip(running, (mean[i], unbiased[i]), strict=True):
            running[name] = (1 - take) * running[name] + take * value
    for name, value in running.items():
        module.put_variable("batch_stats", name, value)
    return normalize(x, mean[part], var[part], scale, bias, module.epsilon)


class InnerBatchNorm(nn.Module):
    """`BatchNorm` of fields of any sizes: statistics, scale and bias are one number a field.

    escnn `nn/modules/batchnormalization/inner.py`. Fields of d channels share the norm `size_d`,
    whatever stands between them; for fields of one size that is `BatchNorm(field_size=d)`.

    Attributes:
      kind: what the channels are.
      use_running_average, groups, momentum, epsilon: as in `BatchNorm`.

    Raises:
      ValueError: other channels than the type has, fields whose channels do not permute, or as
        `BatchNorm`.
    """

    kind: FieldType
    use_running_average: bool | None = None
    groups: int = 1
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        check_channels(self.kind, x.shape[-1])
        check_pointwise(self.kind, "InnerBatchNorm")
        by_size: dict[int, list[int]] = {}
        for representation, start in self.kind.fields():
            by_size.setdefault(representation.size, []).extend(
                range(start, start + representation.size)
            )
        parts = []
        for size, channels in sorted(by_size.items()):
            norm = BatchNorm(
                self.use_running_average,
                self.groups,
                size,
                self.momentum,
                self.epsilon,
                name=f"size_{size}",
            )
            mine = x if len(by_size) == 1 else x[..., np.array(channels)]
            parts.append(norm(mine, use_running_average))
        if len(by_size) == 1:
            return parts[0]
        place = np.argsort(np.concatenate([channels for _, channels in sorted(by_size.items())]))
        return jnp.concatenate(parts, -1)[..., place]
