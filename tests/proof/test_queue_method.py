"""The house is ready for a method that no file of it knows: `queue_method`, from first to last."""

from __future__ import annotations

import importlib
import json

import jax
import numpy as np
import pytest

from configs import linear as linear_config
from jaxequi import experiment
from jaxequi.evals import knn
from jaxequi.runs import comparison, report
from jaxequi.train import checkpoint, log, loop
from jaxequi.types import OWN

STEPS = 8  # two epochs of four steps each


def config(devices):
    made = importlib.import_module("tests.proof.config").get_config()
    made.mesh.data = devices
    return made


def state(workdir):
    """Everything that a run has learned."""
    step, _, params, extra = checkpoint.read_network(workdir / "checkpoints")
    assert step == STEPS
    return params, extra


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that nothing interrupts, on one device and on eight."""
    workdirs = {}
    for devices in (1, 8):
        workdirs[devices] = tmp_path_factory.mktemp("proof") / f"queue{devices}"
        job = experiment.build(config(devices))
        assert (job.total_steps, job.steps_per_epoch) == (STEPS, 4)
        assert loop.run(job, workdirs[devices]) == loop.FINISHED
    return workdirs


@pytest.fixture
def run(runs):
    """The run on one device."""
    return runs[1]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("stop", [6, 4], ids=["between two refits", "right before a refit"])
def test_interrupted_it_goes_on_to_the_same_bits_and_clusters(
    stop, devices, runs, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Interruption, "reached", lambda self, step: step == stop)
        assert loop.run(experiment.build(config(devices)), tmp_path) == loop.INTERRUPTED
    assert loop.run(experiment.build(config(devices)), tmp_path) == loop.FINISHED
    np.testing.assert_equal(state(tmp_path), state(runs[devices]))


def test_one_device_equals_eight(runs):
    rows = [log.read_metrics(runs[devices]) for devices in (1, 8)]
    for one, eight in zip(*rows, strict=True):
        for name in ("loss", "gradient_norm", "online/loss"):
            assert one[name] == pytest.approx(eight[name], rel=1e-3), (one["step"], name)
    (params, extra), (other, extra_of_eight) = state(runs[1]), state(runs[8])
    np.testing.assert_array_equal(extra[OWN]["cluster"], extra_of_eight[OWN]["cluster"])
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * max(1.0, np.abs(a).max()))


def test_what_is_its_own_did_what_it_should(run):
    params, extra = state(run)
    own = extra[OWN]
    assert len(np.unique(own["cluster"])) > 1  # the refit was called: at first all are 0
    np.testing.assert_allclose(np.linalg.norm(own["queue"], axis=1), 1, rtol=1e-5)
    target, online = own["target"]["params"]["head"]["kernel"], params["head"]["kernel"]
    assert np.abs(target - online).max() > 1e-3  # a moving average, some way behind
    after = experiment.build(config(1)).method.update(params, extra, None)
    moved = after[OWN]["target"]["params"]["head"]["kernel"]
    np.testing.assert_allclose(moved, 0.9 * target + 0.1 * online, rtol=1e-6)
    rows = log.read_metrics(run)
    assert {row["learning_rate"] for row in rows} == {0.05}
    assert {row["learning_rate/head"] for row in rows} == {0.01}
    kept = {name: dict(np.load(run / f"features_{name}.npz")) for name in ("train", "val")}
    for name, value in knn.evaluate(kept, k=5).items():
        assert rows[-1][f"val/knn/{name}"] == pytest.approx(value)
    head = params["online"]["label_representation"]
    logits = kept["val"]["representation"][:, 0] @ head["kernel"] + head["bias"]
    right = np.mean(logits.argmax(-1) == kept["val"]["label"])
    assert rows[-1]["val/online/top1/representation"] == pytest.approx(right)


@pytest.mark.parametrize("encoder", ["", "target"])
def test_it_is_evaluated_and_reported(run, tmp_path, encoder):
    folders = [run]
    for words in ("knn", "linear"):
        made = linear_config.get_config(f"{words},smoke")
        made.init_from, made.init_encoder = str(run), encoder
        made.cache.folder = str(tmp_path / "features")
        folders.append(tmp_path / words)
        assert loop.run(experiment.build(made), folders[-1]) == loop.FINISHED
    page = comparison.write(folders, tmp_path / "table")
    table = (page.parent / "table.md").read_text()
    protocols = [line.split("|")[2:5] for line in table.splitlines()[2:4]]
    assert [[cell.strip() for cell in line] for line in protocols] == [
        [encoder or "online", "all", "no head"],
        [encoder or "online", "all", "clean, 3 steps"],
    ]
    last = log.read_metrics(folders[1])[-1]
    assert f"{last['val/knn/top1']:.3f}" in table
    if not encoder:  # the vote of the same network, then and now
        assert last["val/knn/top1"] == pytest.approx(log.read_metrics(run)[-1]["val/knn/top1"])


def test_it_leaves_a_report(run):
    page = report.write(run).read_text()
    assert "tests.proof.queue_method" in page
    assert page.count("data:image/png;base64,") >= 3
    saved = json.loads((run / "config.json").read_text())
    assert saved["method"]["examples"] == 67  # told by the data, and written down
