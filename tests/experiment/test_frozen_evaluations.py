"""Evaluations of a checkpoint by SIE's heads: both protocols, features, the predictor, resuming."""

from __future__ import annotations

import functools
import time
from concurrent import futures

import jax
import numpy as np
import pytest

from configs import evals as evals_config
from jaxequi import experiment
from jaxequi.errors import Refusal
from jaxequi.evals import prediction, retrieval
from jaxequi.experiment import cache, trained
from jaxequi.methods import linear
from jaxequi.objectives import classification, regression
from jaxequi.runs import comparison
from jaxequi.train import checkpoint, log, loop
from jaxequi.types import OWN


def config_of(run, words, **fields):
    config = evals_config.get_config(words)
    config.checkpoint = str(run)
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@functools.cache
def encoded(run, name):
    """Features of every view of a set, computed here: representation and predictable."""
    network = trained.load(run)
    shown = experiment.make_set(network.config, name)
    records = shown.source.read(
        range(len(shown.source)), np.tile(np.arange(50), (len(shown.source), 1))
    )
    pixels = {"views": np.stack([np.stack(record["image"]) for record in records])}
    views = shown.augment(jax.random.key(0), pixels)["views"]
    found = jax.jit(network.encode)(network.params, network.extra, views)
    return network, shown.source, {name: np.asarray(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def everything(sie_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evals") / "all"
    job = experiment.build(config_of(sie_run, "sie_all,smoke", eval_every_steps=3))
    assert loop.run(job, workdir) == loop.FINISHED
    return workdir, log.read_metrics(workdir)[-1]


def test_heads_are_scored_on_every_held_out_view(sie_run, everything):
    workdir, last = everything
    network, source, found = encoded(sie_run, "val")
    whole = found["representation"]
    _, _, params, _ = checkpoint.read_network(workdir / "checkpoints")
    inv = whole.shape[-1] - network.equi
    parts = {"all": whole, "invariant": whole[..., :inv], "equivariant": whole[..., inv:]}
    labels = np.repeat([record["label"] for record in source.read(
        range(len(source)), np.zeros((len(source), 1), int))], 50)  # fmt: skip
    latent = source.latents.reshape(len(source) * 25, 2, 7)
    for part, x in parts.items():
        weights = params[f"classification-{part}-linear"]["linear_0"]
        logits = (x @ weights["kernel"] + weights["bias"]).reshape(len(labels), -1)
        for k in (1, 5):
            expected = classification.top_k(logits, labels, k)
            assert last[f"val/heads/top{k}/classification-{part}-linear"] == pytest.approx(expected)
        y = x.reshape(len(latent), -1)
        for i in range(3):
            layer = params[f"rotation-{part}-deep"][f"linear_{i}"]
            y = (np.maximum(y, 0) if i else y) @ layer["kernel"] + layer["bias"]
        target = linear.task("rotation", 1).target({"latent": latent})
        expected = regression.r2(y, target)
        assert last[f"val/heads/r2/rotation-{part}-deep"] == pytest.approx(expected, abs=1e-5)
    # chance of the relative quaternion, which has a mean of 0.53 in w
    assert last["val/heads/r2_floor/rotation"] == pytest.approx(0.23, abs=0.08)
    assert last["val/heads/r2_floor/color"] == pytest.approx(0, abs=0.02)


def test_the_predictor_is_scored_on_features_of_all_views(sie_run, everything):
    last = everything[1]
    for name in ("train", "val"):
        network, source, found = encoded(sie_run, name)
        latent = source.latents
        start = np.broadcast_to(latent[:, :1], latent.shape)
        pairs = np.stack([start, latent], 2).reshape(-1, 2, 7)
        relation = np.asarray(network.method.relation.between({"latent": pairs}))
        views = {
            "embedding": found["predictable"],
            "latent": latent,
            "relation": relation.reshape(len(source), 50, 4).astype(np.float32),
        }
        predict = jax.tree_util.Partial(network.predict, network.params, network.extra)
        expected = retrieval.scores(retrieval.ranks(predict, views))
        for score, value in expected.items():
            assert last[f"{name}/retrieval/{score}"] == pytest.approx(value, abs=0.01), score
    [value] = prediction.errors({"val": views}, predict, modes=["val-val"]).values()
    assert last["val/prediction/pre/val-val"] == pytest.approx(value, abs=0.01)


def test_the_table_of_runs_shows_it(sie_run, everything, tmp_path):
    workdir, last = everything
    written = comparison.write([sie_run, workdir], tmp_path / "table").read_text()
    assert written.count("data:image/png;base64,") == 4
    assert f"{last['val/heads/top1/classification-invariant-linear']:.3f}" in written
    table = (tmp_path / "table" / "table.md").read_text()
    assert f"{last['val/prediction/pre/val-val']:.3f}" in table
    assert "| sie | online | invariant | clean, 3 steps |" in table


def cached(run, **fields):
    config = config_of(run, "sie_all,smoke", **fields).copy_and_resolve_references()
    network = experiment.job._start_network(config)
    return cache.Cached(network, config, "val", experiment.job.meshes.make_mesh())


def test_features_that_many_threads_ask_for_are_computed_once(sie_run, tmp_path, monkeypatch):
    source, compute, begun = cached(sie_run, cache__folder=str(tmp_path)), cache.Cached._compute, []

    def slowly(self, writer, at_once):
        begun.append(at_once)
        time.sleep(0.2)
        compute(self, writer, at_once)

    monkeypatch.setattr(cache.Cached, "_compute", slowly)
    with futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: source.features, range(4)))
    assert len(begun) == 1
    assert all(one is found[0] for one in found)


def test_features_of_other_weights_data_or_views_are_other_features(sie_run, vicreg_run):
    def folder(run, **fields):
        return cached(run, cache__folder="features", **fields).folder

    same = folder(sie_run)
    assert folder(sie_run) == same
    others = [
        folder(vicreg_run),
        folder(sie_run, dtype="bfloat16"),
        folder(sie_run, val__source="scenes(split='val', image_size=16, num_objects=24, seed=1)"),
        folder(sie_run, val__eval_examples=3),
    ]
    assert len({same, *others}) == 5


def test_published_statistics_drift_and_the_run_resumes(sie_run, tmp_path):
    config = config_of(sie_run, "sie_rotation,published,smoke", total_steps=4, eval_every_steps=0)
    job = experiment.build(config)

    def finished(folder):
        step, _, params, extra = checkpoint.read_network(folder / "checkpoints")
        assert step == 4
        return params, extra

    assert job.shapes()["views"].shape[1] == 2
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
    frozen = trained.load(sie_run).backbone_variables
    after = whole[1][OWN]["backbone"]
    np.testing.assert_equal(after["params"], frozen["params"])
    drift = np.abs(after["batch_stats"]["bn1"]["mean"] - frozen["batch_stats"]["bn1"]["mean"])
    assert drift.min() > 1e-4


@pytest.mark.parametrize(
    ("words", "fields", "message"),
    [
        ("sie_all,smoke", {"init_step": 7}, "no checkpoint of step 7"),
        ("sie_all,smoke", {"init_encoder": "target"}, "has no target network"),
        ("sie_all,smoke", {"parts": ("inv",)}, "invariant"),
        ("sie_all,smoke", {"equi": 32, "parts": ("invariant",)}, "has no such part"),
        ("sie_predictor,smoke", {"evals__prediction__modes": ("train-val",)}, "train-train"),
        ("sie_all,smoke", {"batch_size": 12}, "8 devices"),
        ("sie_all,smoke", {"evals__heads__sets": ("test",)}, "reads the set 'test'; there is"),
        ("sie_all,smoke", {"train__num_views": 1}, "needs two views"),
    ],
)
def test_bad_input(sie_run, words, fields, message, tmp_path):
    config = config_of(sie_run, words)
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    with pytest.raises(Refusal, match=message):
        loop.run(experiment.build(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_step_takes_sets_smaller_than_its_batch(sie_run):
    config = config_of(sie_run, "sie_predictor,smoke", batch_size=64)
    assert len(experiment.make_source(trained.load(sie_run).config.val.source)) < 64
    job = experiment.build(config)
    assert (job.total_steps, job.steps_per_epoch) == (0, 1)
    assert {evaluation.name for evaluation in job.evaluations} == {"retrieval", "prediction"}
    with pytest.raises(Refusal, match="more than the 20 examples"):
        experiment.build(config_of(sie_run, "sie_all,smoke", batch_size=64))


def test_other_checkpoints(tmp_path, vicreg_run):
    with pytest.raises(Refusal, match="there is no folder"):
        experiment.build(config_of(tmp_path / "none", "sie_all,smoke"))
    with pytest.raises(Refusal, match="init_from"):
        experiment.build(evals_config.get_config("smoke"))
    with pytest.raises(ValueError, match="take one of sie_classification"):
        evals_config.get_config("sie_all,published")
    with pytest.raises(Refusal, match="vicreg, which predicts no embedding"):
        experiment.build(config_of(vicreg_run, "sie_predictor,smoke"))
    job = experiment.build(config_of(vicreg_run, "sie_all,smoke"))
    assert [evaluation.name for evaluation in job.evaluations] == ["heads"]
    shapes = jax.eval_shape(job.method.init, jax.random.key(0), {"views": np.zeros((8, 2, 32))})[0]
    assert set(shapes) == {"classification-all-linear", "rotation-all-deep", "color-all-deep"}
