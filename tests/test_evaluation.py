"""Offline evaluations of a checkpoint: both protocols, banks, the predictor, interruptions."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from configs import evals as evals_config
from configs import sie as sie_config
from jaxequi import augment, bank, evaluation, trained
from jaxequi.comparison import page
from jaxequi.evals import prediction, retrieval
from jaxequi.interop import networks
from jaxequi.train import checkpoint, log, loop


def made(folder, variant="sie"):
    """A run's folder with a checkpoint of random weights."""
    config = sie_config.get_config(f"{variant},smoke")
    random = np.random.default_rng(0)

    def draw(shape):
        if len(shape.shape) < 2:
            return random.uniform(0.5, 1, shape.shape).astype(shape.dtype)
        fan_in = np.prod(shape.shape[:-1])
        return random.normal(0, (2 / fan_in) ** 0.5, shape.shape).astype(shape.dtype)

    variables = jax.tree.map(draw, networks.shapes(config, 10))
    networks.save(folder, config.copy_and_resolve_references(), variables, 3)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("runs") / "sie")


def config_of(run, words, **fields):
    config = evals_config.get_config(words)
    config.checkpoint = str(run)
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def test_everything_in_one_pass(run, tmp_path):
    job = evaluation.build(config_of(run, "sie_all,smoke"))
    assert loop.run(job, tmp_path) == loop.FINISHED
    last = log.read_metrics(tmp_path)[-1]
    for part in ("all", "invariant", "equivariant"):
        assert 0 <= last[f"val/top1/classification-{part}-linear"] <= 1
        for task in ("rotation", "color"):
            columns = [v for k, v in last.items() if k.startswith("val/r2_") and task in k]
            assert f"val/r2/{task}-{part}-deep" in last
            assert len(columns) > 3
    # chance of the relative quaternion, which has a mean of 0.53 in w
    assert last["val/r2_floor/rotation"] == pytest.approx(0.23, abs=0.08)
    assert last["val/r2_floor/color"] == pytest.approx(0, abs=0.02)

    # the predictor's scores are those of features computed one by one, here
    network = trained.load(run)
    source = evaluation._source(network, "val", None)
    records = source.read(range(len(source)), np.tile(np.arange(50), (len(source), 1)))
    pixels = {"views": np.stack([np.stack(record["image"]) for record in records])}
    pixels = augment.make(network.config.augment)(jax.random.key(0), pixels)["views"]
    embedding = np.asarray(network.encode(network.params, network.extra, pixels)["predictable"])
    found = {"embedding": embedding, "latent": source.latents}
    pairs = np.stack(
        [np.broadcast_to(source.latents[:, :1], source.latents.shape), source.latents], 2
    )
    relation = evaluation._relation.relation("rotation").between(
        {"latent": pairs.reshape(-1, 2, 7)}
    )
    found["relation"] = np.asarray(relation).reshape(len(source), 50, 4)
    predict = jax.tree_util.Partial(network.predict, network.params, network.extra)
    expected = retrieval.evaluate({"val": found}, predict)
    expected |= prediction.evaluate({"val": found}, predict, modes=["val-val"])
    for name, value in expected.items():
        assert last[f"predictor/{name}"] == pytest.approx(value, abs=0.01), name

    # and the table of runs shows it
    (run / "config.json").write_text(json.dumps(network.config.to_dict()))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 3, "val/r2/representation-equi": 0.3}))
    written = page.write([run, tmp_path], tmp_path / "table").read_text()
    assert written.count("data:image/png;base64,") == 4
    assert f"{last['val/top1/classification-invariant-linear']:.3f}" in written
    assert f"{last['predictor/val-val/pre']:.3f}" in (tmp_path / "table" / "table.md").read_text()


