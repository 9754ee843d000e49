"""The rows of configs/benchmark.py: what each learns, and how all of them are judged."""

from __future__ import annotations

import ml_collections
import numpy as np
import pytest

from configs import benchmark
from jaxequi import experiment, main
from jaxequi.data.sources import rotated
from jaxequi.errors import Refusal
from jaxequi.evals import knn, rank
from jaxequi.experiment import before
from jaxequi.runs import table
from jaxequi.train import log, loop

JUDGES = ("", "finetune", "turns")


def kept(run, name):
    """Features that a run has kept of a set."""
    with np.load(run / f"features_{name}.npz") as stored:
        return dict(stored)


def smoke(variant="simclr", **fields):
    config = benchmark.get_config(f"{variant},smoke")
    config.before.pretrain.backbone = ml_collections.ConfigDict(
        {"name": "tests.experiment.tiny", "features": 16}
    )
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize("variant", benchmark.VARIANTS)
def test_every_row_learns_its_method_from_the_same_images(variant):
    job = experiment.build(benchmark.get_config(variant).before.pretrain)
    assert job.config["method"]["name"] == variant.split("_")[0]
    assert (job.total_steps, job.batch_size, job.examples) == (benchmark.STEPS, 64, 1438)


@pytest.mark.parametrize("group", benchmark.GROUPS)
def test_a_group_is_another_backbone_at_the_side_that_keeps_it_exact(group):
    config = benchmark.get_config(f"byol,{group}").before.pretrain
    job = experiment.build(config)
    assert job.shapes()["views"].shape == (64, 2, 33, 33, 3)
    if group != "c1":
        assert "exact" in job.preflight(job.shapes())
    with pytest.raises(ValueError, match="one network at most, and none for mae"):
        benchmark.get_config(f"mae,{group}")
    with pytest.raises(ValueError, match=f"{group}, .*one network at most"):
        benchmark.get_config(f"byol,{group},{'d8' if group != 'd8' else 'c4'}")


@pytest.mark.parametrize("name", benchmark.VITS)
def test_a_vision_transformer_learns_from_the_same_images_as_a_resnet(name):
    job = experiment.build(benchmark.get_config(f"supervised,{name}").before.pretrain)
    assert job.config["backbone"]["name"] == benchmark.VITS[name]["name"]
    assert job.shapes()["views"].shape == (64, 1, 16, 16, 3)


def test_one_path_is_that_of_all_sets():
    config = benchmark.get_config("byol,fashion")
    config.turned.source.source.path = "elsewhere"
    pretrain, turns = config.before.pretrain, config.before.turns
    assert pretrain.train.source.source.path == pretrain.val.source.path == "elsewhere"
    assert turns.train.source.source.source.path == turns.val.source.source.path == "elsewhere"


@pytest.mark.usefixtures("nothing_compiles")
def test_a_judge_that_does_not_fit_is_refused_before_there_is_anything_to_judge(tmp_path):
    for fields, message in (
        ({"init_encoder": "target"}, "has no target network"),
        ({"evals__heads__sets": ("val", "turnd")}, "the set 'turnd'"),
        ({"before__turns__batch_size": 8000}, "more than the 1438"),
        ({"before__finetune__fresh": ""}, "does not give this run all.*classifier"),
        ({"before__turns__train__source__label": "turns"}, "Did you mean 'turn'"),
        ({"before__turns__train__source__quarters": False}, "set quarters=True"),
    ):
        with pytest.raises(Refusal, match=f"(?s){message}"):
            main.train(smoke(**fields), (), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_of_a_run_with_an_average_either_network_is_judged_before_it_is_there(tmp_path):
    config = smoke("byol", init_encoder="target")
    before.rehearse(before.plan(config, (), tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "_report", lambda *run: None)
    assert main.train(smoke(), (), tmp_path) == loop.FINISHED
    final, finetuned, turns = (log.read_metrics(tmp_path / name)[-1] for name in JUDGES)
    train, val, turned = (kept(tmp_path, name) for name in ("train", "val", "turned"))
    again = knn.evaluate({"train": train, "val": turned}, k=5, temperature=0.07)
    assert final["turned/knn_turned/top1"] == pytest.approx(again["top1"])
    spread = rank.effective_rank(val["representation"][:, 0])
    assert final["val/rank/effective_rank"] == pytest.approx(spread)
    sides = rotated.make({"name": "digits", "split": "test"}, quarters=True, label="turn")
    labels = [r["label"] for r in sides.read(range(len(sides)), np.zeros((len(sides), 1), int))]
    shown = kept(tmp_path / "turns", "val")["label"]  # 16 of them, drawn once
    assert set(shown) <= set(labels) == {0, 1, 2, 3}
    right = 16 * turns["val/heads/top1/classification-all-linear"]
    assert right == pytest.approx(round(right))
    joined = table.join([table.read(tmp_path / name) for name in JUDGES])
    rows = {row.protocol: row.values for row in table.rows(joined)}
    assert list(rows) == [
        "clean, 3 steps",
        "finetune 1percent, 3 steps",
        "which side is up, 3 steps",
    ]
    assert rows["finetune 1percent, 3 steps"]["top-1"] == [finetuned["val/classification/top1"]]
    assert rows["clean, 3 steps"]["turned kNN"] == [final["turned/knn_turned/top1"]]
