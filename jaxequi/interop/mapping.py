"""Torch state dicts to our trees of variables and back, numpy to numpy, every key accounted for.

A table says for a leaf of ours, by its path, what torch calls it and how the two arrays differ. It
is a plain function, so a table is written as one regular expression or as a hundred lines, and both
directions come from it. Tables of models are in `interop/formats/`. What files have that no network
of ours can hold is named as well, with the reason (`Ignored`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from jaxequi.errors import Refusal
from jaxequi.names import unknown
from jaxequi.types import PyTree


class Layout(NamedTuple):
    """How one array is stored on both sides: two functions that undo each other."""

    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a: a, lambda a: a)
# torch: out, in, then space (OI, OIHW); ours: space, then in, out (IO, HWIO)
KERNEL = Layout(
    lambda a: np.moveaxis(a, (0, 1), (-1, -2)), lambda a: np.moveaxis(a, (-1, -2), (0, 1))
)

Table = Callable[[str], tuple[str, Layout]]  # "params/conv1/kernel" -> ("conv1.weight", KERNEL)

_LEAVES = {
    "kernel": ("weight", KERNEL),
    "bias": ("bias", SAME),
    "scale": ("weight", SAME),
    "mean": ("running_mean", SAME),
    "var": ("running_var", SAME),
}
_COUNTER = "num_batches_tracked"
Ignored = Mapping[str, str]  # pattern over torch's names, matched from their start -> the reason
COUNTERS: Ignored = {
    rf"(.*\.)?{_COUNTER}$": "torch's BatchNorm counts batches, and reads the count only where it "
    "has no momentum"
}


def by_module(rename: Callable[[str], str]) -> Table:
    """The table of a model made of Dense, Conv and BatchNorm, given how its modules are called.

    `rename` gets the path of a module without its collection ("layer1_0/conv1") and returns torch's
    name of it ("layer1.0.conv1").
    """

    def table(path: str) -> tuple[str, Layout]:
        _, *modules, leaf = path.split("/")
        if leaf not in _LEAVES:
            raise unknown(f"kind of leaf in {path}", leaf, _LEAVES)
        name, layout = _LEAVES[leaf]
        module = rename("/".join(modules))
        return f"{module}.{name}" if module else name, layout

    return table


def _named(tree: PyTree, table: Table) -> dict[str, tuple[str, Layout]]:
    """Torch name -> (our path, layout); two leaves under one name would lose one of them."""
    named: dict[str, tuple[str, Layout]] = {}
    for path in traverse_util.flatten_dict(tree, sep="/"):
        name, layout = table(path)
        if name in named:
            raise Refusal(f"the table gives {path} and {named[name][0]} the same name {name!r}.")
        named[name] = path, layout
    return named


def passed_over(state: Mapping[str, np.ndarray], ignored: Ignored) -> tuple[str, ...]:
    """Tell what of a state dict a table of ignored names covers: a line for each of its reasons."""
    lines = []
    for pattern, reason in ignored.items():
        found = [name for name in state if re.match(pattern, name)]
        if found:
            lines.append(f"{len(found)} such as {found[0]}: {reason}")
    return tuple(lines)


def from_torch(
    state: Mapping[str, np.ndarray],
    template: PyTree,
    table: Table,
    ignored: Ignored = COUNTERS,
) -> PyTree:
    """Carry a torch state dict over into a tree like `template`.

    Args:
      state: arrays under torch's names, prefixes such as "module." already removed.
      template: nested dict of arrays or `jax.ShapeDtypeStruct`, collections on top, for example
        `jax.eval_shape(model.init, ...)`.
      table: for each path of the template torch's name and the layout.
      ignored: names that may be in the state dict though the table has no use for them.

    Returns:
      A nested dict with the template's paths, shapes and dtypes; numpy arrays.

    Raises:
      ValueError: a name that only one side has, or a shape that differs; lists all of them, with
        "-" what the model needs and "+" what the state dict has instead.
    """
    leaves = traverse_util.flatten_dict(template, sep="/")
    named = _named(template, table)
    unused = [k for k in state if k not in named and not any(re.match(p, k) for p in ignored)]
    tree, missing, surplus = {}, [], [f"+ {k} {np.shape(state[k])}" for k in unused]
    for name, (path, layout) in named.items():
        shape, dtype = tuple(leaves[path].shape), leaves[path].dtype
        if name not in state:
            missing.append(f"- {name} (for {path} {shape})")
            continue
        given = np.asarray(state[name])
        array = _laid_out(given, layout)
        if array is None or array.shape != shape:
            became = "cannot be laid out so" if array is None else f"would be {array.shape}"
            missing.append(f"- {name} (for {path} {shape})")
            surplus.append(f"+ {name} {given.shape} (that {became})")
            continue
        tree[path] = _own(array, dtype)
    if missing or surplus:
        raise Refusal(
            f"the state dict does not fit the model: {len(missing)} missing or of another shape "
            f"(-), {len(surplus)} left over (+)\n" + "\n".join(missing + surplus)
        )
    return traverse_util.unflatten_dict(tree, sep="/")


def _own(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.array(array, dtype, order="C")


def _laid_out(array: np.ndarray, layout: Layout) -> np.ndarray | None:
    """The array as ours; None if it has too few axes for that, or channels that do not divide."""
    try:
        return layout.from_torch(array)
    except (ValueError, IndexError):
        return None


def to_torch(tree: PyTree, table: Table) -> dict[str, np.ndarray]:
    """Write a tree of variables as a torch state dict, the inverse of `from_torch`.

    Beside each `running_mean` stands the counter that torch's strict loading asks for, as zero.

    Raises:
      ValueError: the table gives two leaves one name.
    """
    leaves = traverse_util.flatten_dict(tree, sep="/")
    state: dict[str, np.ndarray] = {}
    for name, (path, layout) in _named(tree, table).items():
        state[name] = np.array(layout.to_torch(np.asarray(leaves[path])), order="C")
        module, _, leaf = name.rpartition(".")
        if leaf == "running_mean":
            state[f"{module}.{_COUNTER}" if module else _COUNTER] = np.zeros((), np.int64)
    return state
