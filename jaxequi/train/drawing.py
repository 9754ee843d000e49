"""Programs that draw the parameters of a network: long to compile, and run once.

A network of a hundred layers is a hundred random generators, most of which differ in their key and
scale alone. `in_loops` draws those that are alike in one loop, and leaves every number as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from jaxequi.types import Array, PyTree

Makers = dict[Any, tuple[int, Any]]
"""Of each variable of a program the place of the equation that makes it, and the equation."""

MUCH = 2_000_000
"""Numbers from which on drawing them takes longer without an optimizer than that takes."""


def program(
    init: Callable[[Array], PyTree], key: Array, platform: str, **jit_options: Any
) -> jax.stages.Lowered:
    """Trace the program that draws a tree of arrays; its `compile` makes it a function of the key.

    On a CPU LLVM's optimizer takes longer than it can save, but for much that is drawn.

    Args:
      init: a function of a key.
      key: the key.
      platform: where it runs.
      jit_options: of `jax.jit`.
    """
    much = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, key))) > MUCH
    if platform == "cpu":
        jit_options["compiler_options"] = {"xla_backend_optimization_level": int(much)}
    return jax.jit(in_loops(init), **jit_options).lower(key)


def draw(init: Callable[[Array], PyTree], key: Array) -> PyTree:
    """Draw a tree on the default device."""
    return program(init, key, jax.default_backend()).compile()(key)


def in_loops(init: Callable[[Array], PyTree]) -> Callable[[Array], PyTree]:
    """The same function of a key, with one loop for all leaves that are computed alike.

    Leaves are alike if they differ only in constants that enter: the number that a layer folds into
    the key, its scale.
    """

    def grouped(key: Array) -> PyTree:
        closed, shapes = jax.make_jaxpr(init, return_shape=True)(key)
        wanted = [True] * len(closed.jaxpr.outvars)
        jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, wanted, instantiate=True)
        known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        makers = {v: (i, eqn) for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
        [key_var] = jaxpr.invars
        groups: dict[Hashable, list[_Leaf]] = {}
        for var in dict.fromkeys(v for v in jaxpr.outvars if not isinstance(v, core.Literal)):
            leaf = _Leaf(var, key_var, makers, known)
            groups.setdefault(leaf.kind, []).append(leaf)
        values: dict[Any, Any] = {}
        for alike in groups.values():
            if len(alike) == 1 or not alike[0].draws:
                found: Any = [leaf.evaluate(key, leaf.constants) for leaf in alike]
            else:
                columns = zip(*(leaf.constants for leaf in alike), strict=True)
                stacks = [jnp.stack(column) for column in columns]
                found = jax.lax.map(functools.partial(alike[0].evaluate, key), stacks)
            values |= {leaf.var: found[i] for i, leaf in enumerate(alike)}
        leaves, tree = jax.tree.flatten(shapes)
        flat = [
            jnp.asarray(v.val, leaf.dtype) if isinstance(v, core.Literal) else values[v]
            for v, leaf in zip(jaxpr.outvars, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, flat)

    return grouped


class _Leaf:
    """How a leaf is computed of the key and of constants.

    Attributes:
      var: the leaf's variable.
      constants: arrays, in the order in which they enter.
      draws: whether the key enters.
      kind: the same for leaves that differ in the values of their constants only.
    """

    def __init__(self, var: Any, key_var: Any, makers: Makers, known: dict[Any, Any]):
        self.var, self.draws = var, False
        self.constants: list[Any] = []
        self._steps: list[tuple[Any, list[tuple[str, int]]]] = []
        places = {key_var: ("key", 0)}
        kind: list[Hashable] = []

        def place(one: Any) -> tuple[str, int]:
            """Where `evaluate` finds a variable."""
            self.draws |= one is key_var
            if isinstance(one, core.Literal) or one in known:
                literal = isinstance(one, core.Literal)
                value = np.asarray(one.val, one.aval.dtype) if literal else known[one]
                self.constants.append(value)
                kind.append(str(one.aval))
                return "constants", len(self.constants) - 1
            return places[one]

        count = 0
        for eqn in _leading_to(var, makers):
            inputs = [place(v) for v in eqn.invars]
            self._steps.append((eqn, inputs))
            kind.append((eqn.primitive, str(eqn.params), tuple(inputs)))
            places.update((v, ("made", count + i)) for i, v in enumerate(eqn.outvars))
            count += len(eqn.outvars)
        self._end = place(var)
        self.kind = (*kind, self._end)

    def evaluate(self, key: Array, constants: Sequence[Any]) -> Array:
        """Compute the leaf."""
        found: dict[str, list[Any]] = {"key": [key], "constants": list(constants), "made": []}
        for eqn, inputs in self._steps:
            made = eqn.primitive.bind(*(found[kind][i] for kind, i in inputs), **eqn.params)
            found["made"] += made if eqn.primitive.multiple_results else [made]
        kind, i = self._end
        return found[kind][i]


def _leading_to(var: Any, makers: Makers) -> list[Any]:
    """Equations of which a variable is computed, in order."""
    found, ahead = {}, [var]
    while ahead:
        one = ahead.pop()
        if isinstance(one, core.Literal) or one not in makers:
            continue
        place, eqn = makers[one]
        if place not in found:
            found[place] = eqn
            ahead += eqn.invars
    return [found[place] for place in sorted(found)]
