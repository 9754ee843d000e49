"""Host work between epochs: when, on what, and exactly the same after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxequi.train import evaluate, log, loop, optim
from jaxequi.train import mesh as meshes
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.train.job import Job, Pass
from jaxequi.train.programs import lower_job
from jaxequi.types import OWN, Method, Output, Refit

EXAMPLES, BATCH, PASS, EPOCH, STEPS = 22, 8, 16, 2, 6


def data():
    random = np.random.default_rng(0)
    return {
        "views": random.normal(size=(EXAMPLES, 1, 3)).astype(np.float32),
        "label": random.integers(0, 5, EXAMPLES).astype(np.int32),
        "index": np.arange(EXAMPLES, dtype=np.int32),
    }


def rows(at, mask=None):
    batch = {name: array[at] for name, array in data().items()}
    return batch | {"mask": np.ones(len(at), bool) if mask is None else mask}


def drawn(step):
    return rows(np.random.default_rng((1, step)).permutation(EXAMPLES)[:BATCH])


def whole():
    """The training set in storage order, padded with its first example."""
    for start in range(0, EXAMPLES, PASS):
        at = np.arange(start, start + PASS)
        yield rows(np.where(at < EXAMPLES, at, 0), at < EXAMPLES)


def noisy(key, batch):
    """Views with noise of the key: what a training augmentation is to a refit."""
    return {**batch, "views": batch["views"] + jax.random.normal(key, batch["views"].shape)}


def as_it_is(key, batch):
    return batch


def shapes(size):
    return {
        name: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for name, a in drawn(0).items()
    }


def a_job(every_epochs=1, augmented=False, seen=None, **changes):
    """Fit w to a table that a refit makes of the features and a key."""

    def fn(extra, features, key):
        if seen is not None:
            seen.append((features, key))
        drawn = np.asarray(jax.random.normal(key, (3,)))
        table = features["representation"].mean((0, 1)) + 0.1 * drawn
        refits = np.asarray(extra[OWN]["refits"]) + np.int32(1)
        return {OWN: {"table": table.astype(np.float32), "refits": refits}}

    def init(key, batch):
        extra = {OWN: {"table": jnp.zeros(3), "refits": jnp.zeros((), jnp.int32)}}
        return {"w": jax.random.normal(key, (3,))}, extra

    def loss(params, extra, batch, key, progress):
        own = extra[OWN]
        guess = (batch["views"][:, 0] @ params["w"]) - batch["label"]
        value = jnp.mean(guess**2) + jnp.sum((params["w"] - own["table"]) ** 2)
        metrics = {"refits": own["refits"] * 1.0, "table": own["table"].sum()}
        return value, Output(extra, metrics, {})

    def encode(params, extra, views):
        return {"representation": views * params["w"]}

    method = Method(init, loss, encode, refit=Refit(every_epochs, fn, augmented=augmented))
    defaults = {
        "method": method,
        "optimizer": optim.Optimizer(*optax.sgd(0.05)),
        "augment": as_it_is,
        "mesh": meshes.make_mesh(8, 1),
        "batches": lambda start, stop: contextlib.nullcontext(map(drawn, range(start, stop))),
        "shapes": lambda: shapes(BATCH),
        "batch_size": BATCH,
        "examples": EXAMPLES,
        "steps_per_epoch": EPOCH,
        "total_steps": STEPS,
        "config": {},
        "refit_pass": Pass(
            lambda *unused: contextlib.nullcontext(whole()),
            PASS,
            EXAMPLES,
            lambda: shapes(PASS),
            noisy if augmented else as_it_is,
        ),
        "log_every": 1,
        "save_every": 100,
    }
    return Job(**(defaults | changes))


def final(job, workdir):
    programs = lower_job(job)
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        return checkpoints.restore(STEPS, programs.shapes, programs.shardings)[0]


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.extra))]


@pytest.mark.parametrize(
    ("every_epochs", "refits"), [(1, [1, 1, 2, 2, 3, 3]), (2, [1, 1, 1, 1, 2, 2]), (0, [1] * 6)]
)
def test_before_the_first_step_of_every_kth_epoch(tmp_path, every_epochs, refits):
    assert loop.run(a_job(every_epochs), tmp_path) == loop.FINISHED
    assert [row["refits"] for row in log.read_metrics(tmp_path)] == refits


def test_it_reads_the_whole_training_set_in_storage_order(tmp_path):
    seen = []
    job = a_job(seen=seen)
    assert loop.run(job, tmp_path) == loop.FINISHED
    assert len(seen) == 3
    first, last = seen[0][0], seen[-1][0]
    for features in (first, last):
        assert set(features) == {"representation", "label", "index"}
        np.testing.assert_array_equal(features["index"], np.arange(EXAMPLES))
        np.testing.assert_array_equal(features["label"], data()["label"])
    w = lower_job(job).initialise().params["w"]
    np.testing.assert_allclose(first["representation"], data()["views"] * w, rtol=1e-6)
    assert np.abs(first["representation"] - last["representation"]).max() > 1e-3
    assert len({jax.random.key_data(key).tobytes() for _, key in seen}) == 3


def interrupted_after(step):
    @contextlib.contextmanager
    def batches(start, stop):
        def produce():
            for t in range(start, stop):
                if t == step - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield drawn(t)

        yield produce()

    return batches


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("at", [2, 3])
def test_an_interrupted_run_is_the_unbroken_one_bit_for_bit(tmp_path, augmented, at):
    """A refit lies right behind step 2; behind step 3 what the last one made must be there."""
    whole, broken = (
        a_job(augmented=augmented),
        a_job(augmented=augmented, batches=interrupted_after(at)),
    )
    assert loop.run(whole, tmp_path / "whole") == loop.FINISHED
    assert loop.run(broken, tmp_path / "broken") == loop.INTERRUPTED
    assert loop.run(whole, tmp_path / "broken") == loop.FINISHED
    names = ("step", "refits", "table", "loss")
    one, other = (
        [[row[name] for name in names] for row in log.read_metrics(tmp_path / run)]
        for run in ("whole", "broken")
    )
    assert one == other
    assert bits(final(whole, tmp_path / "whole")) == bits(final(whole, tmp_path / "broken"))


def test_augmented_examples_are_drawn_anew_by_the_state_and_the_step():
    seen = []
    job = a_job(augmented=True, seen=seen)
    programs = lower_job(job).compiled()
    state = programs.initialise()
    for step in (0, 0, 2):
        evaluate.refit(job, programs, state, step)
    first, again, later = (features["representation"] for features, _ in seen)
    np.testing.assert_array_equal(first, again)
    drawn = later - first
    assert np.abs(drawn).min() > 0
    # Noise of both, and none of it drawn for two batches of the pass alike.
    noise = first / np.asarray(state.params["w"]) - data()["views"]
    assert np.std(noise) == pytest.approx(1, abs=0.2)
    assert np.abs(noise[: EXAMPLES - PASS] - noise[PASS:]).min() > 1e-4
    other = state.replace(key=jax.random.key(99))
    evaluate.refit(job, programs, other, 0)
    assert np.abs(seen[-1][0]["representation"] - first).min() > 0


@pytest.mark.parametrize("augmented", [False, True])
def test_one_device_equals_eight(tmp_path, augmented):
    states = []
    for devices in (1, 8):
        job = a_job(augmented=augmented, mesh=meshes.make_mesh(devices, 1))
        assert loop.run(job, tmp_path / str(devices)) == loop.FINISHED
        states.append(final(job, tmp_path / str(devices)))
    one, eight = (jax.tree.leaves((s.params, s.extra)) for s in states)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {OWN: {"table": np.zeros(4, np.float32), "refits": np.int32(0)}},
        {OWN: {"table": np.zeros(3, np.float64), "refits": np.int32(0)}},
        {OWN: {"table": np.zeros(3, np.float32)}},
    ],
)
def test_a_refit_that_changes_shapes_is_a_fault(changed):
    method = a_job().method
    refit = method.refit._replace(fn=lambda *_: changed)
    job = a_job(method=dataclasses.replace(method, refit=refit))
    programs = lower_job(job)
    with pytest.raises(AssertionError, match="keep structure, shapes and dtypes"):
        evaluate.refit(job, programs, programs.initialise(), 0)
