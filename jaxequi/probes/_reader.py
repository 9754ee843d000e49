"""Read the windows of a traced program: follow the pixels from operation to operation."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxequi.probes._windows import IMAGE, Geometry, Windows


def trace(fn: Callable[..., Any], shape: tuple[int, ...], *arguments: Any) -> Geometry:
    """Read the windows of a program.

    Args:
      fn: (images f32[B, H, W, C], *arguments) -> anything; traced, not run.
      shape: [B, H, W, C].
      arguments: trees of arrays or of `jax.ShapeDtypeStruct`, such as a network's variables.
    """
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(shape, jnp.float32), *arguments)
    reader = _Reader()
    others = [_plain(v.aval.shape) for v in closed.jaxpr.invars[1:]]
    results = reader.read(closed.jaxpr, [_Pixels(IMAGE, (1, 2)), *others], "", closed.consts)
    for value in results:
        if isinstance(value, _Pixels):
            reader.end(value, pooled=False)
    return Geometry(
        tuple(reader.windows),
        frozenset(reader.joins),
        frozenset(reader.ends),
        tuple(dict.fromkeys(reader.unjudged)),
    )


@dataclasses.dataclass(frozen=True)
class _Line:
    """How one axis of a view was taken from its source: see `Windows`. None of it: as it is."""

    before: int = 0
    after: int = 0
    stride: int = 1
    spread: int = 1

    def then(self, other: _Line) -> _Line | None:
        """Both in one, if that can be said so."""
        if self == _Line() or other == _Line():
            return other if self == _Line() else self
        ends = (self.before, self.after, other.before, other.after)
        if max(ends) <= 0 and {self.stride, self.spread, other.stride, other.spread} == {1}:
            return _Line(self.before + other.before, self.after + other.after)
        return None


class _View(NamedTuple):
    """Pixels of a source in another arrangement; nothing has read them yet.

    Attributes:
      layer, kind: as of `Windows`.
      size: rows and columns of the source.
      places: for rows and columns, which pixel of the source stands at each place; negative numbers
        are constants, equal ones equal constants.
      lines: the same in a form that holds for all sizes, where there is one.
    """

    layer: str
    kind: str
    size: tuple[int, int]
    places: tuple[np.ndarray, np.ndarray]
    lines: tuple[_Line | None, _Line | None] = (None, None)

    def windows(self, source: int) -> Windows:
        """The view as an operation on its source."""
        one, two = self.lines
        if one is not None and two is not None:
            form = [_pair((getattr(one, k), getattr(two, k))) for k in _Line.__annotations__]
            before, after, strides, spread = form
            return Windows(
                self.layer, self.kind, (1, 1), strides, before, after, source, spread=spread
            )
        rows, columns = (tuple(map(int, axis)) for axis in self.places)
        more = len(rows) - self.size[0], len(columns) - self.size[1]
        one_to_one = (1, 1)
        return Windows(
            layer=self.layer,
            kind="rearrangement",
            kernel=one_to_one,
            strides=one_to_one,
            before=(0, 0),
            after=more,
            source=source,
            index=(rows, columns),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Pixels:
    """Where a value has its pixels.

    Attributes:
      source: the operation that made them.
      axes: of rows and columns.
      view: their arrangement, if it is another than the source's.
      repeated: axes along which all entries are copies of one.
      rolled: rows, columns and what lies behind them, where these are one axis, which both of
        `axes` are: the rows of a matrix product.
      taps: axes of the pixels within a patch, before they become channels.
    """

    source: int
    axes: tuple[int, int]
    view: _View | None = None
    repeated: frozenset[int] = frozenset()
    rolled: tuple[int, int, int] | None = None
    taps: frozenset[int] = frozenset()


class _Plain(NamedTuple):
    """A value without pixels: axes along which all entries are equal, and whether it is lost.

    A lost value does depend on the image, through what was not judged.
    """

    uniform: frozenset[int]
    lost: bool = False


_Value = _Pixels | _Plain


def _plain(shape: Sequence[int]) -> _Plain:
    return _Plain(frozenset(i for i, n in enumerate(shape) if n == 1))


def _constant(array: Any) -> _Plain:
    shape = np.shape(array)
    if math.prod(shape) > 2**20 or not hasattr(array, "dtype") or array.dtype.kind not in "biufc":
        return _plain(shape)
    a = np.asarray(array)
    return _Plain(frozenset(i for i in range(a.ndim) if (a == a.take([0], i)).all()))


# Operations that treat every pixel by itself, and all alike.
_POINTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor
    ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg
    nextafter not optimization_barrier or pow real reduce_precision rem round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
    square stop_gradient sub tan tanh xor
"""
# Those that summarise whole axes, in whatever order.
_REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or"
# Those that call a program.
_CALLS = """
    jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr checkpoint
    remat remat2
"""
# Those that work along some axes, and the parameter that says along which.
_ALONG = {
    "argmax": "axes",
    "argmin": "axes",
    "cumsum": "axis",
    "cumprod": "axis",
    "cummax": "axis",
    "cummin": "axis",
    "cumlogsumexp": "axis",
    "sort": "dimension",
    "split": "axis",
    "top_k": "axis",
}
_JAXPRS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold what is called


