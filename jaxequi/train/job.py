"""A run, as plain objects: what the loop needs to know, and nothing of any config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from jax.sharding import Mesh

from jaxequi.train import mesh as meshes
from jaxequi.train.optim import Optimizer
from jaxequi.train.state import Start
from jaxequi.train.step import Augment
from jaxequi.train.trackers import Make
from jaxequi.types import Batch, Features, Method, PyTree

Batches = Callable[..., AbstractContextManager[Iterator[Batch]]]


@dataclasses.dataclass(frozen=True)
class Pass:
    """A pass over a set: each example once, in storage order.

    Attributes:
      batches: `() -> context of host batches`, with `mask`. A refit gives a number, on which hangs
        what the host draws, and the examples in their order, or None for all as stored.
      batch_size: global size of those batches.
      examples: how many there are.
      shapes: `() -> shapes and dtypes of a global batch`; reads one example at most.
      augment: what is done to the images on the device.
    """

    batches: Batches
    batch_size: int
    examples: int
    shapes: Callable[[], Batch]
    augment: Augment


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on the features of some sets; logged as `<last set>/<name>/<metric>`.

    Attributes:
      name: of the evaluation.
      sets: names of the sets that it reads; it judges the last one.
      features: what it reads of each: names of `Method.encode`, or of what a batch holds.
      evaluate: `({set: {feature: array[n, ...]}}, params, extra) -> metrics`.
    """

    name: str
    sets: Sequence[str]
    features: Sequence[str]
    evaluate: Callable[[Mapping[str, Features], PyTree, PyTree], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, as plain objects; `experiment.build` makes one of a config.

    Attributes:
      batches: `(start, stop) -> context of host batches` of the steps start .. stop - 1.
      shapes: `() -> shapes and dtypes of a global training batch`; reads one example at most.
      config: what is saved beside the state, and compared when a run goes on.
      sets: what evaluations read, by name.
      evaluations: what is measured on them.
      refit_pass: over the training set, for a method that has a `refit`.
      start: a trained network that the run begins with.
      preflight: what is to be said of the shapes of a batch before anything is compiled; it raises
        ValueError to refuse the run.
      free_fields: dotted config fields that may change between two starts of a run, because the
        result does not depend on them.
      changed: dotted config fields that the command line changed; shown in colour.
      trackers: where the metrics go beside the run's own files, by name.
    """

    method: Method
    optimizer: Optimizer
    augment: Augment
    mesh: Mesh
    batches: Batches
    shapes: Callable[[], Batch]
    batch_size: int
    examples: int
    steps_per_epoch: int
    total_steps: int
    config: dict[str, Any]
    class_names: Sequence[str] = ()
    sets: Mapping[str, Pass] = dataclasses.field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    refit_pass: Pass | None = None
    start: Start | None = None
    sharding_rules: meshes.Rules = ()
    seed: int = 0
    accumulate: int = 1
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 1000
    keep_checkpoints: int = 2
    best: str | None = None
    best_mode: str = "max"
    show: Sequence[str] = ("loss",)
    profile_steps: tuple[int, int] | None = None
    free_fields: Sequence[str] = ()
    preflight: Callable[[Batch], str] | None = None
    changed: Sequence[str] = ()
    trackers: Mapping[str, Make] = dataclasses.field(default_factory=dict)
