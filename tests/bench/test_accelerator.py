"""The bench for accelerators runs here in tiny form; torch's part where torch is."""

from __future__ import annotations

import importlib.util
import json
import math

import jax.numpy as jnp
import pytest

from jaxequi.bench import _torch, accelerator


def test_every_step(monkeypatch):
    monkeypatch.setattr(_torch, "run", lambda *given: given)
    monkeypatch.setattr(accelerator, "DTYPES", {"bfloat16": jnp.bfloat16})  # f32 is the tests' own
    found = json.loads(json.dumps(accelerator.run(tiny=True, repeats=1)))
    assert found["device"] == "cpu"
    assert set(accelerator.BATCH) < set(found)
    for name in accelerator.BATCH:
        [one] = found[name].values()
        assert math.isclose(one["examples_per_second"], accelerator.TINY_BATCH / one["seconds"])
        assert math.isclose(one["flops_per_second"], one["flops"] / one["seconds"])
        assert one["flops"] > 1e6


NO_TORCH = importlib.util.find_spec("torch") is None


@pytest.mark.skipif(NO_TORCH, reason="torch, up to 5 GB, is an extra: pip '.[torch]'")
def test_torch_takes_the_same_steps():
    found = _torch.run(dict.fromkeys(_torch.STEPS, 2), dict.fromkeys(_torch.STEPS, 32), 1)
    for name in _torch.STEPS:
        for one in found[name].values():
            assert math.isclose(one["examples_per_second"], 2 / one["seconds"])
