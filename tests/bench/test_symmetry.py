"""The suite compares what it says, and the FLOPs of the hybrid network are those of the paper."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxequi.bench import symmetry
from jaxequi.groups.planar import cyclic
from jaxequi.models import gresnet, octic_vit, steerable_resnet, vit


def test_the_suite_compares_all_it_names(monkeypatch):
    monkeypatch.setattr(symmetry, "vit_flops", lambda: {"ratio": 0.5})
    monkeypatch.setattr(symmetry, "on_v5e", dict)  # minutes, where libtpu is installed
    shapes, maps = (symmetry.Shape(3, 5, 2, 1),), (symmetry.Map(3, 4, 2),)

    def small(name, domain):
        return gresnet.GResNet(cyclic(4), (2,), (1,), domain=domain)

    def pairs(vits, convnexts):
        return {name: (small(name, "regular"), small(name, "fourier")) for name in convnexts}

    monkeypatch.setattr(symmetry, "_pairs", pairs)
    monkeypatch.setattr(symmetry, "NETWORKS", {"small": (small, 2, 5)})
    found = symmetry.run(
        (32,), 3, 2, shapes, maps, vits=(), convnexts=("small",), networks=("small",), repeats=1
    )
    assert set(found["mlp"]["C=32"]) == {"forward", "gradient"}
    for measured in (*found["mlp"]["C=32"].values(), found["conv"]["3x3 5px 2->1"]):
        ratio = measured["irreps_seconds"] / measured["plain_seconds"]
        assert measured["ratio"] == pytest.approx(ratio)
        assert measured["plain_seconds"] > 0
    step = found["train_step"]["small"]
    assert step["ratio"] == pytest.approx(step["irreps_seconds"] / step["plain_seconds"])
    assert set(step["compile_seconds"]) == {"plain", "hybrid"}
    tiles, domains = found["tiles"]["3 4px 2"], found["domains"]["small"]
    assert tiles["ratio"] == pytest.approx(tiles["winograd_seconds"] / tiles["native_seconds"])
    assert domains["ratio"] == pytest.approx(
        domains["fourier_seconds"] / domains["regular_seconds"]
    )
    assert set(domains["compile_seconds"]) == {"regular", "fourier"}
    conv = found["conv"]["3x3 5px 2->1"]
    assert (conv["faster"] == "irreps") == (conv["processor_ratio"] < 1)


def test_what_a_cpu_chooses_for_each_layer_and_why():
    network = gresnet.make("p4resnet44", domain="fourier")
    found = symmetry.choices(network, 16, 32)
    assert len(found) == 8
    assert found["3x3 32px 3->64"] == "by channels, XLA's convolution: it lifts"
    # 16 fields of C4, which save 4 - 6 / 4 products each: 40
    told = "by channels, Winograd's products: 40 products saved a number, 200 needed"
    assert found["3x3 32px 64->64"] == told
    told = "by channels, XLA's convolution: 80 products saved a number, 160 needed"
    assert found["3x3 16px 64->128"] == told  # with stride 2
    assert found["3x3 8px 256->256"] == "by irreps of c4: 160 products saved a number, 160 needed"
    assert found["1x1 16px 64->128"] == "by irreps of c4: 80 products saved a number, 80 needed"
    c8 = symmetry.choices(steerable_resnet.make("c8resnet10", domain="fourier", width=8), 2, 65)
    assert c8["3x3 3px 512->512"].startswith("by irreps of c4: 320")
    assert c8["3x3 9px 128->128"].startswith("by channels, XLA's convolution: 80")
    assert c8["1x1 9px 64->128"].startswith("by irreps of c4: 80")


def test_flops_of_the_hybrid_network():
    # a block of each kind: 0.61 of two plain ones, 39 percent fewer as the paper has it
    def flops(network):
        x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        params = jax.eval_shape(lambda k, x: network.init(k, x, False), jax.random.key(0), x)
        lowered = jax.jit(lambda p, x: network.apply(p, x, False)).lower(params, x)
        return lowered.cost_analysis()["flops"]

    ratio = flops(octic_vit.make("huge", depth=2)) / flops(vit.make("huge", depth=2))
    assert 0.60 < ratio < 0.63
