"""The index of small models: each row is whole, and its commands make what it says."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

import jax
import pytest

from jaxequi import cli, experiment, main
from jaxequi.interop import networks, pretrained

ROOT = pathlib.Path(__file__).parent.parent
ROWS = json.loads((ROOT / "docs/zoo.json").read_text())
FIELDS = {
    "name": str,
    "about": str,
    "train": str,
    "take": str,
    "config": str,
    "seed": int,
    "step": int,
    "commit": str,
    "date": str,
    "hardware": str,
    "cpu_seconds": int,
    "metrics": dict,
    "parameters": int,
    "bytes": int,
    "sha256": str,
}


def words(command, module):
    """The arguments of `python -m MODULE ...`."""
    python, dash, named, *rest = shlex.split(command)
    assert (python, dash, named) == ("python", "-m", module)
    return rest


def test_names_are_their_own():
    assert len({row["name"] for row in ROWS}) == len(ROWS) >= 3


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_a_row(row, monkeypatch):
    assert {name: type(value) for name, value in row.items()} == FIELDS
    assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])
    assert re.fullmatch(r"[0-9a-f]{64}", row["sha256"])
    assert row["metrics"]
    monkeypatch.chdir(ROOT)
    folder = f"runs/{row['name']}"
    given = words(row["train"], "jaxequi.main")
    assert f"--config={row['config']}" in given
    cli.arguments(["main", *given], main.FLAGS, [], main.__doc__)
    config, overridden, _ = cli.config(main.FLAGS)
    assert main.FLAGS.workdir == folder
    assert config.seed == row["seed"]
    job = experiment.build(config, overridden)
    assert job.total_steps == row["step"]
    given = words(row["take"], "jaxequi.interop.pretrained")
    [run] = cli.arguments(["pretrained", *given], pretrained.FLAGS, ["RUN"], "")
    assert run == folder
    shapes = networks.shapes(config, len(job.class_names))["params"]
    parts = {"backbone"} if pretrained.FLAGS.backbone else {*shapes} - {"online"}
    counted = sum(leaf.size for part in parts for leaf in jax.tree.leaves(shapes[part]))
    assert counted == row["parameters"]
    assert row["bytes"] > 4 * counted
