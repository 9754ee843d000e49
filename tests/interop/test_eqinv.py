"""Files of EqInv: each of the four told by its names, read whole or refused, and written."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.interop import files, formats, mapping, networks
from jaxequi.interop.formats import eqinv, torchvision

KINDS = {  # some of the original's names of each
    "encoder": {"f.0.weight", "f.1.running_mean", "f.4.0.conv1.weight", "f.7.1.bn2.bias"},
    "eqinv": {"model.f.5.0.downsample.1.weight", "mask_layer", "mlp.3.bias", "mlp.1.weight"},
    "baseline": {"model.f.0.weight", "model.f.7.1.conv2.weight", "fc.bias"},
    "scratch": {"model.conv1.weight", "model.layer4.1.bn2.running_var", "fc.weight"},
}


def config_of(kind, architecture="resnet18"):
    config = torchvision.described(architecture, 3)
    if kind == "eqinv":
        config.train.num_views = 2
        config.method = {"name": "eqinv", "num_classes": 3, "examples": 1}
    return config


def variables_of(kind, filled, architecture="resnet18"):
    template = networks.shapes(config_of(kind, architecture), 3)
    if kind == "encoder":
        template = {name: {"backbone": tree["backbone"]} for name, tree in template.items()}
    template.pop("own", None)
    return filled(template)


@pytest.mark.parametrize("kind", KINDS)
def test_each_file_is_told_by_its_names_and_read_whole(kind, filled):
    variables = variables_of(kind, filled)
    state = mapping.to_torch(variables, eqinv._table(kind))
    if kind == "encoder":
        state |= {"g.0.weight": np.zeros((4, 512), np.float32), "g.3.bias": np.zeros(2, np.float32)}
    assert KINDS[kind] <= set(state)
    wrapped = {"state_dict": {f"module.{name}": array for name, array in state.items()}}
    state, _ = files.state_dict(wrapped)
    assert formats.of_file(state) == "eqinv"
    network = eqinv.read(state, None)
    own = network.variables.pop("own", None)
    np.testing.assert_equal(network.variables, variables)
    assert (own is None) == (kind != "eqinv")
    assert network.config.backbone.architecture == "resnet18"
    method = {"encoder": None, "eqinv": "eqinv"}.get(kind, "supervised")
    assert (network.config.method and network.config.method.name) == method
    assert any("projection of stage 1" in line for line in network.left_out) == (kind == "encoder")
    lacking = next(name for name in state if name.endswith("bn1.weight"))
    broken = {name: array for name, array in state.items() if name != lacking}
    with pytest.raises(Refusal, match="1 missing or of another shape"):
        eqinv.read(broken, None)


def test_what_is_written_is_read_again(filled):
    config, variables = config_of("eqinv", "resnet50"), variables_of("eqinv", filled, "resnet50")
    assert formats.of_run(config) == "eqinv"
    file = eqinv.write(config, {**variables, "own": {"environments": np.zeros((3, 9))}}, 7)
    assert file.content["epoch"] == 7
    assert "module.mask_layer" in file.content["state_dict"]
    assert "file of its own" in file.left_out[0]
    state, epoch = files.state_dict(file.content)
    assert epoch == 7
    network = eqinv.read(state, config)
    network.variables.pop("own")
    np.testing.assert_equal(network.variables, variables)
    alone = config.copy_and_resolve_references()
    alone.method = None
    backbone = {name: {"backbone": tree["backbone"]} for name, tree in variables.items()}
    stage1 = eqinv.write(alone, backbone, 0).content
    assert formats.of_file({**stage1, "g.3.bias": np.zeros(2)}) == "eqinv"
    for field, value, message in (
        ("activation", "gumbel", "one number a feature"),
        ("projector", "64-32", "mlp of 512-128"),
    ):
        other = config.copy_and_resolve_references()
        other.method[field] = value
        with pytest.raises(Refusal, match=message):
            eqinv.write(other, variables, 0)
    with pytest.raises(Refusal, match="and this run a resnet18"):
        eqinv.write(config_of("eqinv"), variables, 0)