class _Reader:
    """Walks a jaxpr and follows the pixels from operation to operation."""

    def __init__(self) -> None:
        self.windows: list[Windows] = []
        self.joins: set[tuple[int, int]] = set()
        self.ends: set[tuple[int, bool]] = set()
        self.unjudged: list[str] = []
        self._made: dict[int, tuple[_View, int]] = {}
        self._codes: dict[Any, int] = {}

    def read(
        self, jaxpr: Any, given: Sequence[_Value], scope: str, consts: Sequence[Any] = ()
    ) -> list[_Value]:
        """Read one jaxpr: from what is known of its inputs to what is known of its results."""
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, given))
        known.update(zip(jaxpr.constvars, map(_constant, consts)))

        def value(v: Any) -> _Value:
            return known[v] if v in known else _plain(v.aval.shape)

        def of(v: Any) -> _Value:
            return _constant(v.val) if isinstance(v, core.Literal) else value(v)

        for eqn in jaxpr.eqns:
            results = self._apply(eqn, [of(v) for v in eqn.invars], scope)
            known.update(zip(eqn.outvars, results))
        return [of(v) for v in jaxpr.outvars]

    def _apply(self, eqn: Any, given: list[_Value], scope: str) -> list[_Value]:
        scope = f"{scope}/{eqn.source_info.name_stack}"
        name = eqn.primitive.name
        if name in _CALLS.split():
            called = next(eqn.params[k] for k in _JAXPRS if k in eqn.params)
            jaxpr, consts = getattr(called, "jaxpr", called), getattr(called, "consts", ())
            return self.read(jaxpr, given, scope, consts)
        pixels = [g for g in given if isinstance(g, _Pixels)]
        if name == "cond" and not isinstance(given[0], _Pixels):
            return self._branches(eqn, given[1:], scope)
        if not pixels:
            return _without_pixels(eqn, given)
        if any(0 in v.aval.shape for v in eqn.outvars):  # such as a padding of nothing
            return [_plain(v.aval.shape) for v in eqn.outvars]
        if any(isinstance(g, _Plain) and g.lost for g in given):
            return self._lost(pixels, eqn)
        if name == "scan":
            return self._scan(eqn, given, scope)
        results = self._follow(eqn, given, _layer(scope))
        if results is None:
            self.unjudged.append(f"{_layer(scope) or 'the network'} ({name})")
            return self._lost(pixels, eqn)
        return results

    def _lost(self, pixels: Sequence[_Value], eqn: Any) -> list[_Value]:
        """Results of an operation that nothing is known of, or that reads such a result."""
        for value in pixels:
            if isinstance(value, _Pixels):
                self.end(value, pooled=False)
        return [_Plain(frozenset(), lost=True) for _ in eqn.outvars]

    def _branches(self, eqn: Any, given: list[_Value], scope: str) -> list[_Value]:
        branches = [branch.jaxpr for branch in eqn.params["branches"]]
        if eqn.params.get("branches_platforms"):  # all compute the same: one that shows its windows
            return self.read(max(branches, key=_readable), given, scope)
        results: list[_Value] = []
        for values in zip(*(self.read(branch, given, scope) for branch in branches)):
            plain = [v for v in values if isinstance(v, _Plain)]
            if len(plain) == len(values):
                uniform = frozenset[int].intersection(*(v.uniform for v in plain))
                results.append(_Plain(uniform, any(v.lost for v in plain)))
            elif not plain and (both := self._join(values)):
                results.append(both)
            else:
                self.unjudged.append(f"{_layer(scope) or 'the network'} (cond)")
                results.append(self._lost(values, eqn)[0])
        return results

    def _scan(self, eqn: Any, given: list[_Value], scope: str) -> list[_Value]:
        """A loop whose carry keeps its form: its body, read once, tells of every round."""
        jaxpr = eqn.params["jaxpr"].jaxpr
        if "num_consts" in eqn.params:
            consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        else:  # JAX 0.12: trees of the constants, of the carry and of what is scanned
            consts, carried, _ = map(len, eqn.params["ft_in"].unpack())
        rows = consts + carried
        start = [self._settled(g) if isinstance(g, _Pixels) else g for g in given[:rows]]
        for i, v in enumerate(jaxpr.invars[consts:rows], consts):
            if isinstance(start[i], _Plain):  # it may not stay uniform
                start[i] = _plain(v.aval.shape)
        results = self.read(
            jaxpr, [*start, *(_plain(v.aval.shape) for v in jaxpr.invars[rows:])], scope
        )
        kept = all(
            isinstance(a, _Pixels) == isinstance(b, _Pixels)
            and (
                not isinstance(a, _Pixels)
                or not isinstance(b, _Pixels)
                or (a.axes, a.rolled) == (b.axes, b.rolled)
            )
            for a, b in zip(start[consts:], results)
        )
        stacked = [*given[rows:], *results[rows - consts :]]
        if not kept or any(isinstance(v, _Pixels) for v in stacked):
            self.unjudged.append(f"{_layer(scope) or 'the network'} (scan)")
            return self._lost([*given, *results], eqn)
        rest = [_plain(v.aval.shape) for v in eqn.outvars[rows - consts :]]
        return [*results[: rows - consts], *rest]

    def _follow(self, eqn: Any, given: list[_Value], layer: str) -> list[_Value] | None:
        """What is known of an operation's results; None if it cannot be judged."""
        name, p, shape = eqn.primitive.name, eqn.params, eqn.invars[0].aval.shape
        first = given[0]
        result: _Value | None = None
        if any(isinstance(g, _Pixels) and g.taps for g in given) and name not in (
            "reshape",
            "transpose",
            *_POINTWISE.split(),
        ):
            return None
        if name in _POINTWISE.split():
            if len(eqn.outvars) > 1:  # a barrier, which each passes as it is
                return given
            result = self._pointwise(eqn, given)
        elif name == "concatenate":
            result = self._concatenated(eqn, given, layer)
        elif name == "stack":
            result = self._stacked(p["axis"], given)
        elif name == "dot_general":
            given = [self._changed(g) if isinstance(g, _Pixels) else g for g in given]
            result = _contracted(eqn, given)
        elif name in _ALONG:
            along = np.atleast_1d(p[_ALONG[name]]).tolist()
            joined = self._join([self._changed(g) for g in given if isinstance(g, _Pixels)])
            if joined is not None and not set(along) & set(joined.axes):
                gone = set(along) if name.startswith("arg") else set()
                return [_without(joined, gone) for _ in eqn.outvars]
        elif not isinstance(first, _Pixels) or any(isinstance(g, _Pixels) for g in given[1:]):
            pass  # a filter, or a place, that depends on the image
        elif name == "conv_general_dilated" or name.startswith("reduce_window"):
            result = self._slid(eqn, first, layer)
        elif name in ("slice", "pad", "rev"):
            result = self._arranged(eqn, first, layer)
        elif name in _REDUCTIONS.split() or name == "squeeze":
            gone = set(p["dimensions"] if name == "squeeze" else p["axes"])
            if gone >= set(first.axes):
                self.end(first, pooled=True)
                return [_plain(eqn.outvars[0].aval.shape)]
            result = None if gone & set(first.axes) else _without(self._changed(first), gone)
        elif name == "transpose":
            result = _permuted(first, p["permutation"])
        elif name == "broadcast_in_dim":
            result = self._broadcast(eqn, first)
        elif name == "reshape":
            order = p["dimensions"] or range(len(shape))
            moved, before = _permuted(first, order), tuple(shape[a] for a in order)
            result = moved and self._reshaped(moved, before, eqn.outvars[0].aval.shape, layer)
        elif name == "dynamic_slice" and all(p["slice_sizes"][a] == shape[a] for a in first.axes):
            result = _on_axes(first, *first.axes)
        return None if result is None else [result]

    def end(self, value: _Pixels, pooled: bool) -> None:
        """Note that pixels leave the analysis, or that all of an image are summed up."""
        self.ends.add((self._settled(value).source, pooled))

    def _add(self, windows: Windows) -> int:
        self.windows.append(windows)
        return len(self.windows) - 1

    def _settled(self, value: _Pixels) -> _Pixels:
        """The same pixels; a view of some becomes an operation of its own."""
        view = value.view
        if view is None:
            return value
        if id(view) not in self._made:
            self._made[id(view)] = view, self._add(view.windows(value.source))
        return _Pixels(self._made[id(view)][1], value.axes)

    def _changed(self, value: _Pixels) -> _Pixels:
        """Pixels whose values change: constants among them are no longer what they were."""
        constants = value.view is not None and any((p < 0).any() for p in value.view.places)
        return self._settled(value) if constants else value

    def _join(self, values: Sequence[_Value]) -> _Pixels | None:
        """Values with pixels, combined pixel by pixel; None if their axes differ."""
        pixels = [v for v in values if isinstance(v, _Pixels)]
        if len({(v.axes, v.rolled, v.taps) for v in pixels}) > 1:
            return None
        if len({(v.source, id(v.view)) for v in pixels}) == 1:
            return dataclasses.replace(pixels[0], repeated=frozenset())
        sources = sorted({self._settled(v).source for v in pixels})
        self.joins.update(itertools.pairwise(sources))
        return dataclasses.replace(pixels[0], source=sources[0], view=None, repeated=frozenset())

    def _pointwise(self, eqn: Any, given: list[_Value]) -> _Value | None:
        shape, kept = eqn.outvars[0].aval.shape, []
        axes = next(g.axes for g in given if isinstance(g, _Pixels))
        for v, value in zip(eqn.invars, given):
            if not isinstance(value, _Pixels):
                if v.aval.ndim and not value.uniform.issuperset(axes):
                    return None  # a map that does not come from the image
            elif all(v.aval.shape[a] == 1 < shape[a] for a in value.axes):
                self.end(value, pooled=False)  # one number for all pixels
            else:
                kept.append(self._changed(value))
        return self._join(kept) if kept else _Plain(frozenset(axes))

    def _concatenated(self, eqn: Any, given: list[_Value], layer: str) -> _Pixels | None:
        axis = eqn.params["dimension"]
        parts = [(g, v.aval.shape) for v, g in zip(eqn.invars, given) if 0 not in v.aval.shape]
        pixels = [(g, shape) for g, shape in parts if isinstance(g, _Pixels)]
        first, shape = pixels[0]
        axes = first.axes
        if any(g.axes != axes for g, _ in pixels):
            return None
        if axis not in axes:
            plain = (g for g, _ in parts if isinstance(g, _Plain))
            known = all(g.uniform >= set(axes) for g in plain)
            return self._join([g for g, _ in pixels]) if known else None
        if len(pixels) < len(parts) or len({g.source for g, _ in pixels}) > 1 or first.rolled:
            return None
        along = axes.index(axis)
        views = [_index(g, shape) for g, shape in pixels]
        if any(not np.array_equal(v[1 - along], views[0][1 - along]) for v in views):
            return None
        index = list(views[0])
        index[along] = np.concatenate([v[along] for v in views])
        view = _View(layer, "rearrangement", _size(first, shape), (index[0], index[1]))
        return _Pixels(first.source, axes, view)

    def _stacked(self, axis: int, given: list[_Value]) -> _Pixels | None:
        """Values behind each other along a new axis."""
        joined = self._join(given)
        known = joined and all(isinstance(g, _Pixels) or g.uniform >= {*joined.axes} for g in given)
        if not joined or not known:
            return None
        return _on_axes(joined, *(a + (a >= axis) for a in joined.axes))

    def _arranged(self, eqn: Any, value: _Pixels, layer: str) -> _Pixels | None:
        """Slices, paddings and mirrorings: another view of the same pixels."""
        name, p, shape = eqn.primitive.name, eqn.params, eqn.invars[0].aval.shape
        if value.rolled:
            same = (
                name != "rev" and shape[value.axes[0]] == eqn.outvars[0].aval.shape[value.axes[0]]
            )
            return dataclasses.replace(value, repeated=frozenset()) if same else None
        index = list(_index(value, shape))
        lines = list(value.view.lines if value.view else (_Line(), _Line()))
        if name == "pad" and value.view is not None:
            lines = [None, None]  # a second constant may be another one
        changed = False
        for i, axis in enumerate(value.axes):
            n = shape[axis]
            if name == "slice":
                start, limit = p["start_indices"][axis], p["limit_indices"][axis]
                line = _Line(-start, limit - n, (p["strides"] or (1,) * len(shape))[axis])
                new = index[i][start : limit : line.stride]
            elif name == "pad":
                before, after, inner = map(int, p["padding_config"][axis])
                line = _Line(before, after, 1, inner + 1)
                constant = self._code(eqn.invars[1])
                new = np.full((n - 1) * (inner + 1) + 1 + max(before, 0) + max(after, 0), constant)
                new[max(before, 0) :][: (n - 1) * (inner + 1) + 1 : inner + 1] = index[i]
                new = new[max(-before, 0) : len(new) - max(-after, 0)]
            elif axis in p["dimensions"]:
                line, new = None, index[i][::-1]
            else:
                continue
            if line != _Line():
                changed, index[i], old = True, new, lines[i]
                lines[i] = None if line is None or old is None else old.then(line)
        if not changed:
            return dataclasses.replace(value, repeated=frozenset())
        kind = {"slice": "slice", "pad": "padding", "rev": "rearrangement"}[name]
        view = _View(layer, kind, _size(value, shape), (index[0], index[1]), (lines[0], lines[1]))
        return _Pixels(value.source, value.axes, view)

    def _code(self, v: Any) -> int:
        """A negative number for what is padded with, the same for the same literal."""
        key = float(v.val) if isinstance(v, core.Literal) else v
        return -1 - self._codes.setdefault(key, len(self._codes))

    def _slid(self, eqn: Any, value: _Pixels, layer: str) -> _Pixels | None:
        if value.rolled:
            return None
        p, operand = eqn.params, eqn.invars[0].aval.shape
        if eqn.primitive.name == "conv_general_dilated":
            dims = p["dimension_numbers"]
            if not set(value.axes) <= set(dims.lhs_spec[2:]):
                return None
            at = [dims.lhs_spec.index(a) - 2 for a in value.axes]
            axes = [dims.out_spec[2 + i] for i in at]
            taps = [eqn.invars[1].aval.shape[dims.rhs_spec[2 + i]] for i in at]
            kind, names = (
                "convolution",
                ("window_strides", "padding", "rhs_dilation", "lhs_dilation"),
            )
        else:
            at, axes = list(value.axes), list(value.axes)
            taps = [p["window_dimensions"][i] for i in at]
            kind, names = (
                "pooling",
                ("window_strides", "padding", "window_dilation", "base_dilation"),
            )
        strides, padding, dilation, spread = ([p[name][i] for i in at] for name in names)
        if len(eqn.outvars) > 1 or axes[0] > axes[1]:
            return None
        settled = self._settled(value)
        windows = Windows(
            layer=layer,
            kind=kind,
            kernel=_pair(d * (k - 1) + 1 for d, k in zip(dilation, taps)),
            strides=_pair(strides),
            before=_pair(ends[0] for ends in padding),
            after=_pair(ends[1] for ends in padding),
            source=settled.source,
            dilation=_pair(dilation),
            spread=_pair(spread),
        )
        found = [windows.count(operand[a], i) for i, a in enumerate(value.axes)]
        if found != [eqn.outvars[0].aval.shape[a] for a in axes]:
            return None
        return _Pixels(self._add(windows), _pair(axes))

    def _broadcast(self, eqn: Any, value: _Pixels) -> _Value | None:
        to, before = eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape
        after = eqn.outvars[0].aval.shape
        grown = [before[a] != after[to[a]] for a in value.axes]
        copies = {i for i in range(len(after)) if i not in to} | {
            to[a] for a in range(len(before)) if before[a] != after[to[a]]
        }
        if all(grown):  # one number for all pixels
            self.end(value, pooled=False)
            return _Plain(frozenset(copies))
        if any(grown):
            return None
        return dataclasses.replace(
            value, axes=_pair(to[a] for a in value.axes), repeated=frozenset(copies)
        )

    def _reshaped(
        self, value: _Pixels, before: tuple[int, ...], after: tuple[int, ...], layer: str
    ) -> _Value | None:
        lies = [math.prod(after[:i]) for i in range(len(after))]
        if value.rolled:
            return _unrolled(value, before, after, lies)
        index, places, stretched = list(_index(value, before)), [], False
        for i, a in enumerate(value.axes):
            n, ahead = before[a], math.prod(before[:a])
            times = before[a + 1] if a + 1 < len(before) and a + 1 in value.repeated else 1
            same = [j for j, m in enumerate(after) if (lies[j], m) == (ahead, n)]
            more = [j for j, m in enumerate(after) if (lies[j], m) == (ahead, n * times)]
            if times > 1 and more:  # copies behind each pixel become pixels
                index[i], stretched, same = np.repeat(index[i], times), True, more
            places.append(same)
        if not all(places):
            if all(before[a] == 1 for a in value.axes):  # one pixel, which is no place any more
                self.end(value, pooled=False)
                return _plain(after)
            return self._cut(value, before, after, layer) or self._rolled(value, before, after)
        # an axis of one pixel may be any of several such axes: the one that lies nearest
        columns = places[1][-1]
        rows = max((j for j in places[0] if j < columns), default=None)
        if rows is None:
            return None
        if not stretched:
            left = {(math.prod(before[:a]), before[a]) for a in value.taps}
            taps = frozenset(j for j, n in enumerate(after) if (lies[j], n) in left)
            return _on_axes(dataclasses.replace(value, taps=taps), rows, columns)
        view = _View(layer, "rearrangement", _size(value, before), (index[0], index[1]))
        return _Pixels(value.source, (rows, columns), view)

    def _cut(
        self, value: _Pixels, before: tuple[int, ...], after: tuple[int, ...], layer: str
    ) -> _Pixels | None:
        """Patches: each axis of pixels as one of patches and one of the pixels within."""
        axes, sides = [], []
        for a in value.axes:
            ahead = math.prod(before[:a])
            at = [
                j
                for j in range(len(after) - 1)
                if math.prod(after[:j]) == ahead and after[j] * after[j + 1] == before[a]
            ]
            if not at or value.taps:
                return None
            axes.append(at[-1])
            sides.append(after[at[-1] + 1])
        lines = value.view.lines if value.view else ()
        dropped = [line is not None and line == _Line(0, line.after) for line in lines]
        if lines and all(dropped) and all(-k < ln.after <= 0 for k, ln in zip(sides, lines) if ln):
            source = value.source  # what fills no patch is left out, as by a convolution
        else:
            source = self._settled(value).source
        none, both = (0, 0), _pair(sides)
        windows = Windows(layer, "patches", both, both, none, none, source)
        taps = frozenset(a + 1 for a in axes)
        return _Pixels(self._add(windows), _pair(axes), taps=taps)

    def _rolled(
        self, value: _Pixels, before: tuple[int, ...], after: tuple[int, ...]
    ) -> _Pixels | None:
        """Rows and columns as part of one axis."""
        rows, columns = value.axes
        if math.prod(before[rows + 1 : columns]) != 1 or value.taps:
            return None
        settled = self._settled(value)
        size = before[rows], before[columns]
        return _inside(settled, math.prod(before[:rows]), size, after)


