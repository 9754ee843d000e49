"""Published evaluations of a checkpoint: their rates, what is laid, and what is refused."""

from __future__ import annotations

import importlib
import math

import jax
import numpy as np
import pytest

from configs import equivision, linear, rotmnist
from jaxequi import experiment
from jaxequi.errors import Refusal
from jaxequi.experiment import sets
from jaxequi.models import vit
from jaxequi.runs import table
from jaxequi.train import checkpoint, log, loop, optim, programs
from jaxequi.train.state import lay

IMAGENET = 1_281_167
HEAD = "classification-all-linear"


def config_of(file, words, run=None, **fields):
    config = importlib.import_module(f"configs.{file}").get_config(words)
    config.init_from = None if run is None else str(run)
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


# words: batch, epochs, and {epoch: learning rate}, by hand from the references' commands
PUBLISHED = {
    "airl,paper": (256, 100, {0: 30, 59: 30, 60: 3, 80: 0.3}),
    "airl_large_norm,paper": (1024, 80, {0: 0.2, 40: 0.1, 80: 0}),
    "moco,paper": (256, 100, {0: 30, 59: 30, 60: 3, 80: 0.3}),
    "simsiam,paper": (4096, 90, {0: 1.6, 45: 0.8, 45.5: 0.8}),
    "mae,paper": (16384, 90, {0: 0, 5: 3.2, 10: 6.4, 50: 3.2, 90: 0}),
    "mae,large,paper": (16384, 50, {0: 0, 10: 6.4, 30: 3.2, 50: 0}),
    "mae_finetune,paper": (1024, 100, {0: 0, 5: 2e-3, 100: 1e-6}),
    "mae_finetune,huge,paper": (1024, 50, {2.5: 2e-3, 5: 4e-3, 50: 1e-6}),
    "finetune,1percent,paper": (4096, 60, {0: 0.8, 30: 0.4, 60: 0}),
    "finetune,10percent,paper": (4096, 30, {0: 0.8, 15: 0.4, 30: 0}),
}


@pytest.mark.parametrize("words", PUBLISHED)
def test_published_lengths_and_rates(words):
    config = linear.get_config(words)
    batch, epochs, rates = PUBLISHED[words]
    assert (config.batch_size, config.total_epochs) == (batch, epochs)
    given = config.optimizer.to_dict()
    given.pop("layer_decay", None)
    examples = int(IMAGENET * (config.train.get("share") or 1))
    length = examples // batch
    made = optim.make(**given, total_steps=length * epochs, batch_size=batch)
    for epoch, expected in rates.items():
        found = made.rates["learning_rate"](int(epoch * length))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6, err_msg=str(epoch))
    assert config.eval_every_steps % length == 0
    assert config.protocol == words.replace(",", " ")  # its row in a table


def test_a_published_head_learns_from_images_over_the_frozen_network(byol_run):
    """Of the average of BYOL; the head and its norm are all that is drawn."""
    config = config_of("linear", "airl,paper,smoke", byol_run, init_encoder="target")
    config.method.batch_norm = "behind"
    job = experiment.build(config)
    assert job.start is not None
    shapes = programs.lower_job(job).train_step.out_info[0]
    values = lay(job.start, shapes)
    drawn = {f"params/{HEAD}/linear_0/{leaf}" for leaf in ("kernel", "bias")}
    drawn |= {f"params/{HEAD}-norm/{leaf}" for leaf in ("scale", "bias")}
    drawn |= {f"extra/batch_stats/{HEAD}-norm/{leaf}" for leaf in ("mean", "var")}
    tree = {"params": shapes.params, "extra": shapes.extra}
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert paths - set(values) == drawn
    assert all(path.startswith("extra/own/backbone/") for path in values)
    assert job.best == f"val/heads/top1/{HEAD}"
    assert job.shapes()["views"].shape == (8, 1, 224, 224, 3)


