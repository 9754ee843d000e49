"""torchvision's ResNets: features of its own, parameters as it counts them."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import torchvision

# features of torchvision 0.28 with the weights of `drawn`, on the images of `images`
TORCHVISION = pathlib.Path(__file__).parent / "torchvision_features.npz"
PARAMETERS = {  # as torchvision's documentation counts them
    "resnet34": 21_797_672,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def drawn(state):
    """Weights for a torchvision network, from its names and shapes alone."""
    values = {}
    for seed, name in enumerate(sorted(state)):
        random, shape = np.random.default_rng(seed), state[name].shape
        if name.endswith("num_batches_tracked"):
            values[name] = np.zeros((), np.int64)
        elif len(shape) > 1:
            values[name] = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith(("bias", "mean")):
            values[name] = random.normal(0, 0.1, shape)
        else:
            values[name] = random.uniform(0.3, 0.7, shape)
    return {k: v.astype(np.int64 if v.ndim == 0 else np.float32) for k, v in values.items()}


def images():
    return np.random.default_rng(0).normal(size=(2, 43, 50, 3)).astype(np.float32)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_features_of_torchvision(architecture):
    config = torchvision.described(architecture, 10)
    empty = jax.tree.map(
        lambda s: np.broadcast_to(np.float32(0), s.shape), networks.shapes(config, 0)
    )
    state = drawn(torchvision.write(config, empty, 0).content)
    network = torchvision.read(state, None)
    assert network.config.backbone.architecture == architecture
    file = torchvision.write(network.config, network.variables, 0)
    np.testing.assert_equal(file.content, state)
    assert file.loads == f"torchvision.models.{architecture}(num_classes=10)"
    alone = networks.backbone(network.variables)
    backbone = networks.module(network.config)
    features = jax.jit(lambda v, x: backbone.apply(v, x, False))(alone, images())
    with np.load(TORCHVISION) as stored:
        expected = stored[architecture]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("architecture", "count"), PARAMETERS.items())
def test_networks_have_their_parameters(architecture, count):
    shapes = networks.shapes(torchvision.described(architecture, 1000), 0)
    assert sum(s.size for s in jax.tree.leaves(shapes["params"])) == count


def test_a_narrow_network_out_and_back(filled):
    config = torchvision.described("resnet18", 3)
    config.backbone.width = 8
    variables = filled(networks.shapes(config, 0))
    state = mapping.to_torch(variables, torchvision.TABLE)
    assert state["conv1.weight"].shape == (8, 3, 7, 7)
    assert state["fc.weight"].shape == (3, 64)
    assert "layer4.0.downsample.1.running_mean" in state
    np.testing.assert_equal(torchvision.read(state, config).variables, variables)
    with pytest.raises(ValueError, match="resnet18 has width 64, and this run's 8"):
        torchvision.write(config, variables, 0)
