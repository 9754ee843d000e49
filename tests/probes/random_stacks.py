"""Random stacks of layers over regular fields: as programs to judge, and in numpy to measure."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.nn import gconv

MODES = ("constant", "reflect", "wrap", "edge", "symmetric")


@functools.cache
def bank(group: Group, k: int, lifting: bool) -> np.ndarray:
    """Filters of a group convolution of one field, f64[k, k, I, G]."""
    rng = np.random.default_rng(k)
    weight = rng.normal(size=(k, k, 1 if lifting else group.order, 1, 1)) / k
    with jax.enable_x64(True):
        return np.asarray(gconv.filter_bank(jnp.asarray(weight), group))


def draw(rng: np.random.Generator, depth: int) -> list[tuple]:
    """Operations (name, arguments for rows, for columns, more) of a stack."""
    return [_operation(rng) for _ in range(depth)]


def _operation(rng: np.random.Generator, branches: bool = True) -> tuple:
    names = [*["conv"] * 6, *["max", "mean", "tanh"] * 2, "pad", "slice"]
    if rng.random() < 0.2:
        names += ["roll", "flip", "cumsum", "sort", "take", "repeat", "fold"]
    if branches:
        names += ["join"] * 3
    name = str(rng.choice(names))
    even = rng.random() < 0.7

    def ends(largest: int) -> tuple[int, int]:
        before = int(rng.integers(0, largest + 1))
        return before, before if even else int(rng.integers(0, largest + 1))

    def line() -> tuple:
        if name == "conv":
            k = int(rng.integers(1, 5))
            stride, dilation, spread = (
                int(rng.choice(c)) for c in ([1, 1, 2, 3], [1, 1, 2], [1, 1, 1, 2])
            )
            return k, stride, ends(min(2, k)), dilation, spread
        if name in ("max", "mean"):
            k = int(rng.integers(1, 5))
            return k, int(rng.integers(1, 4)), ends(k - 1)
        if name == "slice":
            cut = ends(1)
            return cut[0], cut[1], int(rng.choice([1, 1, 2]))
        return ends(2)

    rows = line()
    alike = name in ("conv", "max", "mean") or rng.random() < 0.9
    more: object = None
    if name == "pad":
        more = str(rng.choice(MODES))
    if name == "join":
        more = [[_operation(rng, False) for _ in range(int(rng.integers(0, 3)))] for _ in range(2)]
    return name, rows, rows if alike else line(), more


class Misfit(ValueError):
    """The stack does not fit this size."""


def run(operations: list[tuple], x, group: Group, xp) -> object:
    """The result of a stack, by numpy or as a jax program: f[B, H, W, G]."""
    x = _conv(x, bank(group, 1, True), ((1, 1, (0, 0), 1, 1),) * 2, xp)
    for operation in operations:
        x = _apply(operation, x, group, xp)
        if min(x.shape[1:3]) < 1 or max(x.shape[1:3]) > 24:
            raise Misfit
    return x


def _apply(operation: tuple, x, group: Group, xp):
    name, *lines, more = operation
    if name == "conv":
        if group.mirrors and lines[0][0] % 2 == 0:
            raise Misfit  # a mirror keeps no row of an even kernel
        return xp.tanh(_conv(x, bank(group, lines[0][0], False), lines, xp) + 0.3)
    if name in ("max", "mean"):
        return _pool(x, name, lines, xp)
    if name == "pad":
        ends = ((0, 0), *lines, (0, 0))
        value = {"constant_values": 0.5} if more == "constant" else {}
        if more == "reflect" and min(x.shape[1:3]) <= max(max(e) for e in lines):
            raise Misfit
        if min(x.shape[1:3]) < max(max(e) for e in lines):
            raise Misfit
        return xp.pad(x, ends, mode=more, **value)
    if name == "slice":
        rows, columns = (slice(a, n - b, s) for (a, b, s), n in zip(lines, x.shape[1:3]))
        return x[:, rows, columns]
    if name == "tanh":
        return xp.tanh(x + 0.1)
    if name == "roll":
        return xp.roll(x, 1, 1)
    if name == "flip":
        return xp.flip(x, 2)
    if name == "cumsum":
        return xp.cumsum(x, 1) / x.shape[1]
    if name == "sort":
        return xp.sort(x, 2)
    if name == "take":
        return x[:, np.r_[1 : x.shape[1], 0]]
    if name == "repeat":
        return xp.repeat(xp.repeat(x, 2, 1), 2, 2)
    if name == "fold":
        return x.reshape(x.shape[0], -1, x.shape[1], x.shape[3]) if x.shape[1] > 1 else x
    first, second = more
    one, two = x, x
    for inner in first:
        one = _apply(inner, one, group, xp)
    for inner in second:
        two = _apply(inner, two, group, xp)
    if one.shape != two.shape or min(one.shape[1:3]) < 1:
        raise Misfit
    return one + 2 * two


def _conv(x, kernel, lines, xp):
    strides, ends, dilation, spread = (tuple(line[i] for line in lines) for i in range(1, 5))
    k = kernel.shape[0]
    sides = [(n - 1) * e + 1 + sum(p) for n, p, e in zip(x.shape[1:3], ends, spread)]
    if any(side < d * (k - 1) + 1 for side, d in zip(sides, dilation)):
        raise Misfit
    if xp is jnp:
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(np.float32),
            strides,
            ends,
            lhs_dilation=spread,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return _slide(
        _spread(x, ends, spread, 0.0),
        k,
        strides,
        dilation,
        lambda taps: sum(tap @ kernel[at] for at, tap in taps),
    )


def _pool(x, name, lines, xp):
    ks, strides, ends = (tuple(line[i] for line in lines) for i in range(3))
    if any(n + sum(p) < k for n, p, k in zip(x.shape[1:3], ends, ks)) or len(set(ks)) > 1:
        raise Misfit
    start = -10.0 if name == "max" else 0.0
    if xp is jnp:
        reduce = jax.lax.max if name == "max" else jax.lax.add
        initial = -np.inf if name == "max" else 0.0
        y = jax.lax.reduce_window(
            x, initial, reduce, (1, *ks, 1), (1, *strides, 1), ((0, 0), *ends, (0, 0))
        )
        return xp.maximum(y, -10.0) if name == "max" else y / (ks[0] * ks[1])

    def reduce_taps(taps):
        values = [tap for _, tap in taps]
        return functools.reduce(np.maximum, values) if name == "max" else sum(values) / len(values)

    return _slide(_spread(x, ends, (1, 1), start), ks[0], strides, (1, 1), reduce_taps)


def _spread(x, ends, spread, value):
    sides = [(n - 1) * e + 1 for n, e in zip(x.shape[1:3], spread)]
    wide = np.zeros((x.shape[0], *sides, x.shape[3]))
    wide[:, :: spread[0], :: spread[1]] = x
    return np.pad(wide, ((0, 0), *ends, (0, 0)), constant_values=value)


def _slide(x, k, strides, dilation, reduce_taps):
    reach = [d * (k - 1) + 1 for d in dilation]
    count = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:3], reach, strides)]
    taps = []
    for at in np.ndindex(k, k):
        (top, left), (down, right) = ([a * d for a, d in zip(at, dilation)], strides)
        rows = slice(top, top + (count[0] - 1) * down + 1, down)
        columns = slice(left, left + (count[1] - 1) * right + 1, right)
        taps.append((at, x[:, rows, columns]))
    return reduce_taps(taps)


def error(operations: list[tuple], n: int, group: Group, pooled: bool) -> float:
    """The largest relative deviation from equivariance, or from invariance of the mean."""
    x = np.random.default_rng(n).normal(size=(2, n, n, 1))

    def result(x):
        y = run(operations, x, group, np)
        return y.mean((1, 2)).reshape(len(y), 1, 1, -1) if pooled else y

    upright = result(x)
    worst = 0.0
    for g in range(1, group.order):
        expected = planar.act_on_field(group, g, upright)
        moved = result(planar.act(group, g, x))
        if moved.shape != expected.shape:
            return np.inf
        worst = max(worst, np.abs(moved - expected).max())
    return worst / np.abs(upright).max()
