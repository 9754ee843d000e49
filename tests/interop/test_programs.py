"""The programs: the commands of README.md, and refusals that leave nothing behind."""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, up to 5 GB, is an extra")

from configs import classification
from configs import sie as sie_config
from jaxequi.experiment import trained
from jaxequi.interop import files, formats, networks

ROOT = pathlib.Path(__file__).parent.parent.parent


def run(program, *arguments):
    command = [sys.executable, "-m", f"jaxequi.interop.{program}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def refused(result, message):
    assert result.returncode == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert message in line
    return True


def test_a_checkpoint_of_the_published_groups_goes_in_and_out(tmp_path, filled):
    config = classification.get_config("digits")
    config.backbone.width = 2
    variables = filled(networks.shapes(config, 10))
    state = formats.find("gresnet").write(config, variables, 0).content
    content = {
        "epoch": 4,
        "state_dict": {f"model.{k}": torch.from_numpy(v) for k, v in state.items()},
        "hyper_parameters": {"args": argparse.Namespace(width=2)},
    }
    torch.save(content, tmp_path / "p4.ckpt")
    words = ("--config=configs/classification.py:digits", "--config.backbone.width=2")
    result = run("import_torch", f"--file={tmp_path / 'p4.ckpt'}", *words)
    assert result.returncode == 0, result.stderr
    assert "format gresnet" in result.stdout
    assert "left out: 20 such as bn1.num_batches_tracked" in result.stdout
    network = trained.load(tmp_path / "p4")
    assert network.step == 4
    np.testing.assert_equal(network.params, variables["params"])
    result = run("export_torch", tmp_path / "p4", f"--file={tmp_path / 'again.pth'}")
    assert result.returncode == 0, result.stderr
    assert "P4ResNet18(width=2, num_classes=10, groupcosetmaxpool=False)" in result.stdout
    np.testing.assert_equal(files.read_pth(tmp_path / "again.pth"), state)
    assert {p.name for p in tmp_path.iterdir()} == {"p4.ckpt", "p4", "again.pth"}


def test_a_run_goes_to_a_file_of_sie(tmp_path, filled):
    config = sie_config.get_config("sie,paper")
    config.backbone.architecture = "resnet18_small_end"
    config.method.projector, config.method.equi = "24-24-24", 64
    config.online.every_part = True
    variables = filled(networks.shapes(config, 55))
    networks.save(tmp_path / "run", config.copy_and_resolve_references(), variables, 12)
    file = tmp_path / "new" / "model.pth"
    result = run("export_torch", tmp_path / "run", f"--file={file}", "--epoch=5")
    assert result.returncode == 0, result.stderr
    assert "loads: main.py --experience SIE --arch resnet18_small_end --mlp 24" in result.stdout
    assert "left out: label_embedding-equi, label_representation-equi, relation" in result.stdout
    words = ["--config=configs/sie.py:sie,paper", "--config.method.projector=24-24-24"]
    words += ["--config.method.equi=64", "--config.backbone.architecture=resnet18_small_end"]
    result = run("import_torch", f"--file={file}", *words)
    assert result.returncode == 0, result.stderr
    network = trained.load(tmp_path / "new" / "model")
    assert network.step == 5
    np.testing.assert_equal(network.params["backbone"], variables["params"]["backbone"])
    np.testing.assert_equal(network.params["predictor"], variables["params"]["predictor"])
    views = np.zeros((2, 1, 32, 32, 3), np.float32)
    assert network.encode(network.params, network.extra, views)["embedding"].shape == (2, 1, 24)
    with pytest.raises(ValueError, match="has checkpoints already"):
        networks.save(tmp_path / "run", config, variables, 12)


def test_refusals_leave_nothing_behind(tmp_path, filled):
    config = sie_config.get_config("sie,smoke")
    variables = filled(networks.shapes(config, 7))
    networks.save(tmp_path / "run", config.copy_and_resolve_references(), variables, 3)
    result = run("export_torch", tmp_path / "run", f"--file={tmp_path / 'new' / 'model.pth'}")
    assert refused(result, "the original has no such backbone: stem='small'")
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "other.pth")
    result = run("import_torch", f"--file={tmp_path / 'other.pth'}")
    assert refused(result, "no format has the names of this file (1 arrays: conv1.weight")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "other.pth"}
