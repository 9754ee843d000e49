"""Heads on top of a backbone: projectors, and predictors of what a relation does to an embedding.

All compute in `dtype`, keep f32 parameters, and start as torch's Linear does: kernels and biases
uniform in +-1 / sqrt(fan-in), unless a layer is told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import quaternions
from jaxequi.nn.norm import BatchNorm
from jaxequi.types import Array

Dtype = Any
Norm = Callable[..., nn.Module]


def widths(text: str) -> tuple[int, ...]:
    """Read layer widths as a config writes them, "2048-2048-512"; an empty string is no layer.

    Raises:
      ValueError: not whole numbers above 0 with dashes between them.
    """
    parts = text.split("-") if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise Refusal(
            f"layer widths {text!r}: write whole numbers above 0 with dashes between them, such "
            "as '2048-2048-512'"
        )
    return tuple(int(part) for part in parts)


def _weights(
    module: nn.Module,
    fan_in: int,
    features: int,
    use_bias: bool,
    frozen_bias: bool = False,
    std: float | None = None,
) -> tuple[Array, Array | None]:
    """Declare `kernel` f32[fan_in, features] and, if asked for, `bias` f32[features]."""

    def uniform(key: Array, shape: Sequence[int]) -> Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    first = uniform if std is None else nn.initializers.normal(std)
    bias = uniform if std is None else nn.initializers.zeros
    kernel = module.param("kernel", first, (fan_in, features))
    if frozen_bias:
        start = module.make_rng("params") if module.is_initializing() else None
        return kernel, module.variable("frozen", "bias", bias, start, (features,)).value
    return kernel, module.param("bias", bias, (features,)) if use_bias else None


class Linear(nn.Module):
    """x W + b: [..., D] to [..., features].

    Attributes:
      use_bias: add the parameter b.
      frozen_bias: b stays as it was drawn, in the collection `frozen` and out of every optimizer's
        reach.
      std: W starts from a normal distribution of this deviation, and b at 0; None starts both as
        torch's Linear.
    """

    features: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    frozen_bias: bool = False
    std: float | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(
            self, x.shape[-1], self.features, self.use_bias, self.frozen_bias, self.std
        )
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return y if bias is None else y + bias.astype(self.dtype)


class MLP(nn.Module):
    """Linear layers of the given widths, ReLU between them and none after the last.

    Attributes:
      std: of the last layer, as `Linear` takes it.
    """

    widths: Sequence[int]
    dtype: Dtype = jnp.float32
    std: float | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        last = len(self.widths) - 1
        for i, width in enumerate(self.widths):
            std = self.std if i == last else None
            layer = Linear(width, dtype=self.dtype, std=std, name=f"linear_{i}")
            x = layer(nn.relu(x) if i else x)
        return x


class Projector(nn.Module):
    """Linear, BatchNorm, ReLU, and so on; the last Linear alone: f[B, D] to f[B, widths[-1]].

    Projectors and predictors of the field differ in their biases and norms. As it is by default:
    facebookresearch/SIE, `src/models.py`, `Projector`. The six heads of megvii-research/
    revisitAIRL, `models/utils/mlp.py`, all with `last_bias` but the two named mcv2p:

        cls           one width; MoCo v1
        moco          two widths, norm=None; MoCo v2
        byol          two widths; with its predictor another such head behind it
        mcv2p_2l      two widths
        mcv2p         the same, and another such head behind it

    Attributes:
      norm: makes the normalisations; None for none.
      bias: of the Linear layers before a norm and a ReLU.
      last_bias: of the last Linear.
      last_norm: end with a norm without scale and shift. The last Linear then has a bias that is
        frozen, because no gradient could reach it (facebookresearch/simsiam, `builder.py`).
    """

    widths: Sequence[int]
    norm: Norm | None = BatchNorm
    dtype: Dtype = jnp.float32
    bias: bool = True
    last_bias: bool = False
    last_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        *hidden, last = self.widths
        for i, width in enumerate(hidden):
            x = Linear(width, self.bias, self.dtype, name=f"linear_{i}")(x)
            if self.norm is not None:
                x = self.norm(use_running_average=not train, name=f"norm_{i}")(x)
            x = nn.relu(x)
        end, last_norm = len(hidden), self.norm is not None and self.last_norm
        x = Linear(last, self.last_bias, self.dtype, last_norm, name=f"linear_{end}")(x)
        if self.norm is not None and self.last_norm:
            x = self.norm(affine=False, use_running_average=not train, name=f"norm_{end}")(x)
        return x


class _GeneratedLayers(nn.Module):
    """Layers whose weights are a linear function of a code, and that function's own weights.

    The weights W(c) = sum_k c_k A_k of one example are never formed. A layer is
    W(c) h = sum_k c_k (A_k h): the A_k, stacked, are one matrix [K * out, in], and an example
    costs K * out numbers of memory instead of out * in.

    The kernel has the packing of the reference: for each of the K entries of the code the layers
    one after the other, each its weights [out, in] row by row, then its biases.
    """

    widths: Sequence[int]
    use_bias: bool
    predicted_bias: bool
    relu: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, code: Array, h: Array) -> Array:
        layers = list(zip(self.widths, self.widths[1:]))
        total = sum(n_out * (n_in + self.predicted_bias) for n_in, n_out in layers)
        kernel, bias = _weights(self, code.shape[-1], total, self.use_bias)
        if bias is not None:  # it belongs to an entry of the code that is always 1
            kernel = jnp.concatenate([kernel, bias[None]])
            code = jnp.concatenate([code, jnp.ones_like(code[:, :1])], axis=-1)
        kernel, code, h = (a.astype(self.dtype) for a in (kernel, code, h))
        size, start = code.shape[-1], 0
        for i, (n_in, n_out) in enumerate(layers):
            h = nn.relu(h) if self.relu and i else h
            matrices = kernel[:, start : start + n_out * n_in].reshape(size * n_out, n_in)
            start += n_out * n_in
            moved = (h @ matrices.T).reshape(-1, size, n_out)  # [B, K, out]: A_k h
            h = jnp.sum(code[..., None] * moved, axis=1)
            if self.predicted_bias:
                h = h + code @ kernel[:, start : start + n_out]
                start += n_out
        return h


class Hypernetwork(nn.Module):
    """Predictor whose weights are a function of the relation: (h f[B, E], z f[B, L]) -> f[B, E].

    Garrido et al., ICML 2023, section 3; facebookresearch/SIE, `src/hypernetwork.py`,
    `ParametrizedNet`.

    Attributes:
      hidden: widths between E and E; the default is a single matrix.
      deep: two layers L -> L with ReLU turn z into the code that mixes the weights; otherwise z
        is the code.
      bias: the layers that make the weights have biases.
      predicted_bias: the layers whose weights are made have biases, made as well.
      relu: ReLU after each of those layers but the last.
    """

    hidden: Sequence[int] = ()
    deep: bool = False
    bias: bool = False
    predicted_bias: bool = False
    relu: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h: Array, z: Array) -> Array:
        code, depth = z, 2 if self.deep else 0
        for i in range(depth):
            layer = Linear(z.shape[-1], self.bias, self.dtype, name=f"hypernetwork_{i}")
            code = nn.relu(layer(code))
        return _GeneratedLayers(
            widths=(h.shape[-1], *self.hidden, h.shape[-1]),
            use_bias=self.bias,
            predicted_bias=self.predicted_bias,
            relu=self.relu,
            dtype=self.dtype,
            name=f"hypernetwork_{depth}",
        )(code, h)


class MLPPredictor(nn.Module):
    """Predictor that reads the relation beside the embedding: (f[B, E], z f[B, L]) -> f[B, E].

    facebookresearch/SIE, `src/predictors.py`, `MLPPredictor`; z comes first.
    """

    layers: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h: Array, z: Array) -> Array:
        mlp = MLP((h.shape[-1],) * self.layers, self.dtype, name="mlp")
        return mlp(jnp.concatenate([z.astype(h.dtype), h], axis=-1))


def _e3nn() -> Any:
    """Import what takes seconds, and only this predictor needs."""
    try:
        import e3nn_jax
    except ImportError as error:
        raise Refusal('a predictor of irreps needs e3nn-jax: pip install -e ".[wigner]"') from error
    return e3nn_jax


def wigner(degree: int, rotation: Array) -> Array:
    """Matrices of a real irrep of SO(3), in the basis of e3nn: f32[..., 3, 3] -> [..., m, m].

    m = 2 degree + 1. They are polynomials of the rotation, made by coupling degree 1 with the
    degree before: no Euler angles, whose arccosine loses half of the digits near the poles.
    """
    e3nn_jax = _e3nn()
    matrices = jnp.ones((*rotation.shape[:-2], 1, 1), rotation.dtype)
    for n in range(1, degree + 1):
        coupling = e3nn_jax.clebsch_gordan(1, n - 1, n)  # [3, 2 n - 1, 2 n + 1]
        coupling = jnp.asarray(coupling / (coupling[..., 0] ** 2).sum() ** 0.5, rotation.dtype)
        matrices = jnp.einsum(
            "ijk,...ia,...jb,abc->...kc",
            coupling,
            rotation,
            matrices,
            coupling,
            precision="highest",
        )
    return matrices


class WignerPredictor(nn.Module):
    """Predictor without parameters: the embedding is typed, and the rotation acts on it.

    The embedding is a direct sum of irreps of SO(3), and (h f[B, E], z f[B, 4]) -> f[B, E] is
    D(R)^-1 h, with R the relative rotation in the body's frame. A representation, so that two
    steps are one: predicting by z12 and then by z23 is predicting by their product. (The inverse,
    because R12 R23 = R13 while the second step acts last.)

    Attributes:
      irreps: as e3nn writes them, "24x0e+18x1o+10x2e": 24 scalars, 18 vectors, 10 of degree 2.
        Parities are not used. Their dimensions must add up to E.

    Raises:
      ValueError: irreps of another size than E, a relation that is not a quaternion, or e3nn-jax
        is not installed.
    """

    irreps: str
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h: Array, z: Array) -> Array:
        irreps = _e3nn().Irreps(self.irreps)
        if irreps.dim != h.shape[-1]:
            raise Refusal(
                f"irreps {self.irreps!r} have {irreps.dim} dimensions, the embedding has "
                f"{h.shape[-1]}; a projector of that last width, or other irreps, would fit"
            )
        if z.shape[-1] != 4:
            raise Refusal(
                f"a rotation acts here, given by 4 numbers, and the relation has {z.shape[-1]}; "
                "use relation='rotation'"
            )
        # Transposed: the matrices of the inverse.
        inverse = jnp.swapaxes(quaternions.to_matrix(z.astype(jnp.float32)), -1, -2)
        h, turned, start = h.astype(self.dtype), [], 0
        for copies, irrep in irreps:
            chunk = h[:, start : start + copies * irrep.dim].reshape(-1, copies, irrep.dim)
            matrices = wigner(irrep.l, inverse).astype(self.dtype)
            turned.append(jnp.einsum("bij,bcj->bci", matrices, chunk).reshape(len(h), -1))
            start += copies * irrep.dim
        return jnp.concatenate(turned, axis=-1)
