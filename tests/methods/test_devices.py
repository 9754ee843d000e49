"""No device does the work of another one."""

from __future__ import annotations

import ml_collections
import pytest

from configs import eqinv, ipirm, moco, sie
from jaxequi import experiment
from jaxequi.plan import program
from jaxequi.train import programs

METHODS = {
    "moco": (moco, "v2"),  # shuffles its keys
    "eqinv": (eqinv, "eqinv"),  # compares its batch with a table
    "ipirm_mixup": (ipirm, "ipirm_mixup"),  # mixes each image with another one
    "sie": (sie, "sie"),
}


def arithmetic(file, variant, devices):
    """Operations of the products of a step on each of so many devices."""
    config = file.get_config(f"{variant},smoke")
    config.batch_size, config.mesh.data, config.norm.groups = 16, devices, 1
    config.backbone = ml_collections.ConfigDict({"name": "tests.experiment.tiny", "features": 16})
    config.evals, config.eval_every_steps, config.best = {}, 0, None
    if "init_from" in config and "before" in config:
        config.init_from = None
    step, _ = programs.trace_step(experiment.build(config))
    return program.products(step.lower().compile().as_text())


@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_share_the_arithmetic(name):
    """Rows that are picked by number would be held, and computed with, as a whole by each."""
    alone, shared = (arithmetic(*METHODS[name], devices) for devices in (1, 8))
    assert alone > 0
    assert 8 * shared < 1.2 * alone  # what is of the whole batch is small
