"""The loop on a least-squares method: exact resume, signals, crashes, other meshes, bad input."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxequi.evals.features import gather

from jaxequi.train import log, loop
from jaxequi.train import mesh as meshes
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.types import Method, Output

STEPS = 8


def method(blow_up_at: int = -1) -> Method:
    """Fit `views @ w` to the label, with noise of the step's key and a running mean."""

    def init(key, batch):
        width = batch["views"].shape[-1]
        return {"w": jax.random.normal(key, (width,))}, {"mean": jnp.zeros(())}

    def loss(params, extra, batch, key, progress):
        guess = batch["views"] @ params["w"] + 0.1 * jax.random.normal(key, batch["label"].shape)
        value = jnp.mean((guess - batch["label"]) ** 2)
        value = value * jnp.where(progress.step == blow_up_at, jnp.inf, 1.0)
        extra = {"mean": 0.9 * extra["mean"] + 0.1 * guess.mean()}
        return value, Output(extra, {"fraction": progress.fraction}, {})

    def encode(params, extra, views):
        return {"representation": views * params["w"]}

    return Method(init, loss, encode, mean_over_examples=True)


def host_batch(step: int, size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "views": rng.normal(size=(size, 4)).astype(np.float32),
        "label": rng.normal(size=size).astype(np.float32),
        "mask": np.ones(size, bool),
    }


@contextlib.contextmanager
def batches(start, stop):
    yield map(host_batch, range(start, stop))


def job(**changes) -> loop.Job:
    defaults = {
        "method": method(),
        "optimizer": optax.adam(0.1),
        "augment": lambda key, batch: batch,
        "mesh": meshes.make_mesh(8, 1),
        "batches": batches,
        "batch_size": 16,
        "examples": 64,
        "steps_per_epoch": 4,
        "total_steps": STEPS,
        "config": {"seed": 0, "mesh": {"data": -1}},
        "log_every": 3,
        "save_every": 4,
        "free_fields": ("mesh",),
    }
    return loop.Job(**(defaults | changes))


def final_state(a_job, workdir):
    compiled = loop.lower_job(a_job, host_batch(0)).compiled()
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        assert checkpoints.latest_step() == a_job.total_steps
        state, _ = checkpoints.restore(a_job.total_steps, compiled.shapes, compiled.shardings)
    return state


def logged(workdir):
    """Logged rows without what is measured by the clock."""
    timed = ("examples_per_second", "input_wait")
    return [{k: v for k, v in r.items() if k not in timed} for r in log.read_metrics(workdir)]


def assert_same_state(a, b, rtol=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


def stopping_after(step, number):
    """Batches that raise a signal while a step runs."""

    @contextlib.contextmanager
    def interrupted(start, stop):
        def produce():
            for t in range(start, stop):
                if t == step:
                    os.kill(os.getpid(), number)
                yield host_batch(t)

        yield produce()

    return interrupted


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    assert loop.run(job(), workdir) == loop.FINISHED
    return workdir


def test_logs_window_means_at_every_interval(unbroken):
    rows = log.read_metrics(unbroken)
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert rows[0]["fraction"] == pytest.approx(np.mean([0, 1, 2]) / STEPS)
    assert rows[-1]["epoch"] == 2.0
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [1, 4])
def test_interrupted_run_goes_on_exactly(tmp_path, unbroken, number, at):
    broken = job(batches=stopping_after(at, number))
    assert loop.run(broken, tmp_path) == loop.INTERRUPTED
    assert loop.run(job(), tmp_path) == loop.FINISHED
    assert_same_state(final_state(job(), tmp_path), final_state(job(), unbroken))
    assert logged(tmp_path) == logged(unbroken)


def test_crash_goes_on_from_the_last_checkpoint(tmp_path, unbroken):
    def crash(start, stop):
        def produce():
            yield from map(host_batch, range(start, 7))
            raise RuntimeError("disk on fire")

        return contextlib.nullcontext(produce())

    with pytest.raises(RuntimeError, match="disk on fire"):
        loop.run(job(batches=crash), tmp_path)
    assert [row["step"] for row in log.read_metrics(tmp_path)] == [3, 6]
    # What a killed writer leaves behind: a half-written checkpoint and a half-written line.
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-0").mkdir()
    with (tmp_path / log.METRICS_FILE).open("a") as file:
        file.write('{"step": 7, "lo')
    assert loop.run(job(), tmp_path) == loop.FINISHED
    assert logged(tmp_path) == logged(unbroken)
    assert_same_state(final_state(job(), tmp_path), final_state(job(), unbroken))


