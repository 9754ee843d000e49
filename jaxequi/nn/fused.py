"""`fourier.pointwise` in one pass over a TPU's memory: a Pallas kernel.

As XLA writes it, the fields themselves pass through memory between transform and function. Here a
block of planes is read once, turned into fields, given to the function, turned back and written;
the gradient reads the planes and theirs, and makes the fields again. The transform is a butterfly:
24 additions for the 8 planes of D4, in place of 64 products.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from jaxequi.groups.fourier import planes
from jaxequi.groups.planar import Group
from jaxequi.types import Array

Function = Callable[[Array], Array]

# Of a block, at most; what one turn of the loop inside it holds: 8 planes in 32 of 64 registers.
_ROWS, _COLUMNS, _AT_ONCE = 256, 256, 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2, 3))
def pointwise(function: Function, x: Array, group: Group, interpret: bool = False) -> Array:
    """Apply a function of single entries to the fields of planes [G, ..., C]; see `fourier`.

    Args:
      function: hashable, of an array of any shape, entry by entry; it is computed in f32.
      x: planes [G, ..., T, C].
      group: the group G.
      interpret: run the kernel where there is no TPU, slowly.

    Returns:
      Planes [G, ..., T, C] in the dtype of x.
    """

    def block(x: Sequence[Array]) -> list[Array]:
        return _analysed([function(f) for f in _synthesised(x, group)], group)

    return _pass(block, (x,), interpret)


def _forward(function: Function, x: Array, group: Group, interpret: bool) -> tuple[Array, Array]:
    return pointwise(function, x, group, interpret), x


def _backward(
    function: Function, group: Group, interpret: bool, x: Array, cotangent: Array
) -> tuple[Array]:
    def block(x: Sequence[Array], cotangent: Sequence[Array]) -> list[Array]:
        fields = zip(_synthesised(x, group), _synthesised(cotangent, group), strict=True)
        return _analysed([jax.vjp(function, f)[1](g)[0] for f, g in fields], group)

    return (_pass(block, (x, cotangent), interpret),)


pointwise.defvjp(_forward, _backward)


def _pass(block: Callable[..., list[Array]], arrays: tuple[Array, ...], interpret: bool) -> Array:
    """Apply a function of G arrays in f32 an argument to all planes of arrays [G, ..., T, C]."""
    like = arrays[0]
    order, *_, tokens, width = like.shape
    shape = (order, math.prod(like.shape[1:-2]), tokens, width)
    rows, columns = _ROWS, _COLUMNS
    if tokens <= rows:
        rows = tokens
    if width % columns:
        columns = 128 if width % 128 == 0 else width
    step = min(_AT_ONCE, rows)

    def kernel(*refs: jax.Ref) -> None:
        *given, made = refs

        def part(at: pl.Slice | slice) -> None:
            read = [[ref[g, 0, at].astype(jnp.float32) for g in range(order)] for ref in given]
            for g, plane in enumerate(block(*read)):
                made[g, 0, at] = plane.astype(made.dtype)

        def turn(i: Array, carry: None) -> None:
            part(pl.ds(i * step, step))

        jax.lax.fori_loop(0, rows // step, turn, None)
        if rows % step:
            part(slice(rows // step * step, rows))

    spec = pl.BlockSpec((order, 1, rows, columns), lambda n, t, c: (0, n, t, c))
    grid = (shape[1], pl.cdiv(tokens, rows), width // columns)
    made = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[spec] * len(arrays),
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(shape, like.dtype),
        interpret=interpret,
    )(*(a.reshape(shape) for a in arrays))
    return made.reshape(like.shape)


def _analysed(fields: Sequence[Array], group: Group) -> list[Array]:
    """`fourier.transform` of G arrays."""
    for factor in _factors(group):
        fields = _product(factor, fields)
    return list(fields)


def _synthesised(x: Sequence[Array], group: Group) -> list[Array]:
    """`fourier.inverse` of G arrays."""
    for factor in reversed(_factors(group)):
        x = _product(factor.T, x)
    return list(x)


@functools.cache
def _factors(group: Group) -> tuple[np.ndarray, ...]:
    """Sparse matrices whose product, the last one first, is the transform.

    An element z of order 2 that commutes with all is +1 or -1 in every irrep. So a plane needs of
    the fields at t and z t their sum or their difference alone.
    """
    matrix, order = planes(group).matrix, group.order
    z = next((z for z in range(1, order) if _central_involution(group, z)), None)
    if z is None:
        return (matrix,)
    pairs = [(t, int(group.product[z, t])) for t in range(order)]
    pairs = [(t, u) for t, u in pairs if t < u]
    halves = np.zeros((order, order))
    for n, (t, u) in enumerate(pairs):
        halves[n, [t, u]] = 1, 1
        halves[n + len(pairs), [t, u]] = 1, -1
    return halves, np.round(matrix @ halves.T / 2, 15)


def _central_involution(group: Group, z: int) -> bool:
    product = group.product
    return product[z, z] == 0 and bool(np.array_equal(product[z], product[:, z]))


def _product(matrix: np.ndarray, values: Sequence[Array]) -> list[Array]:
    """`matrix @ values` without the zeros, and with one product a row where a row allows it."""
    found = []
    for row in matrix:
        first, *others = np.flatnonzero(row).tolist()
        scale = float(row[first])
        total = values[first]
        for n in others:
            weight = float(row[n]) / scale
            term = values[n] if abs(weight) == 1 else abs(weight) * values[n]
            total = total + term if weight > 0 else total - term
        found.append(total if scale == 1 else scale * total)
    return found
