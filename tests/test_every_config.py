"""Every config file, every variant: it builds, and its `smoke` trains, saves and reports."""

import importlib.util
import json
import pathlib

import ml_collections
import numpy as np
import pytest

from jaxequi import experiment
from jaxequi.errors import Refusal
from jaxequi.experiment import trained
from jaxequi.runs import probing, report, table
from jaxequi.train import checkpoint, log, loop, programs

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def load(file: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The runs of configs/benchmark.py are in experiment/test_benchmark.py.
FILES = [f for f in sorted(CONFIGS.glob("*.py")) if f.stem not in ("common", "benchmark")]
CASES = [(file, variant) for file in FILES for variant in load(file).VARIANTS]
# Of a family of networks one is traced in each kind of group; the others are built.
BUILT = [
    (file, variant)
    for file, variant in CASES
    if file.stem == "equivision" and variant not in ("c8resnet18", "d4resnet50")
]
# What of a family only its first variant is traced and trained with its own network; a tiny one
# is enough for the others, whose methods differ.
TINY = ("sie", "moco", "byol", "simsiam", "ipirm", "eqinv")
SMALL = {"name": "tests.experiment.tiny", "features": 32}
# Compiling takes most of a test's time: one variant a method, one a family. What configs/evals.py
# does is in experiment/test_frozen_evaluations.py, and the family's first is the fixture.
TRAINED = [
    (CONFIGS / "classification.py", "digits"),
    (CONFIGS / "imagenet_p4.py", "approximate"),
    (CONFIGS / "unequivariance.py", "even"),
    (CONFIGS / "equivision.py", "c8resnet18,rotated"),
    (CONFIGS / "moco.py", "v2plus_lars"),
    (CONFIGS / "simsiam.py", "fix_pred_lr"),
    (CONFIGS / "mae.py", "base"),
    (CONFIGS / "ipirm.py", "ipirm"),
    (CONFIGS / "supervised.py", "resnet50"),
    # A pair of views alone, and with a predictor of the relation; SimCLR and SIE train below.
    (CONFIGS / "sie.py", "vicreg"),
    (CONFIGS / "sie.py", "simclr_equimod"),
]


def named(value):
    return getattr(value, "stem", value)


def made(file, variant, runs):
    """The smoke of a variant; one that judges a checkpoint judges one of `runs`."""
    config = load(file).get_config(f"{variant},smoke")
    if file.stem in ("evals", "linear", "ipirm_linear"):
        config.init_from = str(runs["vit" if variant == "mae_finetune" else "resnet"])
    if "before" in config:  # the whole is in experiment/test_before.py
        config.init_from = None
    if file.stem in TINY and variant != next(iter(load(file).VARIANTS)):
        config.backbone = ml_collections.ConfigDict(SMALL)
    return config


@pytest.mark.parametrize(("file", "variant"), CASES, ids=named)
def test_smoke_builds(file, variant, sie_run, mae_run):
    runs = {"resnet": sie_run, "vit": mae_run}
    job = experiment.build(made(file, variant, runs))
    if (file, variant) in BUILT:
        assert job.config["backbone"]["architecture"].startswith(variant[:3])
        return
    lowered = programs.lower_job(job)
    saved = job.config["method"]
    assert saved["name"] == made(file, variant, runs).method.name
    if "num_classes" in saved:
        assert saved["num_classes"] == len(job.class_names)
    if not job.total_steps:
        assert lowered.train_step is None
        assert job.evaluations
        return
    assert job.total_steps == 3
    state, metrics = lowered.train_step.out_info
    assert metrics["loss"].shape == ()
    assert metrics["learning_rate"].shape == ()
    shapes = job.shapes()["views"].shape
    assert shapes[0] == job.batch_size == 8
    assert state.step.shape == ()
    assert job.steps_per_epoch == job.examples // 8


@pytest.mark.parametrize(("file", "variant"), TRAINED, ids=named)
def test_smoke_trains(file, variant, tmp_path):
    job = experiment.build(made(file, variant, {}))
    assert loop.run(job, tmp_path) == loop.FINISHED
    rows = log.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["epoch"] == 1 / job.steps_per_epoch
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert rows[0]["learning_rate"] == pytest.approx(float(job.optimizer.rates["learning_rate"](0)))
    judged = {name for name in rows[-1] if name.startswith("val/")}
    assert {name.split("/")[1] for name in judged} == {e.name for e in job.evaluations}
    shares = [rows[-1][name] for name in judged if "/top" in name or "/accuracy" in name]
    assert shares
    held_out = job.sets["val"].examples * job.sets["val"].shapes()["views"].shape[1]
    for share in shares:  # of so many views, or of as many at each of four angles
        assert 0 <= share <= 1
        assert share * held_out * 4 == pytest.approx(round(share * held_out * 4), abs=1e-3)


def test_sie_trains_and_leaves_a_report(tmp_path):
    job = experiment.build(load(CONFIGS / "sie.py").get_config("smoke"))
    loop.run(job, tmp_path)
    page = report.write(tmp_path)
    figures = {file.stem for file in (tmp_path / "figures").glob("*.png")}
    of_sets = {f"{kind}_{name}" for kind in ("spectrum", "projection") for name in ("train", "val")}
    curves = {name for name in figures if name.startswith("curve_")}
    assert {"curve_loss", "curve_top1", "curve_r2"} < curves
    assert figures - curves == {"examples", *of_sets}
    assert page.read_text().count("data:image/png;base64,") == len(figures)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["total_steps"] == 3
    assert saved["method"]["equivariance_factor"] == 0.45


def share_right(folder, layer_of):
    """Top-1 and top-5 of a linear layer on the held-out features that a run has kept."""
    _, _, params, _ = checkpoint.read_network(folder / "checkpoints")
    kept, layer = np.load(folder / "features_val.npz"), layer_of(params)
    logits = kept["representation"] @ layer["kernel"] + layer["bias"]
    logits = logits.reshape(-1, logits.shape[-1])
    labels = np.repeat(kept["label"], kept["representation"].shape[1])
    return [np.mean((logits.argsort()[:, -k:] == labels[:, None]).any(1)) for k in (1, 5)]


LAYERS = {
    "linear": lambda params: params["classification-all-linear"]["linear_0"],
    "finetune": lambda params: params["classifier"],
}
TOLD = {"linear": "clean, 3 steps", "finetune": "fine-tuned, 3 steps"}


@pytest.mark.parametrize("words", LAYERS)
def test_a_checkpoint_of_each_kind_is_evaluated_and_read_in_one_table(
    words, sie_run, vicreg_run, simclr_run, classifier_run, tmp_path
):
    kinds = {"sie": sie_run, "vicreg": vicreg_run, "simclr": simclr_run}
    kinds["supervised"] = classifier_run
    folders, expected = list(kinds.values()), {}
    for kind, run in kinds.items():
        config = load(CONFIGS / "linear.py").get_config(f"{words},smoke")
        config.init_from, config.cache.folder = str(run), str(tmp_path / "features")
        folders.append(tmp_path / kind)
        assert loop.run(experiment.build(config), folders[-1]) == loop.FINISHED
        assert log.read_metrics(folders[-1])[-1]["val/knn/k"] == 5
        expected[kind, "online", "all", TOLD[words]] = share_right(folders[-1], LAYERS[words])
    rows = table.rows(table.join([table.read(folder) for folder in folders]))
    found = {(row.label, row.encoder, row.part, row.protocol): row.values for row in rows}
    for row, scores in expected.items():
        for title, score in zip(("top-1", "top-5"), scores, strict=True):
            assert found[row][title] == [pytest.approx(score)], (row, title)
    [head, _, first, *_] = table.markdown(table.cells(rows)).splitlines()
    assert head.startswith("| method | encoder | part | protocol | top-1 | top-5 |")
    assert first.startswith(f"| sie | online | all | {TOLD[words]} |")


def test_an_equivariant_backbone_learns_without_labels(tmp_path):
    config = load(CONFIGS / "sie.py").get_config("simclr,smoke")
    config.backbone.name, config.backbone.architecture = "gresnet", "p4resnet18"
    said = ["backbone.name", "backbone.architecture"]
    job = experiment.build(config, overridden=said)
    assert "stem" not in job.config["backbone"]  # which only the file's own network takes
    assert loop.run(job, tmp_path) == loop.FINISHED
    assert "val/knn/top1" in log.read_metrics(tmp_path)[-1]
    text = probing.of_run(trained.load(tmp_path), 2)
    assert "predicted: c4 at 16x16" in text
    assert "Equivariance error by layer" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vicrag", "Did you mean 'vicreg'"),
        ("sie,smok", "Did you mean 'smoke'"),
        ("sie,vicreg", "no variant 'vicreg'"),
        ("sie,smoke,smoke", "once each"),
    ],
)
def test_unknown_words(words, message):
    with pytest.raises(ValueError, match=message):
        load(CONFIGS / "sie.py").get_config(words)


