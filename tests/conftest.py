"""What holds for the whole suite: eight simulated CPU devices, an error at the first NaN, compiled
programs kept for the next test that needs the same one, and a ceiling for the work of a test."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pathlib

from tests.flags import QUICK

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"
)
# Most tests compile a program that another test, the next process or the last suite compiled too.
CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
gc.set_threshold(50_000)  # tracing makes objects by the thousand, few of which are in a cycle

import jax
import numpy as np
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # grain reads absl flags, and pytest parses none
jax.config.update("jax_platforms", "cpu")


CPU_SECONDS = 240  # of one test and of the processes that it started, whatever else is running


def cpu_seconds():
    """User and system time of this process and of its children that ended."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = cpu_seconds()
    result = yield
    spent = cpu_seconds() - before
    if spent > CPU_SECONDS:
        pytest.fail(
            f"{item.nodeid} took {spent:.0f} s of CPU time; a test may take {CPU_SECONDS}: use a "
            "smaller network or image, fewer compilations, or a run shared through a fixture",
            pytrace=False,
        )
    return result


@pytest.fixture(autouse=True, scope="session")
def nan_is_an_error():
    """Of the session: what shared fixtures train is under it, and compiled as the tests' own is."""
    with jax.debug_nans(True):
        yield


@pytest.fixture
def nothing_compiles(monkeypatch):
    """An error at the first program that would be compiled."""

    def compiled(self, *args, **options):
        raise AssertionError("compiled")

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)


@pytest.fixture
def keys():
    """Fresh PRNG keys, one a call of `next`."""
    key = jax.random.key(0)

    def stream():
        count = 0
        while True:
            count += 1
            yield jax.random.fold_in(key, count)

    return stream()


def smoke_run(folder, config_file, words):
    """Train a config's smoke in a folder; session fixtures share what it leaves behind."""
    from jaxequi import experiment
    from jaxequi.train import loop

    config = importlib.import_module(f"configs.{config_file}").get_config(f"{words},smoke")
    assert loop.run(experiment.build(config), folder) == loop.FINISHED
    return folder


def drawn_run(folder, variant, config_file="sie"):
    """What a finished run leaves behind, with weights that are drawn: distinct, and quickly had."""
    from jaxequi import experiment
    from jaxequi.train.checkpoint import Checkpoints

    config = importlib.import_module(f"configs.{config_file}").get_config(f"{variant},smoke")
    job = experiment.build(config)
    random = np.random.default_rng(0)

    def draw(shape):
        if len(shape.shape) < 2:
            return random.uniform(0.5, 1, shape.shape).astype(shape.dtype)
        fan_in = np.prod(shape.shape[:-1])
        return random.normal(0, (2 / fan_in) ** 0.5, shape.shape).astype(shape.dtype)

    batch = {**job.shapes()}
    batch["views"] = jax.ShapeDtypeStruct(batch["views"].shape, np.float32)
    shapes = jax.eval_shape(job.method.init, jax.random.key(0), batch)
    params, extra = jax.tree.map(draw, shapes)
    checkpoints = Checkpoints(folder.absolute() / "checkpoints")
    checkpoints.save(3, {"params": params, "extra": extra}, job.config, window=[])
    checkpoints.close()
    (folder / "config.json").write_text(json.dumps(job.config))
    row = {"step": 3, "loss": 1.0, "val/online/r2/representation-equi": 0.3}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="session")
def sie_run(tmp_path_factory):
    """SIE on tiny scenes; not trained."""
    return drawn_run(tmp_path_factory.mktemp("runs") / "sie", "sie")


@pytest.fixture(scope="session")
def vicreg_run(tmp_path_factory):
    """VICReg, which has no predictor; not trained."""
    return drawn_run(tmp_path_factory.mktemp("runs") / "vicreg", "vicreg")


@pytest.fixture(scope="session")
def simclr_run(tmp_path_factory):
    """SimCLR; not trained."""
    return drawn_run(tmp_path_factory.mktemp("runs") / "simclr", "simclr")


@pytest.fixture(scope="session")
def mae_run(tmp_path_factory):
    """A masked autoencoder on digits; not trained."""
    return drawn_run(tmp_path_factory.mktemp("runs") / "mae", "base", "mae")


@pytest.fixture(scope="session")
def byol_run(tmp_path_factory):
    """BYOL on digits, with a target network; not trained."""
    return drawn_run(tmp_path_factory.mktemp("runs") / "byol", "sgd", "byol")


@pytest.fixture(scope="session")
def classifier_run(tmp_path_factory):
    """A trained network over C4, in three steps."""
    return smoke_run(tmp_path_factory.mktemp("runs") / "rotmnist", "rotmnist", "approximate27")
