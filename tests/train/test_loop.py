"""The loop on a least-squares method: exact resume, signals, crashes, other meshes, bad input."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxequi.errors import Refusal
from jaxequi.train import evaluate, log, loop, optim
from jaxequi.train import mesh as meshes
from jaxequi.train import workdir as folders
from jaxequi.train.checkpoint import Checkpoints
from jaxequi.train.job import Evaluation, Job, Pass
from jaxequi.train.programs import lower_job
from jaxequi.train.state import Start
from jaxequi.types import OWN, Method, Output

STEPS = 8


def method(blow_up_at: int = -1) -> Method:
    """Fit `views @ w` to the label, with noise of the step's key and a running mean."""

    def init(key, batch):
        width = batch["views"].shape[-1]
        return {"w": jax.random.normal(key, (width,))}, {OWN: {"mean": jnp.zeros(())}}

    def loss(params, extra, batch, key, progress):
        guess = batch["views"] @ params["w"] + 0.1 * jax.random.normal(key, batch["label"].shape)
        value = jnp.mean((guess - batch["label"]) ** 2)
        value = value * jnp.where(progress.step == blow_up_at, jnp.inf, 1.0)
        extra = {OWN: {"mean": 0.9 * extra[OWN]["mean"] + 0.1 * guess.mean()}}
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


def as_it_is(key, batch):
    return batch


def shapes():
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in host_batch(0).items()}


def adam(rate=0.1):
    return optim.Optimizer(*optax.adam(rate))


def job(**changes) -> Job:
    defaults = {
        "method": method(),
        "optimizer": adam(),
        "augment": as_it_is,
        "mesh": meshes.make_mesh(8, 1),
        "batches": batches,
        "shapes": shapes,
        "batch_size": 16,
        "examples": 64,
        "steps_per_epoch": 4,
        "total_steps": STEPS,
        "config": {"seed": 0, "mesh": {"data": -1}},
        "log_every": 3,
        "save_every": 4,
        "free_fields": ("mesh",),
    }
    return Job(**(defaults | changes))


def final_state(a_job, workdir):
    compiled = lower_job(a_job).compiled()
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
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


def test_goes_on_over_another_mesh(tmp_path, unbroken, monkeypatch):
    monkeypatch.setattr(meshes, "SMALL", 1)
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

    scores, seen = iter([3.0, 9.0, 1.0, 2.0]), []

    def evaluate(sets, params, extra):
        w = np.asarray(params["w"])
        views = np.tile(host_batch(100)["views"][:10], (2, 1))
        assert set(sets) == {"val"}
        np.testing.assert_allclose(sets["val"]["representation"], views * w, rtol=1e-6)
        seen.append(float(extra[OWN]["mean"]))
        return {"score": next(scores)}

    a_job = job(
        sets={"val": Pass(held_out, 16, 20, shapes, as_it_is)},
        evaluations=[Evaluation("best", ("val",), ("representation",), evaluate)],
        eval_every=2,
        save_every=3,
        keep_checkpoints=1,
        best="val/best/score",
    )
    assert loop.run(a_job, tmp_path) == loop.FINISHED
    assert len(set(seen)) == 4  # each time with the state of that step
    rows = log.read_metrics(tmp_path)
    assert [(row["step"], row["val/best/score"]) for row in rows if "val/best/score" in row] == [
        (2, 3.0),
        (4, 9.0),
        (6, 1.0),
        (8, 2.0),
    ]
    # Step 4 is saved because it was evaluated: `save_every` alone saves 3, 6 and 8.
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", best="val/best/score")) as kept:
        assert sorted(kept.manager.all_steps()) == [4, 8]
    with np.load(tmp_path / "features_val.npz") as saved:
        assert saved["representation"].shape == (20, 4)


