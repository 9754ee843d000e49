"""The vocabulary that every room of the house shares: batches, methods, sources.

A batch is a flat mapping. Its keys are fixed:

    views    u8[B, V, H, W, 3] from the host; f32 after `augment`, which ends by normalising
    label    i32[B]            class of the example
    target   f32[B, C]         shares of the classes, where a mixture of examples has several
    index    i32[B]            row of the example in its source
    mask     bool[B]           False on the padding of an evaluation batch
    latent   f32[B, V, L]      parameters of the rendered scene, one row a view (3DIEBench: L = 7)
    aug      {op: f32[B, V, k]} what the augmentations drew

B is always the *global* batch size: nothing above `train/mesh.py` knows how many devices there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Any]
Metrics = dict[str, Array]
Features = dict[str, Any]
Record = dict[str, Any]


class Progress(NamedTuple):
    """Where a run stands: traced scalars, so that a schedule never recompiles."""

    step: Array  # i32[], updates done so far
    epoch: Array  # f32[], passes over the training set so far
    fraction: Array  # f32[], 0 at the first step, 1 at the end


OWN = "own"
"""Where in `extra` a method keeps what is its own: queue, target network, table, frozen network.
All else in `extra` are flax collections under their own names."""


def collections(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The flax collections of an `extra`, such as {"batch_stats": ...}: without `OWN`."""
    return {name: tree for name, tree in extra.items() if name != OWN}


class Output(NamedTuple):
    """What a loss returns beside its scalar."""

    extra: PyTree  # the method's new state: flax collections, and `OWN`
    metrics: Metrics  # scalars to log
    features: Features  # "representation" f32[B, V, R], "embedding" f32[B, V, E]


def _keep(params: PyTree, extra: PyTree, progress: Progress) -> PyTree:
    del params, progress
    return extra


class Refit(NamedTuple):
    """Work on the host, before the first step of every k-th epoch, over the whole training set.

    What it makes is a function of the state at that step, so that a run which goes on from a
    checkpoint before it makes the same again.

    Attributes:
      every_epochs: k; 0 is once, before the first step of the run.
      fn: `(extra, features, key) -> extra`, of the same structure, shapes and dtypes. `features`
        are numpy arrays of the training set in storage order: those named, `label` and `index`.
      features: names of `Method.encode`, each [n, V, ...].
      augmented: show the examples as training does, drawn anew each time; else as evaluation does.
      looks: `fn` looks as often as it likes: `features` is then a `Look`.
      change: `(key, batch) -> batch`, done to an augmented batch before it is encoded: mixing. What
        it adds to the batch may be named in `features`.
      batch_size: how many examples are seen at once, where that matters; by default as the set is.
    """

    every_epochs: int
    fn: Callable[[PyTree, Any, Array], PyTree]
    features: Sequence[str] = ("representation",)
    augmented: bool = False
    looks: bool = False
    change: Callable[[Array, Batch], Batch] | None = None
    batch_size: int | None = None


class Look(Protocol):
    """A pass over the training set for a refit that makes several."""

    def __call__(self, number: int, rows: np.ndarray | None = None) -> Mapping[str, Any]:
        """Features of the examples `rows` in that order, by default of all in storage order.

        Args:
          number: of the pass; each number draws anew.
        """
        ...


class Relation(NamedTuple):
    """What carries view 1 to view 2, as numbers; those of rendered scenes: `groups.relation`."""

    columns: Sequence[str]  # the names of the L numbers
    between: Callable[[Batch], Array]  # batch -> z f32[B, L]


class Predictor(NamedTuple):
    """A predictor of embeddings with its values, as evaluations ask it.

    Attributes:
      predict: (embedding f32[B, E], z f32[B, L]) -> f32[B, E]. A `jax.tree_util.Partial` over its
        parameters hands them to a compiled program as arguments; a closure makes them constants.
      relation: the z that it takes.
    """

    predict: Callable[[Array, Array], Array]
    relation: Relation


@dataclasses.dataclass(frozen=True)
class Method:
    """A learning method: a value made of pure functions.

    Attributes:
      init: `(key, batch) -> (params, extra)`. `params` receive gradients, `extra` is the rest:
        flax collections under their own names, everything else under `OWN`, which is never handed
        to flax. A target network is `extra["own"]["target"]`: the collections of a network like
        the online one.
      loss: `(params, extra, batch, key, progress) -> (scalar, Output)`, on the whole global batch.
      encode: `(params, extra, views f32[B, V, H, W, 3]) -> {"representation": f32[B, V, R],
        "embedding": f32[B, V, E], ...}` in evaluation mode.
      update: `(params, extra, progress) -> extra`, run after the optimizer with the progress after
        the step: moving averages.
      predict: `(params, extra, embedding f32[B, E], z f32[B, L]) -> f32[B, E]`; only methods that
        model a transformation have it. It acts on what `encode` gives as "predictable".
      relation: the z that `predict` takes.
      parts: for features of which the method says it the widths (invariant, equivariant) of the
        last axis, one of which may be 0; an invariant part always comes first.
      mean_over_examples: the loss is a mean of terms that each see one example alone, so that the
        mean of gradients over parts of a batch is the gradient of the batch.
      refit: host-side work between epochs, or None.
    """

    init: Callable[[Array, Batch], tuple[PyTree, PyTree]]
    loss: Callable[[PyTree, PyTree, Batch, Array, Progress], tuple[Array, Output]]
    encode: Callable[[PyTree, PyTree, Array], Features]
    update: Callable[[PyTree, PyTree, Progress], PyTree] = _keep
    predict: Callable[[PyTree, PyTree, Array, Array], Array] | None = None
    relation: Relation | None = None
    parts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    mean_over_examples: bool = False
    refit: Refit | None = None


class Source(Protocol):
    """Random access to the examples of one split.

    Attributes:
      class_names: names of the classes, in the order of their labels.
      num_views: images stored of one example: 50 in 3DIEBench, 1 in an ordinary image set.
    """

    class_names: Sequence[str]
    num_views: int

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples `rows` (N of them), of each the stored images `views` (i64[N, V]).

        Returns N records: `image` a list of V images (u8[H, W, 3], or the bytes of an encoded
        file), `label` int, and `latent` f32[V, L] where the source has one. Thread-safe.
        """
        ...
