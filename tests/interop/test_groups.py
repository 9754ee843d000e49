"""Networks over groups: names, shapes, and the order of their elements in a file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.interop import mapping
from jaxequi.interop.formats import gresnet, one_gconv, pcam, rotmnist
from jaxequi.methods.supervised import Classifier
from jaxequi.models.gresnet import GResNet
from jaxequi.models.one_gconv import OneGConv
from jaxequi.models.rotmnist import RotMnistNet


def resnet(group, **fields):
    return GResNet(group, widths=(2, 4), blocks=(1, 1), **fields)


NETWORKS = {
    "plain": (gresnet, resnet(cyclic(1))),
    "p4": (gresnet, resnet(cyclic(4))),
    "p4m": (gresnet, resnet(dihedral(4))),
    "p4m, an invariant head": (gresnet, resnet(dihedral(4), head="coset_first")),
    "plain, gc": (gresnet, resnet(cyclic(1), separable="gc")),
    "p4, g": (gresnet, resnet(cyclic(4), separable="g")),
    "p4m, gc": (gresnet, resnet(dihedral(4), separable="gc")),
    "p4 of PCAM": (pcam, resnet(cyclic(4), head="coset_last")),
    "rotmnist": (rotmnist, RotMnistNet(cyclic(4), planes=2)),
    "one layer": (one_gconv, OneGConv(cyclic(4))),
}


def shapes(network):
    """The shapes of a classifier's variables."""
    shape = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
    return jax.eval_shape(lambda x: Classifier(network, 3).init(jax.random.key(0), x, False), shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_out_and_back(name, filled):
    module, network = NETWORKS[name]
    ours, table = filled(shapes(network)), module.table(network)
    state = mapping.to_torch(ours, table)
    np.testing.assert_equal(mapping.from_torch(state, ours, table), ours)


def test_names_and_shapes(filled):
    _, network = NETWORKS["p4m"]
    ours = filled(shapes(network))
    state = mapping.to_torch(ours, gresnet.table(network))
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
    of_pcam = mapping.to_torch(ours, pcam.table(network))
    assert len(of_pcam) == len(state)
    assert {"conv1.weight", "bn1.bias", "layer2.0.conv1.weight", "layer2.0.downsample.1.bias"} <= {
        *of_pcam
    }


def test_the_slices_of_d4_stand_in_the_order_of_the_file(filled):
    group = dihedral(4)
    _, network = NETWORKS["p4m"]
    ours = filled(shapes(network))
    state = mapping.to_torch(ours, gresnet.table(network))
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