def _inside(
    value: _Pixels, ahead: int, size: tuple[int, int], after: Sequence[int]
) -> _Pixels | None:
    """Pixels of which so many entries lie ahead, where one axis holds rows and columns whole."""
    area = math.prod(size)
    for j, n in enumerate(after):
        before = math.prod(after[:j])
        part = ahead // before if before else 0
        if part and ahead % before == 0 and n % (part * area) == 0:
            return _Pixels(value.source, (j, j), rolled=(*size, n // (part * area)))
    return None


def _unrolled(
    value: _Pixels, before: Sequence[int], after: Sequence[int], lies: Sequence[int]
) -> _Pixels | None:
    """Rows and columns on axes of their own again, or in another one."""
    assert value.rolled is not None
    rows, columns, behind = value.rolled
    axis = value.axes[0]
    ahead = math.prod(before[:axis]) * (before[axis] // (rows * columns * behind))
    one = [j for j, n in enumerate(after) if (lies[j], n) == (ahead, rows)]
    two = [j for j, n in enumerate(after) if (lies[j], n) == (ahead * rows, columns)]
    pairs = [(i, j) for i in one for j in two if i < j]
    if pairs:
        return _Pixels(value.source, pairs[-1])
    return _inside(value, ahead, (rows, columns), after)


def _pair(numbers: Iterable[Any]) -> tuple[int, int]:
    one, two = numbers
    return int(one), int(two)


def _index(value: _Pixels, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which pixel of its source stands at each place of a value, along rows and columns."""
    if value.view is not None:
        return value.view.places
    return np.arange(shape[value.axes[0]]), np.arange(shape[value.axes[1]])


def _size(value: _Pixels, shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a value's source."""
    if value.view is not None:
        return value.view.size
    return shape[value.axes[0]], shape[value.axes[1]]


def _on_axes(value: _Pixels, rows: int, columns: int) -> _Pixels | None:
    """The same pixels on other axes; None if rows and columns are exchanged."""
    if rows > columns:
        return None
    return dataclasses.replace(value, axes=(rows, columns), repeated=frozenset())


def _permuted(value: _Pixels, order: Sequence[int]) -> _Pixels | None:
    """The same pixels after a transposition."""
    to = [*order].index
    moved = dataclasses.replace(value, taps=frozenset(map(to, value.taps)))
    result = _on_axes(moved, *map(to, value.axes))
    return result and dataclasses.replace(result, repeated=frozenset(map(to, value.repeated)))


def _without(value: _Pixels, gone: set[int]) -> _Pixels:
    """The same pixels after the loss of other axes."""
    rows, columns = (a - sum(g < a for g in gone) for a in value.axes)
    return dataclasses.replace(value, axes=(rows, columns), repeated=frozenset())


def _contracted(eqn: Any, given: Sequence[_Value]) -> _Pixels | None:
    """A product over other axes than those of the pixels, with what has none."""
    contracted, batch = eqn.params["dimension_numbers"]
    pixels = [(i, g) for i, g in enumerate(given) if isinstance(g, _Pixels)]
    if len(pixels) > 1:
        return None
    [(side, value)] = pixels
    free = [
        [a for a in range(v.aval.ndim) if a not in (*contracted[i], *batch[i])]
        for i, v in enumerate(eqn.invars)
    ]
    if not set(value.axes) <= set(free[side]):
        return None
    first = len(batch[0]) + (len(free[0]) if side else 0)
    return _on_axes(value, *(first + free[side].index(a) for a in value.axes))


def _without_pixels(eqn: Any, given: Sequence[_Value]) -> list[_Value]:
    """What is known of results that do not come from the image."""
    plain = [g for g in given if isinstance(g, _Plain)]
    lost = any(g.lost for g in plain)
    name, p = eqn.primitive.name, eqn.params
    results: list[_Value] = []
    for v in eqn.outvars:
        shape = v.aval.shape
        uniform = set(_plain(shape).uniform)
        if name == "broadcast_in_dim":
            to, before = p["broadcast_dimensions"], eqn.invars[0].aval.shape
            uniform |= set(range(len(shape))) - set(to)
            uniform |= {to[a] for a in range(len(before)) if a in plain[0].uniform}
        elif name in _POINTWISE.split():
            same = [g for g, w in zip(plain, eqn.invars) if w.aval.ndim]
            uniform |= set(range(len(shape))).intersection(*(g.uniform for g in same))
        elif name == "transpose":
            uniform |= {p["permutation"].index(a) for a in plain[0].uniform}
        elif name == "iota":
            uniform |= set(range(len(shape))) - {p["dimension"]}
        elif name == "reshape" and len(plain[0].uniform) == eqn.invars[0].aval.ndim:
            uniform |= set(range(len(shape)))
        results.append(_Plain(frozenset(uniform), lost))
    return results


def _layer(stack: str) -> str:
    """`GResNet/GResNet.feature_map/stem` -> `stem`: modules below the root, by their own names."""
    parts = [part for part in stack.split("/") if part]
    other = (".", "(", "->")  # methods, transformations, einsum
    return "/".join(p for p in parts if not p[0].isupper() and not any(o in p for o in other))


def _readable(jaxpr: Any) -> tuple[bool, bool]:
    """Order of branches that compute the same: with windows that show, then without a loop."""
    return _shows_windows(jaxpr), not any(eqn.primitive.name == "scan" for eqn in jaxpr.eqns)


def _shows_windows(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "conv_general_dilated" or name.startswith("reduce_window"):
            return True
        inner = [eqn.params[k] for k in _JAXPRS if k in eqn.params]
        inner += eqn.params.get("branches", ())
        if any(_shows_windows(getattr(j, "jaxpr", j)) for j in inner):
            return True
    return False
