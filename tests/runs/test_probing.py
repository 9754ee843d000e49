"""The probe: what it says and draws of a network, and of a run from the command line."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxequi.groups.planar import cyclic
from jaxequi.models.gresnet import GResNet
from jaxequi.models.rotmnist import RotMnistNet
from jaxequi.probes import exactness
from jaxequi.runs import probing

ROOT = pathlib.Path(__file__).parent.parent.parent


def call(*arguments, cache):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "jaxequi.probe", *map(str, arguments)],
        cwd=ROOT,
        env={**env, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(("size", "broken"), [(27, True), (28, False)])
def test_prediction_measurement_and_figures(size, broken, keys):
    network = RotMnistNet(cyclic(4), planes=1)
    images = np.asarray(jax.random.normal(next(keys), (2, size, size, 3)))
    variables = jax.jit(lambda key: network.init(key, images, False))(next(keys))
    text, figures = probing.probe(network, variables, images, cyclic(4), regular=True)
    assert ("NOT equivariant from pool2 on" in text) == broken
    assert ("measured: breaks from pool2 on" in text) == broken
    assert ("measured: no layer breaks" in text) != broken
    assert set(figures) == {"equivariance", "maps"}
    titles = [axis.get_title().split("\n")[0] for axis in figures["maps"].axes]
    drawn = ["image", "conv1", "conv2", "pool2", *(f"conv{i}" for i in range(3, 8))]
    assert [title for title in titles if title] == drawn


@pytest.mark.parametrize("head", ["slices", "coset_last"])
def test_a_head_that_keeps_the_slices_is_named(head, keys):
    network = GResNet(cyclic(4), widths=(1, 1), blocks=(1, 1), head=head)
    images = np.asarray(jax.random.normal(next(keys), (2, 9, 9, 3)))
    variables = jax.jit(lambda key: network.init(key, images, False))(next(keys))
    text, _ = probing.probe(network, variables, images, cyclic(4), regular=True)
    assert "measured: no layer breaks" in text
    assert ("the output is not invariant" in text) == (head == "slices")


def test_a_deep_network_is_drawn_in_parts():
    network = GResNet(cyclic(4), widths=(1, 1, 1), blocks=(7, 7, 7))
    verdict = exactness.judge_network(network, (1, 32, 32, 3), cyclic(4))
    drawn = probing._drawn(verdict)
    assert {"stem", "layer2_0", "layer3_6"} <= drawn
    assert len(drawn) <= probing.MOST_MAPS + 1


def test_a_run_and_its_report(classifier_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    done = call(f"--run={run}", "--images=4", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checkpoint" not in done.stderr  # what the library that reads them logs
    assert "measured: breaks from pool2 on" in done.stdout
    assert "accuracy of 4 images: upright" in done.stdout
    page = (run / "report.html").read_text()
    assert "Equivariance error by layer" in page
    assert "Maps of a turned image" in page
    assert (run / "figures" / "circle.png").exists()


def test_bad_input_is_one_clean_message(tmp_path):
    for argument, message in (
        (f"--run={tmp_path}", "give the folder of a run"),
        ("extra", "not 1 arguments ('extra')"),
    ):
        done = call(argument, cache=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