def test_maes_probe_learns_from_stored_features(mae_run, tmp_path):
    config = config_of("linear", "mae,smoke", mae_run, cache__folder=str(tmp_path / "features"))
    assert loop.run(experiment.build(config), tmp_path / "run") == loop.FINISHED
    rows = log.read_metrics(tmp_path / "run")
    # Weights of deviation 0.01 on 16 features of variance 1: logits of deviation 0.04.
    assert rows[0]["loss"] == pytest.approx(math.log(10), abs=0.02)
    assert {"val/knn/k", "val/knn/temperature", "val/rank/effective_rank"} <= set(rows[-1])
    _, _, params, extra = checkpoint.read_network(tmp_path / "run" / "checkpoints")
    kept = np.load(tmp_path / "run" / "features_val.npz")
    norm, layer = extra["batch_stats"][f"{HEAD}-norm"], params[HEAD]["linear_0"]
    x = (kept["representation"] - norm["mean"]) / np.sqrt(norm["var"] + 1e-6)
    logits = (x @ layer["kernel"] + layer["bias"])[:, 0]
    right = np.mean(logits.argmax(-1) == kept["label"])
    assert rows[-1][f"val/heads/top1/{HEAD}"] == pytest.approx(right)


def test_maes_fine_tuning(mae_run, tmp_path):
    job = experiment.build(config_of("linear", "mae_finetune,smoke", mae_run))
    backbone = job.config["backbone"]
    assert (backbone["pool"], backbone["positions"]) == ("mean", "learned")
    assert backbone["drop_path"] == 0.1
    assert loop.run(job, tmp_path) == loop.FINISHED
    rows = log.read_metrics(tmp_path)
    # A head of 2e-5 tells nothing, and the weights of mixed and smoothed classes add up to 1.
    assert rows[0]["loss"] == pytest.approx(math.log(10), abs=1e-3)
    _, _, params, _ = checkpoint.read_network(tmp_path / "checkpoints")
    kept, layer = np.load(tmp_path / "features_val.npz"), params["classifier"]
    logits = (kept["representation"] @ layer["kernel"] + layer["bias"])[:, 0]
    right = np.mean(logits.argmax(-1) == kept["label"])
    assert rows[-1]["val/classification/top1"] == pytest.approx(right)


