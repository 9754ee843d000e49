"""Batch normalisation with statistics groups and torch's running statistics.

Everything is written for the global batch: under `jit` with a sharded batch the reductions become
collectives by themselves, so one group is synchronised BatchNorm. More groups give the statistics
of as many devices that do not talk to each other, on however many devices the program runs. Linen's
own layer cannot do that, and keeps a biased running variance.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.types import Array


def _grouped(x: Array, groups: int, field_size: int) -> Array:
    """View [B, ..., F * S] as f32[G, B / G, ..., F, S]; refuse sizes that do not divide."""
    batch, channels = x.shape[0], x.shape[-1]
    if groups < 1 or batch % groups:
        raise ValueError(
            f"BatchNorm: groups={groups} does not divide the batch of {batch}; choose a divisor."
        )
    if field_size < 1 or channels % field_size:
        raise ValueError(
            f"BatchNorm: field_size={field_size} does not divide the {channels} channels."
        )
    shape = (groups, batch // groups, *x.shape[1:-1], channels // field_size, field_size)
    return x.astype(jnp.float32).reshape(shape)


def _against(x: Array, per_field: Array) -> Array:
    """Shape statistics f32[G, F] or parameters f32[1, F] to broadcast against `_grouped`."""
    groups, fields = per_field.shape
    return per_field.reshape(groups, *(1,) * (x.ndim - 3), fields, 1)


def moments(x: Array, groups: int = 1, field_size: int = 1) -> tuple[Array, Array, int]:
    """Mean and biased variance of each statistics group and field, and the numbers in each.

    The variance is taken in two passes, about the mean: E[x^2] - E[x]^2 loses all digits in f32
    where the mean is large against the spread.

    Args:
      x: [B, ..., C] with C = F * field_size, field-major (channel = field * field_size + g).
      groups: G contiguous parts of the batch axis.
      field_size: channels that share their statistics.

    Returns:
      mean f32[G, F], var f32[G, F], and how many numbers each was taken over.

    Raises:
      ValueError: groups does not divide B, or field_size does not divide C.
    """
    x = _grouped(x, groups, field_size)
    axes = (*range(1, x.ndim - 2), x.ndim - 1)
    mean = jnp.mean(x, axes)
    var = jnp.mean(jnp.square(x - _against(x, mean)), axes)
    return mean, var, x.size // mean.size


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
    groups, fields = mean.shape
    h = _grouped(x, groups, x.shape[-1] // fields)
    gain = jax.lax.rsqrt(var + epsilon) * scale
    h = (h - _against(h, mean)) * _against(h, gain) + _against(h, bias[None])
    return h.reshape(x.shape).astype(x.dtype)


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
      unbiased: running variance with n - 1; False for `plainsync` of revisitAIRL.
      scale_init: zeros for the last norm of a residual branch.

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
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        evaluate = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        fields = (x.shape[-1] // self.field_size,)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, fields, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, fields, jnp.float32)
        scale = self.param("scale", self.scale_init, fields, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, fields, jnp.float32)
        if evaluate:
            mean, var = running_mean.value[None], running_var.value[None]
        else:
            mean, var, count = moments(x, self.groups, self.field_size)
            if not self.is_initializing():
                if count < 2:
                    raise ValueError(
                        f"BatchNorm: input {x.shape} in {self.groups} groups leaves one number a "
                        "channel, which has no variance; use a larger batch or fewer groups."
                    )
                correction = count / (count - 1) if self.unbiased else 1.0
                keep, take = 1 - self.momentum, self.momentum
                running_mean.value = keep * running_mean.value + take * mean[0]
                running_var.value = keep * running_var.value + take * correction * var[0]
        return normalize(x, mean, var, scale, bias, self.epsilon)
