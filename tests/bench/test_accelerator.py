"""The bench for accelerators runs here in tiny form; torch's part where torch is."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time

import pytest

from jaxequi.bench import _apart, _torch, accelerator

TINY = accelerator.TINY_BATCH


@pytest.mark.parametrize("name", accelerator.BATCH)
def test_every_step(name):
    one = json.loads(json.dumps(accelerator.ours(name, "bfloat16", True, 1)))  # f32: other tests
    assert one["device"] == "cpu"
    assert math.isclose(one["examples_per_second"], TINY / one["seconds"])
    assert math.isclose(one["flops_per_second"], one["flops"] / one["seconds"])
    assert one["flops"] > 1e6


def test_what_fails_fails_alone_and_the_rest_is_told_as_it_comes(monkeypatch, capfd):
    def apart(patience, measure, name, kind, tiny, repeats):
        assert (patience, tiny, repeats) == (300, True, 2)
        if (name, kind, measure) == ("mae", "float32", accelerator.ours):
            return {"error": "why"}
        return {"seconds": 1}

    monkeypatch.setattr(_apart, "call", apart)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    found = accelerator.run(tiny=True, repeats=2)
    both = {"float32": {"seconds": 1}, "bfloat16": {"seconds": 1}}
    assert found.pop("jax")
    assert found.pop("torch") == dict.fromkeys(_torch.STEPS, both)
    assert found.pop("mae") == {"float32": {"error": "why"}, "bfloat16": {"seconds": 1}}
    assert found == dict.fromkeys(set(accelerator.BATCH) - {"mae"}, both)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {"step": "mae", "dtype": "float32", "of": "ours", "error": "why"} in lines
    assert {"step": "mae", "dtype": "float32", "of": "torchs", "seconds": 1} in lines
    assert len(lines) == 2 * (len(accelerator.BATCH) + len(_torch.STEPS))


def test_a_process_of_its_own(capfd):
    assert _apart.call(60, os.getpid) not in (None, os.getpid())
    assert _apart.call(60, math.sqrt, -1)["error"].startswith("ValueError: ")
    assert "Traceback" in capfd.readouterr().err
    assert _apart.call(60, os._exit, 3) == {"error": "its process ended with 3"}
    assert _apart.call(60, os.abort) == {"error": "its process ended with -6"}
    assert _apart.call(0.1, time.sleep, 600) == {"error": "not done in 0.1 s"}


def test_a_measurement_in_its_process():
    one = _apart.call(300, accelerator.ours, "p4resnet44", "float32", True, 1)
    assert one["seconds"] > 0


NO_TORCH = importlib.util.find_spec("torch") is None


@pytest.mark.skipif(NO_TORCH, reason="torch, up to 5 GB, is an extra: pip '.[torch]'")
@pytest.mark.parametrize("kind", accelerator.DTYPES)
@pytest.mark.parametrize("name", _torch.STEPS)
def test_torch_takes_the_same_steps(name, kind):
    one = _torch.measure(name, kind, 2, 32, 1)
    assert math.isclose(one["examples_per_second"], 2 / one["seconds"])