def test_layer_decay_is_of_the_checkpoints_depth(mae_run):
    """An update of plain descent by a gradient of ones is the rate of each layer."""
    config = config_of("linear", "mae_finetune,smoke", mae_run)
    config.optimizer = {"name": "sgd", "learning_rate": 1.0, "layer_decay": 0.5}
    job = experiment.build(config)
    state = programs.lower_job(job).train_step.out_info[0]
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), state.params)
    updates, _ = job.optimizer.update(ones, job.optimizer.init(ones), ones)
    rates = {
        jax.tree_util.keystr(path, simple=True, separator="/"): -float(np.ravel(leaf)[0])
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    # Two blocks: three steps from the tokens to the head.
    assert rates["backbone/pos_embed"] == rates["backbone/patch_embed/kernel"] == 0.125
    assert rates["backbone/blocks_0/attn/qkv/kernel"] == 0.25
    assert rates["backbone/blocks_1/attn/qkv/kernel"] == 0.5
    assert rates["backbone/fc_norm/scale"] == rates["classifier/kernel"] == 1


def test_a_share_of_the_labels(byol_run):
    config = config_of("linear", "finetune,10percent,smoke", byol_run)
    whole = experiment.build(config_of("linear", "finetune,smoke", byol_run))
    job = experiment.build(config)
    assert job.examples == whole.examples // 10
    assert job.config["train"]["source"]["source"] == whole.config["train"]["source"]
    shared = sets.make_source(job.config["train"]["source"])
    assert sorted(np.bincount(shared.labels)) == 7 * [14] + 3 * [15]
    text = config_of("linear", "finetune,10percent,smoke", byol_run, train__source="digits()")
    also = sets.make_source(experiment.build(text).config["train"]["source"])
    np.testing.assert_array_equal(also.labels, shared.labels)
    assert job.sets["val"].examples == whole.sets["val"].examples
    assert {one.name for one in job.evaluations} == {"classification"}


OTHER = {"val__source": "digits(split='test')"}


@pytest.mark.parametrize(
    ("words", "fields", "message"),
    [
        ("moco,smoke", OTHER, "the set val has 10 classes, and the training set has"),
        ("finetune,smoke", OTHER, "the set val has 10 classes, and the training set has"),
        ("knn,smoke", {"init_encoder": "target"}, "has no target network"),
        ("airl,smoke", {"init_encoder": "teacher"}, "encoder 'teacher'"),
        ("airl,smoke", {"method__heads": {"classification": ("linaer",)}}, "Did you mean 'linear'"),
        ("airl,smoke", {"method__heads": {"clasification": ("linear",)}}, "Did you mean 'classif"),
        ("airl,smoke", {"method__batch_norm": "after"}, "before, behind"),
        ("airl,smoke", {"method__num_classes": 5}, "has 12 classes"),
        ("airl,smoke", {"backbone_changes": {"pool": "mean"}}, "the checkpoint's own network"),
        ("finetune,smoke", {"backbone_changes": {"pool": "mean"}}, "argument of models 'resnet'"),
        ("simsiam,smoke", {"optimizer__layer_decay": 0.5}, "does not say how its layers lie"),
        ("finetune,smoke", {"optimizer__layer_decay": 0.5}, "and scales: give one of the two"),
        ("mae,smoke", {"optimizer__warmup_part": 1.5}, "a part of the run, 0 to 1"),
    ],
)
def test_bad_input_of_any_evaluation(words, fields, message, vicreg_run, uncompiled):
    with pytest.raises(Refusal, match=message):
        loop.run(experiment.build(config_of("linear", words, vicreg_run, **fields)), uncompiled)


@pytest.mark.parametrize(
    ("words", "fields", "message"),
    [
        (
            "airl,smoke",
            {
                "cache": {"on": False},
                "train": {"views": ("decode|resize((16, 16))",) * 2},
                "method": {"heads": {"classification": ("linear",), "rotation": ("deep",)}},
            },
            "'rotation' is told by the latents",
        ),
        ("airl,smoke", {"evals": {"online": {"relation": "rotation"}}}, "reads online, latent"),
        (
            "finetune,smoke",
            {"backbone_changes": {"width": 8}},
            r"needed here.*batch_stats/backbone/bn1/mean \(8,\), which has \(4,\) there",
        ),
        (
            "finetune,smoke",
            {"optimizer": {"freeze": "^encoder/"}},
            r"group frozen \('\^encoder/'\) matches the path of no parameter",
        ),
        (
            "finetune,smoke",
            {
                "optimizer": {
                    "freeze": "^backbone/",
                    "groups": {"first": {"match": "conv1", "name": "sgd", "learning_rate": 0.1}},
                }
            },
            "backbone/conv1/kernel is in the groups frozen and first",
        ),
    ],
    ids=["latents", "feature and latents", "backbone", "no parameter", "two groups"],
)
def test_what_plain_images_and_their_checkpoint_cannot_give(
    words, fields, message, byol_run, uncompiled
):
    config = config_of("linear", words, byol_run)
    with config.unlocked():
        for part, options in fields.items():
            config[part].update(options)
    with pytest.raises(Refusal, match=f"(?s){message}"):
        loop.run(experiment.build(config), uncompiled)


def test_a_set_says_itself_how_it_is_shown():
    """It takes over neither the crops nor the photometry of the training."""
    for field in ("views", "augment"):
        config = config_of("simsiam", "smoke")
        with config.unlocked():
            del config.val[field]
        with pytest.raises(Refusal, match=f"the set val lacks {field}"):
            experiment.build(config)


SOFT = {
    "soft_equivariance__weight": 1.0,
    "soft_equivariance__layer": "layer2_0",
    "soft_equivariance__pairs": 4,
}


def test_soft_equivariance_is_asked_for_by_any_config():
    job = experiment.build(config_of("simsiam", "smoke", **SOFT))
    _, metrics = programs.lower_job(job).train_step.out_info
    assert metrics["loss/soft_equivariance"].shape == ()
    assert metrics["online/loss"].shape == ()


@pytest.fixture
def uncompiled(tmp_path, nothing_compiles):
    """A folder that stays away, in a test in which nothing may be compiled."""
    yield tmp_path / "run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "words", "fields", "message"),
    [
        ("moco", "v2,smoke", {"method__queue": 4}, "8 keys does not fit a queue of 4"),
        ("moco", "moco_v2,smoke", {"method__queue": 12}, "8 keys does not divide the queue of 12"),
        ("moco", "v2,smoke", {"method__projector": "moco"}, "layer widths 'moco'"),
        ("moco", "v2,smoke", {"norm__groups": 3}, "groups=3 does not divide the batch of 8"),
        ("moco", "v2plus_lars,paper", {"total_epochs": 150}, "total_epochs=150: .*0.45 for 100"),
        ("byol", "lars,paper", {"total_epochs": 800}, "total_epochs=800: .*0.3 for 300"),
        ("byol", "sgd,smoke", {"method__predictor": "16-9"}, "end differently"),
        (
            "byol",
            "sgd,smoke",
            {"online__last_view": True, "online__relation": "rotation"},
            "take one of",
        ),
        ("simsiam", "smoke", {"optimizer__pieces": 2}, "pieces=2 do not divide the run of 3"),
        ("mae", "smoke", {"backbone__patch": 5}, "patches of 5|5x5"),
        ("mae", "smoke", {"backbone__pool": "mean"}, "pool='token'"),
        ("mae", "smoke", {"backbone__heads": 3}, "must divide the width"),
        ("mae", "smoke", {"backbone_changes": {"pool": "mean"}}, "change `backbone` itself"),
        ("mae", "smoke", {**SOFT, "soft_equivariance__layer": "blocks_0"}, "two square views"),
        ("simsiam", "smoke", {**SOFT, "remat": True}, "cannot be seen"),
        ("simsiam", "smoke", {**SOFT, "soft_equivariance__pairs": 9}, "pairs=9 of a batch of 8"),
        ("simsiam", "smoke", {**SOFT, "soft_equivariance__layer": "layer5_0"}, "layer4_0"),
        ("supervised", "smoke", {"method__num_classes": 7}, "has 10 classes"),
        ("supervised", "smoke", {"train__mix": "mixing(7)"}, "mixing of 7 classes, .* have 10"),
        (
            "supervised",
            "smoke",
            {"batch_size": 16, "train__share": 0.001},  # one of each class
            "16 .* 10",
        ),
    ],
)
def test_bad_input_of_the_methods(file, words, fields, message, uncompiled, monkeypatch):
    config = config_of(file, words, **fields)
    if "paper" in words:  # no images are needed to see that
        config.train.source = config.val.source = {"name": "digits", "split": "train"}
    with pytest.raises(Refusal, match=message):
        loop.run(experiment.build(config), uncompiled)


