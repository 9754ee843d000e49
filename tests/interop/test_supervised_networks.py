"""Supervised networks out to torch's names and layouts and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.interop import mapping
from jaxequi.interop.tables import gconv_networks, torchvision
from jaxequi.methods.supervised import Classifier
from jaxequi.models import torchvision_resnet
from jaxequi.models.gresnet import GResNet
from jaxequi.models.one_gconv import OneGConv
from jaxequi.models.rotmnist import RotMnistNet


def resnet(group, **fields):
    return GResNet(group, widths=(2, 4), blocks=(1, 1), **fields)


NETWORKS = {
    "plain": resnet(cyclic(1)),
    "p4": resnet(cyclic(4)),
    "p4m": resnet(dihedral(4)),
    "p4m, an invariant head": resnet(dihedral(4), head="coset_first"),
    "plain, gc": resnet(cyclic(1), separable="gc"),
    "p4, g": resnet(cyclic(4), separable="g"),
    "p4m, gc": resnet(dihedral(4), separable="gc"),
    "rotmnist": RotMnistNet(cyclic(4), planes=2),
    "one layer": OneGConv(cyclic(4)),
}


def filled(network):
    """The variables of a classifier, every number another one."""
    shape = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), shape)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda s: random.normal(size=s.shape).astype(s.dtype), shapes)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stages", ["layers.{0}", "layer{1}"])
def test_round_trip(name, stages):
    ours = filled(Classifier(NETWORKS[name], 3))
    table = gconv_networks.table(NETWORKS[name], stages)
    state = mapping.to_torch(ours, table)
    np.testing.assert_equal(mapping.from_torch(state, ours, table), ours)
    again = mapping.to_torch(mapping.from_torch(state, ours, table), table)
    np.testing.assert_equal(again, state)


def test_names_and_shapes():
    table = gconv_networks.table(NETWORKS["p4m"])
    state = mapping.to_torch(filled(Classifier(NETWORKS["p4m"], 3)), table)
    weights = {k: v.shape for k, v in state.items() if k.endswith("weight") and v.ndim > 1}
    assert weights == {
        "conv1.weight": (2, 3, 1, 3, 3),
        "layers.0.0.conv1.weight": (2, 2, 8, 3, 3),
        "layers.0.0.conv2.weight": (2, 2, 8, 3, 3),
        "layers.1.0.conv1.weight": (4, 2, 8, 3, 3),
        "layers.1.0.conv2.weight": (4, 4, 8, 3, 3),
        "layers.1.0.downsample.0.weight": (4, 2, 8, 1, 1),
        "fc.weight": (3, 32),
    }
    assert "bn1.running_var" in state
    assert "layers.1.0.downsample.1.num_batches_tracked" in state
    pcam = mapping.to_torch(
        filled(Classifier(NETWORKS["p4m"], 3)), gconv_networks.table(NETWORKS["p4m"], "layer{1}")
    )
    assert "layer2.0.conv1.weight" in pcam


def test_the_slices_of_d4_stand_in_the_order_of_the_file():
    group = dihedral(4)
    network = NETWORKS["p4m"]
    ours = filled(Classifier(network, 3))
    state = mapping.to_torch(ours, gconv_networks.table(network))
    # theirs turns and then flips up-down: the same matrices, in other places
    flips = np.eye(2), np.diag([1.0, -1.0])
    theirs = [m @ np.linalg.matrix_power(group.matrices[1], k) for m in flips for k in range(4)]
    at = [int(np.abs(group.matrices - m).sum((1, 2)).argmin()) for m in theirs]
    assert sorted(at) == list(range(8))
    assert at != list(range(8))
    kernel = ours["params"]["backbone"]["layer1_0"]["conv1"]["kernel"]  # [k, k, T, I, O]
    stored = state["layers.0.0.conv1.weight"]  # [O, I, T, k, k]
    np.testing.assert_array_equal(stored, kernel[:, :, at].transpose(4, 3, 2, 0, 1))
    columns = ours["params"]["classifier"]["kernel"].reshape(4, 8, 3)[:, at]
    np.testing.assert_array_equal(state["fc.weight"], columns.reshape(32, 3).T)


def test_torchvision_round_trip():
    ours = filled(Classifier(torchvision_resnet.make("resnet18", width=8), 3))
    state = mapping.to_torch(ours, torchvision.TABLE)
    assert state["conv1.weight"].shape == (8, 3, 7, 7)
    assert state["fc.weight"].shape == (3, 64)
    assert "layer4.0.downsample.1.running_mean" in state
    np.testing.assert_equal(mapping.from_torch(state, ours, torchvision.TABLE), ours)
