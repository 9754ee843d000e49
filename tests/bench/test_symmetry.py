"""The suite compares what it says, and the FLOPs of the hybrid network are those of the paper."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxequi.bench import symmetry
from jaxequi.models import octic_vit, vit


def test_the_suite_compares_all_it_names(monkeypatch):
    monkeypatch.setattr(symmetry, "vit_flops", lambda: {"ratio": 0.5})
    found = symmetry.run((32,), 3, 2, (symmetry.Shape(3, 5, 2, 1),), repeats=1)
    assert set(found["mlp"]["C=32"]) == {"forward", "gradient"}
    for measured in (*found["mlp"]["C=32"].values(), found["conv"]["3x3 5px 2->1"]):
        ratio = measured["irreps_seconds"] / measured["plain_seconds"]
        assert measured["ratio"] == pytest.approx(ratio)
        assert measured["plain_seconds"] > 0
    conv = found["conv"]["3x3 5px 2->1"]
    assert (conv["faster"] == "irreps") == (conv["processor_ratio"] < 1)


def test_flops_of_the_hybrid_network():
    # a block of each kind: 0.61 of two plain ones, 39 percent fewer as the paper has it
    def flops(network):
        x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        params = jax.eval_shape(lambda k, x: network.init(k, x, False), jax.random.key(0), x)
        lowered = jax.jit(lambda p, x: network.apply(p, x, False)).lower(params, x)
        return lowered.cost_analysis()["flops"]

    ratio = flops(octic_vit.make("huge", depth=2)) / flops(vit.make("huge", depth=2))
    assert 0.60 < ratio < 0.63