def test_rates_of_lars_by_the_length_of_the_run():
    for epochs, rate in ((100, 0.45), (200, 0.3), (300, 0.3)):
        config = config_of("byol", "lars,paper", total_epochs=epochs)
        options = experiment.networks.optimizer_options(config)
        assert options["base_lr"] == rate
        assert "base_lr_of_epochs" not in options
    config = config_of("byol", "lars,paper", total_epochs=800, optimizer__base_lr=0.2)
    assert experiment.networks.optimizer_options(config)["base_lr"] == 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("knn,1percent", "knn learns nothing"),
        ("airl,large", "not of airl"),
        ("knn,paper", "nothing is published of knn"),
        ("finetune,paper", "with 1percent or 10percent"),
        ("linear,papr", "Did you mean 'paper'"),
    ],
)
def test_words_that_do_not_go_together(words, message):
    with pytest.raises(ValueError, match=message):
        linear.get_config(words)


def test_what_is_published_of_a_config_stands_in_it():
    """Beside the columns of `runs.table`, and only where the config is the published experiment."""
    titles = {column.title for column in table.COLUMNS}
    told = {}
    for file, words in (
        (linear, "mae,paper"),
        (linear, "mae_finetune,large,paper"),
        (linear, "mae_finetune,10percent,paper"),
        (rotmnist, "approximate27,paper"),
        (rotmnist, "approximate27,uniform,paper"),
        (equivision, "d4resnet50,paper"),
    ):
        told[words] = file.get_config(words).published.to_dict()
        assert {*told[words]} <= titles
    assert list(told.values()) == [
        {"top-1": 0.678},
        {"top-1": 0.859},
        {},
        {"top-1": 0.985, "all quarter turns": 0.776},
        {},
        {"top-1": 0.789, "top-5": 0.946},
    ]


def test_published_layer_decay_is_that_of_the_size():
    for words, depth, decay in (("base", 12, 0.65), ("large", 24, 0.75), ("huge", 32, 0.75)):
        config = linear.get_config(
            f"mae_finetune,{words},paper" if words != "base" else "mae_finetune"
        )
        assert config.optimizer.layer_decay == decay
        factors = vit.make(words).layer_decay(decay)
        np.testing.assert_allclose(factors[0][1], decay ** (depth + 1))