def test_each_set_is_read_once_whatever_reads_it(tmp_path):
    """Two sets, three evaluations; what none of them names is not kept."""
    passes = []

    def a_set(name, seed):
        @contextlib.contextmanager
        def opened():
            passes.append(name)
            batch = host_batch(seed)
            batch["mask"][12:] = False
            yield iter([batch])

        return Pass(opened, 16, 12, shapes, as_it_is)

    given = []

    def evaluate(sets, params, extra):
        given.append({name: sorted(features) for name, features in sets.items()})
        return {"n": len(sets["val"]["label"])}

    a_job = job(
        sets={"train": a_set("train", 1), "val": a_set("val", 2), "idle": a_set("idle", 3)},
        evaluations=[
            Evaluation("knn", ("train", "val"), ("representation", "label"), evaluate),
            Evaluation("labels", ("val",), ("label",), evaluate),
        ],
        total_steps=2,
        eval_every=2,
    )
    assert loop.run(a_job, tmp_path) == loop.FINISHED
    assert sorted(passes) == ["train", "val"]
    both = ["label", "representation"]
    assert given == [{"train": both, "val": both}, {"val": ["label"]}]
    [row] = log.read_metrics(tmp_path)
    assert (row["val/knn/n"], row["val/labels/n"]) == (12, 12)


def test_how_many_bytes_a_set_takes_is_said_before_it_is_read(monkeypatch):
    told = []

    @contextlib.contextmanager
    def held_out():
        told.append("read")
        yield iter([host_batch(1)])

    a_job = job(
        sets={"val": Pass(held_out, 16, 16, shapes, as_it_is)},
        evaluations=[Evaluation("knn", ("val",), ("representation", "label"), lambda *_: {})],
        eval_every=2,
    )
    programs = lower_job(a_job)
    state = programs.initialise()
    evaluate.run_evaluations(a_job, programs, state, told.append)
    monkeypatch.setattr(evaluate, "WORTH_SAYING", 16 * (4 + 1) * 4 - 1)  # features and labels, f32
    _, features = evaluate.run_evaluations(a_job, programs, state, told.append)
    assert told == ["read", "features of val: 16 examples, 320 B", "read"]
    assert sum(array.nbytes for array in features["val"].values()) == 320


@pytest.mark.parametrize("feature", ["embedding", "latent"])
def test_a_feature_that_nothing_has_is_refused_before_anything_is_compiled(
    tmp_path, feature, nothing_compiles
):
    a_job = job(
        sets={"val": Pass(batches, 16, 16, shapes, as_it_is)},
        evaluations=[Evaluation("knn", ("val",), (feature,), lambda *_: {})],
        eval_every=2,
    )
    with pytest.raises(Refusal, match=rf"{feature}.*there is label, mask, representation"):
        loop.run(a_job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_steps_evaluates_its_first_state_and_saves_it(tmp_path):
    @contextlib.contextmanager
    def held_out():
        yield iter([host_batch(1)])

    def evaluate(sets, params, extra):
        return {"norm": float(jnp.linalg.norm(params["w"]))}

    a_job = job(
        sets={"val": Pass(held_out, 16, 16, shapes, as_it_is)},
        evaluations=[Evaluation("w", ("val",), ("representation",), evaluate)],
        total_steps=0,
    )
    assert loop.run(a_job, tmp_path) == loop.FINISHED
    [row] = log.read_metrics(tmp_path)
    assert row["step"] == 0
    state = final_state(a_job, tmp_path)
    np.testing.assert_allclose(row["val/w/norm"], np.linalg.norm(state.params["w"]), rtol=1e-6)


@pytest.mark.parametrize("at", [4, STEPS])
def test_a_parameter_ruined_in_the_last_update_is_not_saved(tmp_path, at):
    """No metric of that step shows it: the loss and the gradient are from before the update."""
    ruin = optax.sgd(lambda count: jnp.where(count == at - 1, jnp.inf, 0.01))
    with pytest.raises(log.NonFiniteError, match=f"not finite after step {at}: w"):
        loop.run(job(optimizer=optim.Optimizer(*ruin)), tmp_path)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        assert checkpoints.latest_step() == (None if at == 4 else 4)


@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (4, 2)])
def test_result_does_not_depend_on_the_mesh(tmp_path, unbroken, shape, monkeypatch):
    monkeypatch.setattr(meshes, "SMALL", 1)
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
        return job(method=quiet, accumulate=parts, optimizer=optim.Optimizer(*optax.sgd(0.1)))

    for parts in (1, 4):
        loop.run(noiseless(parts), tmp_path / str(parts))
    whole, parts = (final_state(noiseless(n), tmp_path / str(n)) for n in (1, 4))
    assert_same_state(parts, whole, rtol=1e-6)


def test_accumulation_is_refused_where_it_is_not_exact(tmp_path):
    contrastive = dataclasses.replace(method(), mean_over_examples=False)
    with pytest.raises(ValueError, match="Set accumulate=1"):
        loop.run(job(method=contrastive, accumulate=2), tmp_path)