def test_goes_on_over_another_mesh(tmp_path, unbroken):
    assert loop.run(job(batches=stopping_after(4, signal.SIGTERM)), tmp_path) == 85
    other = job(
        mesh=meshes.make_mesh(2, 4),
        sharding_rules=[("w$", "fsdp")],
        config={"seed": 0, "mesh": {"data": 2}},
    )
    assert loop.run(other, tmp_path) == loop.FINISHED
    assert_same_state(final_state(job(), tmp_path), final_state(job(), unbroken), rtol=1e-5)


def test_finished_run_does_nothing(tmp_path, unbroken):
    before = (unbroken / log.METRICS_FILE).read_bytes()

    def never(start, stop):
        raise AssertionError("a finished run must not load data")

    assert loop.run(job(batches=never), unbroken) == loop.FINISHED
    assert (unbroken / log.METRICS_FILE).read_bytes() == before


def test_non_finite_loss_stops_before_it_is_saved(tmp_path):
    with jax.debug_nans(False), pytest.raises(log.NonFiniteError, match="loss at step 6"):
        loop.run(job(method=method(blow_up_at=5)), tmp_path)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        assert checkpoints.latest_step() == 4


def test_workdir_of_another_config_is_refused_with_the_difference(unbroken):
    other = job(config={"seed": 1, "mesh": {"data": 2}, "extra": [1]})
    with pytest.raises(ValueError, match=r"- seed = 0\n\+ seed = 1") as error:
        loop.run(other, unbroken)
    assert "+ extra = [1]" in str(error.value)
    assert "mesh" not in str(error.value)


def test_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        loop.run(job(), tmp_path / "file")


def test_damaged_checkpoint_is_named(tmp_path, unbroken):
    shutil.copytree(unbroken, tmp_path / "copy")
    copy = tmp_path / "copy"
    for file in (copy / "checkpoints" / str(STEPS) / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    longer = job(total_steps=STEPS + 2)
    with pytest.raises(ValueError, match=f"checkpoints/{STEPS} cannot be read"):
        loop.run(longer, copy)


def test_evaluates_each_example_once_and_keeps_the_best(tmp_path):
    @contextlib.contextmanager
    def held_out():
        batch = host_batch(100)
        batch["mask"][10:] = False
        yield iter([batch, batch])

    scores = itertools.chain([3.0, 9.0, 1.0, 2.0])
    sizes = []

    def evaluate(arrays):
        sizes.append(len(arrays["representation"]))
        return {"score": next(scores)}

    a_job = job(
        evaluations={"val": loop.Evaluation(held_out, 16, gather, evaluate)},
        eval_every=2,
        save_every=2,
        keep_checkpoints=1,
        best="val/score",
    )
    assert loop.run(a_job, tmp_path) == loop.FINISHED
    assert sizes == [20] * 4
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", best="val/score")) as kept:
        assert sorted(kept.manager.all_steps()) == [4, 8]
    with np.load(tmp_path / "features_val.npz") as saved:
        assert saved["representation"].shape == (20, 4)


@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (4, 2)])
def test_result_does_not_depend_on_the_mesh(tmp_path, unbroken, shape):
    other = job(mesh=meshes.make_mesh(*shape), sharding_rules=[("w$", "fsdp")])
    assert loop.run(other, tmp_path) == loop.FINISHED
    for a, b in zip(logged(tmp_path), logged(unbroken), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_accumulated_gradient_is_the_whole_batchs(tmp_path):
    def noiseless(parts):
        quiet = dataclasses.replace(
            method(),
            loss=lambda p, e, b, k, t: (
                jnp.mean((b["views"] @ p["w"] - b["label"]) ** 2),
                Output(e, {}, {}),
            ),
        )
        return job(method=quiet, accumulate=parts, optimizer=optax.sgd(0.1))

    for parts in (1, 4):
        loop.run(noiseless(parts), tmp_path / str(parts))
    whole, parts = (final_state(noiseless(n), tmp_path / str(n)) for n in (1, 4))
    assert_same_state(parts, whole, rtol=1e-6)


def test_accumulation_is_refused_where_it_is_not_exact(tmp_path):
    contrastive = dataclasses.replace(method(), mean_over_examples=False)
    with pytest.raises(ValueError, match="Set accumulate=1"):
        loop.run(job(method=contrastive, accumulate=2), tmp_path)


def test_profile_is_written(tmp_path):
    loop.run(job(profile_steps=(2, 3)), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_config_is_written_once(unbroken):
    assert json.loads((unbroken / loop.CONFIG_FILE).read_text())["seed"] == 0