def changed(**fields):
    config = load(CONFIGS / "sie.py").get_config("smoke")
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 12}, "does not divide over 8 devices"),
        ({"mesh__data": 16}, "does not fit 8 device"),
        ({"method__name": "sieve"}, "Did you mean 'sie'"),
        ({"backbone__name": "resnett"}, "Did you mean 'resnet'"),
        ({"backbone__architecture": "resnet19"}, "resnet18"),
        ({"train__source__name": "scene"}, "Did you mean 'scenes'"),
        ({"optimizer__name": "adamm"}, "adam"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"total_steps": 0}, "at least 1"),
        ({"total_steps": -1}, "at least 1"),
        ({"eval_every_steps": -1}, "at least 0"),
        ({"seed": -1}, "at least 0"),
        ({"optimizer__learning_rate": -0.1}, "neither may be below 0"),
        ({"optimizer__weight_decay": -0.1}, "neither may be below 0"),
        ({"profile_steps": (2, 9)}, "last <= 3"),
        ({"best": "val/nearest/top1"}, "of no evaluation"),
        ({"online__features": ("projection",)}, "does not give; there is representation"),
        ({"evals__knn__k": 100}, "between 1 and the 20 examples"),
        ({"train__order": "epoch"}, "Did you mean 'epochs'"),
        ({"norm__momentum": 2.0}, "momentum above 0"),
        ({"log_every_steps": 0}, "at least 1"),
        ({"keep_checkpoints": 0}, "at least 1"),
        ({"profile_steps": (3, 2)}, "first <= last"),
        ({"accumulate": 2}, "Set accumulate=1"),
        ({"method__equi": 32}, "32"),
        ({"method__projector": "16-x"}, "16-x"),
        ({"train__source__image_size": 20}, "20x20 do not fit"),
        ({"norm__groups": 3}, "groups=3"),
    ],
)
@pytest.mark.usefixtures("nothing_compiles")
def test_bad_input_is_refused_before_anything_is_compiled(fields, message, tmp_path):
    with pytest.raises(Refusal, match=message):
        loop.run(experiment.build(changed(**fields)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", ["approximate27", "approximate29"])
@pytest.mark.usefixtures("nothing_compiles")
def test_an_inexact_network_is_refused_before_anything_is_compiled(variant, tmp_path):
    config = load(CONFIGS / "rotmnist.py").get_config(f"{variant},smoke")
    config.check = "eror"
    with pytest.raises(ValueError, match="Did you mean 'error'"):
        experiment.build(config)
    config.check = "error"
    with pytest.raises(ValueError, match="NOT equivariant from pool2 on"):
        loop.run(experiment.build(config), tmp_path)
    exact = load(CONFIGS / "rotmnist.py").get_config("exact,smoke")
    exact.check = "error"
    with pytest.raises(AssertionError, match="compiled"):
        loop.run(experiment.build(exact), tmp_path / "exact")


def test_one_duration_and_only_one():
    both = changed(total_epochs=2)
    with pytest.raises(ValueError, match="exactly one of the two"):
        experiment.build(both)
    job = experiment.build(both, overridden=["total_epochs"])
    assert job.total_steps == 2 * job.steps_per_epoch