def test_profile_is_written_and_said_in_words(tmp_path, capsys):
    loop.run(job(profile_steps=(2, 3)), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    said = (tmp_path / "profile" / "summary.txt").read_text()
    assert said in capsys.readouterr().out
    assert said.startswith("profile of 2 steps; nothing ran in ")
    assert " %  optimizer\n" in said


def test_a_profile_that_was_cut_goes_on_with_the_steps_that_are_left(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Interruption, "reached", lambda self, step: step == 2)
        assert loop.run(job(profile_steps=(2, 4)), tmp_path) == loop.INTERRUPTED
    assert loop.run(job(profile_steps=(2, 4)), tmp_path) == loop.FINISHED
    said = (tmp_path / "profile" / "summary.txt").read_text()
    assert said.startswith("profile of 2 steps; ")  # 3 and 4


def test_config_is_written_once(unbroken):
    assert json.loads((unbroken / folders.CONFIG_FILE).read_text())["seed"] == 0


REFUSED = {
    "an optimizer's pattern": {
        "optimizer": optim.make(
            "sgd", learning_rate=0.1, freeze="encoder", batch_size=16, total_steps=STEPS
        )
    },
    "accumulation": {
        "method": dataclasses.replace(method(), mean_over_examples=False),
        "accumulate": 2,
    },
    "a network that does not fit": {"start": Start({"params": {"v": np.zeros(4)}}, "", "the run")},
    "no checkpoint to keep": {"keep_checkpoints": 0},
    "an unknown mode": {"best_mode": "most"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing_behind(tmp_path, name):
    with pytest.raises(Refusal):
        loop.run(job(**REFUSED[name]), tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_read_leave_nothing_behind(tmp_path):
    def unreadable(start, stop):
        def produce():
            raise Refusal("no such image")
            yield

        return contextlib.nullcontext(produce())

    def too_small(shapes):
        raise Refusal("the image is too small")

    for change, message in (
        ({"batches": unreadable}, "no such image"),
        ({"preflight": too_small}, "too small"),
    ):
        with pytest.raises(Refusal, match=message):
            loop.run(job(**change), tmp_path / "run")
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_failed_before_its_first_checkpoint_may_be_begun_anew(tmp_path, unbroken):
    broken = job(config={"seed": 7}, method=method(blow_up_at=2))
    with jax.debug_nans(False), pytest.raises(log.NonFiniteError):
        loop.run(broken, tmp_path)
    assert json.loads((tmp_path / folders.CONFIG_FILE).read_text()) == {"seed": 7}
    assert loop.run(job(), tmp_path) == loop.FINISHED
    assert json.loads((tmp_path / folders.CONFIG_FILE).read_text())["seed"] == 0
    assert logged(tmp_path) == logged(unbroken)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    with folders.held(tmp_path, {"seed": 7}, begun=False):
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        with pytest.raises(Refusal, match=f"in use by process {os.getpid()}"):
            loop.run(job(), tmp_path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_table_at_the_start_says_who_is_in_which_group():
    sgd = {"name": "sgd", "learning_rate": 0.1}
    groups = {"heads": {"match": "^head/", **sgd}}
    optimizer = optim.make(**sgd, freeze="^w$", groups=groups, batch_size=16, total_steps=STEPS)
    params = {"w": jnp.zeros(4), "head": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}}
    params["body"] = {"kernel": jnp.zeros((3, 3))}
    a_job = job(optimizer=optimizer)
    programs = dataclasses.replace(lower_job(job()), train_step=None)
    state = programs.initialise().replace(params=params)
    assert loop._table(a_job, state, programs).splitlines()[-3:] == [
        "group frozen: 1 arrays, 4 parameters of w",
        "group heads: 2 arrays, 10 parameters of head",
        "group main: 1 arrays, 9 parameters of body",
    ]


def test_a_run_starts_with_the_network_that_it_is_given(tmp_path):
    given = np.arange(4, dtype=np.float32)
    still = optim.Optimizer(*optax.sgd(0.0))
    a_job = job(start=Start({"params": {"w": given}}, "", "the run"), optimizer=still)
    assert loop.run(a_job, tmp_path) == loop.FINISHED
    np.testing.assert_array_equal(final_state(a_job, tmp_path).params["w"], given)
