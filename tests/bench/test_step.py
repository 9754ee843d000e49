"""The bench of a config's step: its numbers are those of the program that the loop runs."""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_a_config_is_measured_and_printed_as_json():
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "jaxequi.bench", "--config=configs/unequivariance.py:smoke"]
    done = subprocess.run(
        [*command, "--steps=3"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == "data 1 x fsdp 1 on 1 cpu device(s)"
    assert found["batch_size"] == 8
    # a 3x3 kernel with its bias (one field of C4 has one bias), then two classes of one number
    assert found["parameters"] == 9 + 1 + 2 * 1 + 2
    step, reading = found["step_seconds"], found["input_seconds"]
    assert 0 < step["min"] <= step["median"] <= step["max"]
    assert math.isclose(found["examples_per_second"], 8 / step["median"])
    assert math.isclose(found["input_share"], reading / (reading + step["median"]))
    assert math.isclose(found["flops_per_second"], found["flops"] / step["median"])
    # forward and backward of 8 images: at least the multiplications of the layer itself
    assert found["flops"] > 2 * 8 * 4 * 9 * 16 * 16
    # a state of 14 numbers with its momenta, and 8 images of 32 pixels
    assert found["argument_bytes"] >= 2 * 14 * 4 + 8 * 32 * 32 * 3


def test_an_unknown_suite_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "jaxequi.bench", "dat"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Did you mean 'data'" in done.stderr