def test_a_bank_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    network = trained.load(run)
    config = config_of(run, "sie_all,smoke", features=str(tmp_path))
    mesh = evaluation.meshes.make_mesh()
    source = evaluation._source(network, "train", None)
    monkeypatch.setattr(bank, "SECONDS", 0)
    whole = evaluation._bank(network, config, mesh, source, "train")
    assert whole.representation.shape == (len(source), 50, 32)
    np.testing.assert_allclose(whole.latent, source.latents, rtol=1e-6)
    [folder] = (tmp_path / "step-3").iterdir()
    expected = np.array(whole.representation)
    (folder / "done.json").write_text(json.dumps({"objects": 8}))
    files = np.lib.format.open_memmap(folder / "representation.npy", "r+")
    files[8:] = 0
    files.flush()
    again = evaluation._bank(network, config, mesh, source, "train")
    np.testing.assert_array_equal(again.representation, expected)
    (folder / "done.json").write_text("{")
    with pytest.raises(ValueError, match="remove that folder"):
        evaluation._bank(network, config, mesh, source, "train")


def test_published_statistics_drift_and_the_run_resumes(run, tmp_path):
    config = config_of(run, "sie_rotation,published,smoke", total_steps=4, eval_every_steps=0)
    job = evaluation.build(config)

    def finished(folder):
        step, _, params, extra = checkpoint.read_network(folder / "checkpoints")
        assert step == 4
        return params, extra

    with job.batches(0, 1) as batches:
        first = next(batches)
    assert first["views"].shape[1] == 2
    assert loop.run(job, tmp_path / "whole") == loop.FINISHED

    class Stop(loop.Interruption):
        def reached(self, step):
            return step == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Interruption", Stop)
        assert loop.run(job, tmp_path / "parts") == loop.INTERRUPTED
    assert loop.run(job, tmp_path / "parts") == loop.FINISHED
    whole = finished(tmp_path / "whole")
    np.testing.assert_equal(finished(tmp_path / "parts"), whole)
    frozen = trained.load(run).backbone_variables
    after = whole[1]["backbone"]
    np.testing.assert_equal(after["params"], frozen["params"])
    drift = np.abs(after["batch_stats"]["bn1"]["mean"] - frozen["batch_stats"]["bn1"]["mean"])
    assert drift.min() > 1e-4


@pytest.mark.parametrize(
    ("words", "fields", "message"),
    [
        ("sie_all,smoke", {"protocol": "cleen"}, "Did you mean 'clean'"),
        ("sie_all,smoke", {"checkpoint_step": 7}, "no checkpoint of step 7"),
        ("sie_all,smoke", {"tasks": ("colour",)}, "Did you mean 'color'"),
        ("sie_all,smoke", {"parts": ("inv",)}, "invariant"),
        ("sie_all,smoke", {"equi": 32, "parts": ("invariant",)}, "has no such part"),
        ("sie_all,published,smoke", {}, "one kind"),
        ("sie_predictor,published,smoke", {"predictor": True}, "protocol='clean'"),
        ("sie_predictor,smoke", {"modes": ("train-val",)}, "train-train"),
        ("sie_all,smoke", {"batch_size": 12}, "8 devices"),
    ],
)
def test_bad_input(run, words, fields, message):
    with pytest.raises(ValueError, match=message):
        evaluation.build(config_of(run, words, **fields))


def test_other_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        evaluation.build(config_of(tmp_path / "none", "sie_all,smoke"))
    with pytest.raises(ValueError, match="checkpoint=FOLDER"):
        evaluation.build(evals_config.get_config("smoke"))
    vicreg = made(tmp_path / "vicreg", "vicreg")
    with pytest.raises(ValueError, match="vicreg, which predicts no embedding"):
        evaluation.build(config_of(vicreg, "sie_predictor,smoke"))
    job = evaluation.build(config_of(vicreg, "sie_all,smoke"))
    assert list(job.evaluations) == ["val"]
    shapes = jax.eval_shape(job.method.init, jax.random.key(0), {"views": np.zeros((8, 2, 32))})[0]
    assert set(shapes) == {"classification-all-linear", "rotation-all-deep", "color-all-deep"}
