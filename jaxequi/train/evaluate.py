"""Passes over whole sets: what evaluations are told of them, and what a refit learns from one."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxequi.train import log
from jaxequi.train import mesh as meshes
from jaxequi.train.job import Job, Pass
from jaxequi.train.programs import REFIT_READS, Encoder, Programs, reads
from jaxequi.train.state import TrainState
from jaxequi.types import Features, PyTree

WORTH_SAYING = 2**28  # bytes of features that a user should know of before they fill the memory
LOOKS = 1000  # at most, of one refit
REFIT_KEY = 0x5EF17  # folded in, so that a refit draws other numbers than the step that follows it


def run_evaluations(
    job: Job, programs: Programs, state: TrainState, say: Callable[[str], None] = print
) -> tuple[dict[str, float], dict[str, Features]]:
    """Encode each set once, and measure every evaluation on the features that it reads.

    Host memory: the features that are read, in the dtype of the network, and a few batches of
    images. Measured, ResNet-10 of width 64 on images of 16 pixels in batches of 250 (two shared
    CPU cores, 2026-11-27): a pass over 20,000 of them added 175 MiB, 39 MiB of which are the
    features; a pass over 5,000 added 123 MiB, with 10 MiB of features.

    Returns:
      `<set>/<evaluation>/<metric>`, and the features of every set.
    """
    features = {
        name: encode(job, job.sets[name], programs.encoders[name], keep, state, say, name)
        for name, keep in reads(job).items()
    }
    metrics: dict[str, float] = {}
    for evaluation in job.evaluations:
        given = {of: {f: features[of][f] for f in evaluation.features} for of in evaluation.sets}
        found = evaluation.evaluate(given, state.params, state.extra)
        metrics |= {
            f"{evaluation.sets[-1]}/{evaluation.name}/{k}": float(v) for k, v in found.items()
        }
    return metrics, features


def encode(
    job: Job,
    a_pass: Pass,
    encoder: Encoder,
    keep: Sequence[str],
    state: TrainState,
    say: Callable[[str], None] = print,
    what: str = "the training set",
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """Encode a set and bring the features named to the host, padding left out.

    Args:
      key: of what `a_pass.augment` draws; batch t draws by `fold_in(key, t)`.

    Returns:
      Numpy arrays [n, ...] by the names of `keep`, n the number of examples, in storage order.
    """
    key = jax.random.key(0) if key is None else key
    # Room for all at once, and before the first batch: joined at the end they would need twice it.
    kept: PyTree = jax.tree.map(
        lambda of_batch: np.empty((a_pass.examples, *of_batch.shape[1:]), of_batch.dtype),
        {name: encoder.lowered.out_info[name] for name in keep},
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    if size > WORTH_SAYING:
        say(f"features of {what}: {a_pass.examples} examples, {log.size(size)}")
    filled = 0
    with a_pass.batches() as batches:
        for number, batch in enumerate(batches):
            placed = meshes.to_global(job.mesh, batch, a_pass.batch_size)
            found = encoder(state.params, state.extra, placed, jax.random.fold_in(key, number))
            found = jax.device_get({name: found[name] for name in (*keep, "mask")})
            mask = np.asarray(found.pop("mask"))
            stop = filled + int(mask.sum())
            for room, values in zip(jax.tree.leaves(kept), jax.tree.leaves(found), strict=True):
                room[filled:stop] = values[mask]
            filled = stop
    # Examples that could not be read have no features.
    return jax.tree.map(lambda room: room[:filled], kept)


def refit_is_due(job: Job, step: int) -> bool:
    """Whether the method's refit comes before the update that follows `step` of them."""
    if job.method.refit is None or step >= job.total_steps:
        return False
    every = job.method.refit.every_epochs * job.steps_per_epoch
    return step % every == 0 if every else step == 0


def refit(
    job: Job,
    programs: Programs,
    state: TrainState,
    step: int,
    say: Callable[[str], None] = print,
) -> TrainState:
    """Give a state what the method's refit makes of the training set's features.

    A function of the state and `step` alone.

    Raises:
      AssertionError: the method gave back another structure, shape or dtype.
    """
    work, a_pass, encoder = job.method.refit, job.refit_pass, programs.refit
    assert work is not None and a_pass is not None and encoder is not None  # noqa: PT018
    key = jax.random.fold_in(jax.random.fold_in(state.key, REFIT_KEY), step)
    keys = jax.random.split(key)
    keep = (*work.features, *REFIT_READS)

    def look(number: int, rows: np.ndarray | None = None) -> dict[str, Any]:
        place = step * LOOKS + number  # no two passes of a run draw the same on the host
        shown = dataclasses.replace(
            a_pass,
            batches=lambda: a_pass.batches(place, rows),
            examples=a_pass.examples if rows is None else len(rows),
        )
        key = jax.random.fold_in(keys[0], number)
        return encode(job, shown, encoder, keep, state, say, key=key)

    extra = work.fn(state.extra, look if work.looks else look(0), keys[1])
    before, after = (
        [(jax.tree_util.keystr(path), np.shape(leaf), np.dtype(leaf.dtype)) for path, leaf in
         jax.tree_util.tree_leaves_with_path(tree)]
        for tree in (state.extra, extra)
    )  # fmt: skip
    changed = collections.Counter(before) - collections.Counter(after)
    assert before == after, f"a refit must keep structure, shapes and dtypes; it changed {changed}"
    return state.replace(extra=jax.device_put(extra, programs.shardings.extra))


def about(job: Job) -> Mapping[str, np.ndarray]:
    """What a reader of saved arrays needs to know: class names, widths of the features' parts."""
    parts = {f"parts/{name}": np.asarray(widths) for name, widths in job.method.parts.items()}
    return {"class_names": np.asarray(job.class_names), **parts}
