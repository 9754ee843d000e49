"""Parameter counts, exact and inexact sizes, and options of the steerable ResNets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.methods.supervised import Classifier
from jaxequi.models import steerable_resnet
from jaxequi.models.steerable_resnet import Bottleneck, SteerableResNet
from jaxequi.probes import exactness

# with 1000 classes: the reference's default widths, and the fast ones
COUNTS = {
    "c1resnet18": (11774632, 8021736),
    "d1resnet18": (11523720, 4011368),
    "c4resnet18": (11454676, 2006184),
    "d4resnet18": (11708472, 1003592),
    "c8resnet18": (11708472, 1003592),
    "d8resnet18": (11877080, 289132),
    "c1resnet50": (25837580, 21778664),
    "d1resnet50": (25660200, 10889832),
    "c4resnet50": (24686640, 5445416),
    "d4resnet50": (24838100, 2723208),
    "c8resnet50": (24838100, 2723208),
    "c1resnet101": (44553900, 37428456),
    "d1resnet101": (44741000, 18714728),
    "c4resnet101": (43374400, 9357864),
    "d4resnet101": (43898500, 4679432),
    "c8resnet101": (43898500, 4679432),
}


def count(backbone):
    network, x = Classifier(backbone, 1000), jnp.zeros((1, 33, 33, 3))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), x, False))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name):
    made = [steerable_resnet.make(name, fast=fast) for fast in (False, True)]
    assert tuple(map(count, made)) == COUNTS[name]
    assert made[0].features == made[0].width * (8 if "18" in name else 32)


def test_groups_that_the_reference_has_not():
    assert steerable_resnet.make("c6resnet18").width == 32  # 78 / sqrt(6)
    assert steerable_resnet.make("d8resnet101").width == 18
    assert steerable_resnet.make("c16resnet18", fast=True).width == 4
    assert count(steerable_resnet.make("d3resnet18")) == pytest.approx(11.7e6, rel=0.05)


@pytest.mark.parametrize(
    ("group", "block"), [(dihedral(4), Bottleneck), (cyclic(8), None)], ids=["d4", "c8"]
)
def test_exact_at_33_and_not_at_32(group, block, keys):
    more = {"block": block} if block else {}
    network = SteerableResNet(group, 1, (1, 1), **more)
    x = np.asarray(jax.random.normal(next(keys), (1, 33, 33, 3)))
    variables = jax.jit(lambda key: network.init(key, x, False))(next(keys))

    @jax.jit
    def apply(x):
        return network.apply(variables, x, False)

    elements = [g for g in range(group.order) if group.exact[g]]
    moved = np.asarray(apply(np.concatenate([planar.act(group, g, x) for g in elements])))
    assert moved.shape == (len(elements), network.features)
    assert np.abs(moved).max() > 0.1
    np.testing.assert_allclose(moved, moved[:1].repeat(len(moved), 0), atol=1e-5 * moved.max())

    even = x[:, 1:, 1:]
    pair = np.concatenate([even, planar.act(group, elements[1], even)])

    def errors(network):
        y = np.asarray(jax.jit(lambda x: network.apply(variables, x, False))(pair))
        return np.abs(y[1] - y[0]).max() / np.abs(y[0]).max()

    assert errors(network) > 1e-2
    assert errors(network.clone(fit=True)) < 1e-5
    assert errors(network.clone(antialias=True)) < errors(network)


@pytest.mark.parametrize(("side", "becomes"), [(33, 33), (34, 65), (32, 33), (9, 33), (224, 225)])
def test_fitted_sides(side, becomes):
    x = np.random.default_rng(0).normal(size=(1, side, side, 1)).astype(np.float32)
    y = np.asarray(steerable_resnet.fitted(jnp.asarray(x)))
    assert y.shape[1:3] == (becomes, becomes)
    group = dihedral(4)
    for g in range(group.order):
        moved = steerable_resnet.fitted(jnp.asarray(planar.act(group, g, x)))
        np.testing.assert_allclose(moved, planar.act(group, g, y), atol=1e-6)
    assert steerable_resnet.fitted(jnp.zeros((1, 32, 65, 1))).shape[1:3] == (33, 65)


def test_what_is_said_of_the_published_size():
    network = steerable_resnet.make("c8resnet18", width=1)
    verdict = exactness.judge_network(network, (1, 224, 224, 3), network.group)
    assert not verdict.exact
    assert (verdict.smaller, verdict.larger) == (193, 225)
    assert "c8 at 224x224: NOT equivariant from conv1 on" in str(verdict)
    assert "nearest exact sizes: 193 and 225" in str(verdict)
    exact = exactness.judge_network(network, (1, 225, 225, 3), network.group)
    assert str(exact).splitlines() == [
        "c8 at 225x225: exact if its filters are, every stride fits its grid",
        "  (elements off the pixel grid interpolate: they are not judged)",
    ]


def test_remat_changes_nothing(keys):
    x = jax.random.normal(next(keys), (2, 9, 9, 3))
    network = SteerableResNet(cyclic(3), 1, (1,))
    variables = jax.jit(lambda key: network.init(key, x, False))(next(keys))

    def loss(params, remat):
        rest = {"params": params, "batch_stats": variables["batch_stats"]}
        y, _ = network.clone(remat=remat).apply(rest, x, True, mutable=["batch_stats"])
        return jnp.sum(y**2)

    a, b = (jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], r) for r in (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), a, b)


def test_half_precision(keys):
    network = SteerableResNet(cyclic(4), 1, (1,), dtype=jnp.bfloat16)
    x = jax.random.normal(next(keys), (1, 33, 33, 3))
    y, variables = jax.jit(lambda key: network.init_with_output(key, x, False))(next(keys))
    assert y.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_refuses():
    with pytest.raises(ValueError, match=r"unknown architecture 'c0resnet18'.*c<N>resnet18"):
        steerable_resnet.make("c0resnet18")
    with pytest.raises(ValueError, match=r"unknown architecture 'c8resnet34'.*d<N>resnet101"):
        steerable_resnet.make("c8resnet34")
    with pytest.raises(ValueError, match="width=8 and fast=True"):
        steerable_resnet.make(width=8, fast=True)
