"""Every config file, every variant: it builds, and its `smoke` trains, saves and reports."""

import importlib.util
import json
import pathlib

import pytest

from jaxequi import experiment, report
from jaxequi.train import log, loop

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def load(file: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# configs/evals.py judges a checkpoint; tests/test_evaluation.py makes one.
FILES = [file for file in sorted(CONFIGS.glob("*.py")) if file.stem not in ("common", "evals")]
CASES = [(file, variant) for file in FILES for variant in load(file).VARIANTS]
# Compiling takes most of a test's time: one variant a method, one a family.
TRAINED = [(file, next(iter(load(file).VARIANTS))) for file in FILES if file.stem != "sie"]
TRAINED += [
    (CONFIGS / "sie.py", variant)
    for variant in ("only_equi", "vicreg", "simclr", "simclr_equimod", "simclr_augself_rotcolor")
]


def named(value):
    return getattr(value, "stem", value)


@pytest.mark.parametrize(("file", "variant"), CASES, ids=named)
def test_smoke_builds(file, variant):
    job = experiment.build(load(file).get_config(f"{variant},smoke"))
    with job.batches(0, 1) as batches:
        batch = next(batches)
    state, metrics = loop.lower_job(job, batch).train_step.out_info
    assert metrics["loss"].shape == ()
    assert state.step.shape == ()


@pytest.mark.parametrize(("file", "variant"), TRAINED, ids=named)
def test_smoke_trains(file, variant, tmp_path):
    job = experiment.build(load(file).get_config(f"{variant},smoke"))
    assert loop.run(job, tmp_path) == loop.FINISHED
    rows = log.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, job.total_steps + 1))
    assert "loss" in rows[-1]


def test_sie_trains_and_leaves_a_report(tmp_path):
    job = experiment.build(load(CONFIGS / "sie.py").get_config("smoke"))
    loop.run(job, tmp_path)
    page = report.write(tmp_path)
    assert page.read_text().count("data:image/png;base64,") == 4
    figures = {file.stem for file in (tmp_path / "figures").glob("*.png")}
    assert figures == {"curves", "examples", "spectrum_val", "projection_val"}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["total_steps"] == 3
    assert saved["method"]["equivariance_factor"] == 0.45


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
        ({"log_every_steps": 0}, "at least 1"),
        ({"keep_checkpoints": 0}, "at least 1"),
        ({"profile_steps": (3, 2)}, "first <= last"),
        ({"accumulate": 2}, "Set accumulate=1"),
        ({"method__equi": 32}, "32"),
        ({"method__projector": "16-x"}, "16-x"),
        ({"train__source__image_size": 20}, "20x20 do not fit"),
        ({"backbone__norm_groups": 3}, "groups=3"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(fields, message, tmp_path, monkeypatch):
    def compiled(self, *args, **options):
        raise AssertionError("compiled")

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)
    with pytest.raises(ValueError, match=message):
        loop.run(experiment.build(changed(**fields)), tmp_path)


@pytest.mark.parametrize("variant", ["approximate27", "approximate29"])
def test_an_inexact_network_is_refused_before_anything_is_compiled(variant, tmp_path, monkeypatch):
    config = load(CONFIGS / "rotmnist.py").get_config(f"{variant},smoke")
    config.check = "eror"
    with pytest.raises(ValueError, match="Did you mean 'error'"):
        experiment.build(config)
    config.check = "error"

    def compiled(self, *args, **options):
        raise AssertionError("compiled")

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)
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
