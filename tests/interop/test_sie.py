"""Files of facebookresearch/SIE: all its classes out and back, and what it could not load."""

from __future__ import annotations

import numpy as np
import pytest
from flax import traverse_util

from configs import sie as sie_config
from jaxequi.interop import files, formats, mapping, networks
from jaxequi.interop.formats import sie

ARGUMENTS = {  # of configs/sie.py -> what tells of them to main.py
    "sie": "--experience SIE {} --equi 64",
    "sie,deep": "--experience SIE {} --equi 64 --hypernetwork deep",
    "sie,mlp": "--experience SIE {} --equi 64 --predictor-type mlp --tf-num-layers 1",
    "sie_novar": "--experience SIENoVar {} --equi 64",
    "sie_rotcolor": "--experience SIERotColor {} --equi 64",
    "only_equi": "--experience SIEOnlyEqui {}",
    "vicreg": "--experience VICReg {}",
    "vicreg_partinv": "--experience VICRegPartInv {} --equi 10",
    "vicreg_equimod": "--experience VICRegEquiMod {}",
    "simclr": "--experience SimCLR {}",
    "simclr_only_equi": "--experience SimCLROnlyEqui {}",
    "simclr_only_equi_rotcolor": "--experience SimCLROnlyEquiRotColor {}",
    "simclr_equimod": "--experience SimCLREquiMod {}",
    "simclr_equimod_rotcolor": "--experience SimCLREquiModRotColor {}",
    "simclr_augself": "--experience SimCLRAugSelf {}",
    "simclr_augself_rotcolor": "--experience SimCLRAugSelfRotColor {}",
}
SHARED = "--arch resnet18_small_end --mlp 24-24-24"


def published(words="sie", **fields):
    """The published experiment with small heads."""
    variant, *more = words.split(",")
    config = sie_config.get_config(",".join([variant, "paper", *more]))
    config.backbone.architecture = "resnet18_small_end"
    if "projector" not in fields and variant != "wigner":
        config.method.projector = "24-24-24"
    if "equi" in config.method:
        config.method.equi = 64
    if config.method.get("free"):
        config.method.free = 10
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


# its irreps are those of the published widths
WIGNER = {"method__equi": 256, "backbone__architecture": "resnet18"}


def written(config, filled, classes=55):
    return sie.write(config, filled(networks.shapes(config, classes)), 0)


def test_every_class_is_named_with_its_arguments():
    assert {a.split()[1] for a in ARGUMENTS.values()} == set(sie.EXPERIENCES)
    for words, arguments in ARGUMENTS.items():
        assert sie.original(published(words)) == arguments.format(SHARED)
    predictor = {"name": "hypernetwork", "hidden": "8-8", "bias": True, "relu": True}
    arguments = sie.original(published("sie", method__predictor=predictor))
    assert arguments.endswith("--equi 64 --predictor 8-8 --bias-hypernet --predictor-relu")


TREES = (  # one of each kind
    "sie",
    "sie,deep",
    "sie_novar,mlp",
    "sie_rotcolor",
    "only_equi",
    "vicreg_equimod",
    "vicreg_partinv",
    "simclr_augself_rotcolor",
)


@pytest.mark.parametrize("words", TREES)
def test_out_and_back(words, filled):
    config = published(words)
    variables = filled(networks.shapes(config, 55))
    assert formats.of_run(config) == "sie"
    file = sie.write(config, variables, 12)
    assert file.loads == f"main.py {sie.original(config)}"
    assert not file.left_out
    state, epoch = files.state_dict(file.content)
    assert epoch == 12
    assert formats.of_file(state) == "sie"
    config.probe_every_part = True  # no file of theirs has these heads, whatever the config says
    network = sie.read(state, config.copy_and_resolve_references())
    np.testing.assert_equal(network.variables, variables)
    [group] = file.content["optimizer"]["param_groups"]
    assert len(group["params"]) == len([k for k in state if k.endswith(("weight", "bias"))])


@pytest.mark.parametrize("variant", ["sie", "wigner"])
def test_a_narrow_network_with_every_head_out_and_back(variant, filled):
    variables = filled(networks.shapes(sie_config.get_config(f"{variant},smoke"), 7))
    state = mapping.to_torch(variables, sie.TABLE)
    np.testing.assert_equal(mapping.from_torch(state, variables, sie.TABLE), variables)


def test_a_backbone_alone_out_and_back(filled):
    for architecture in ("resnet18_small_end", "resnet_18_splitpathways"):
        config = published(backbone__architecture=architecture)
        variables = filled(networks.shapes(config, 55))
        config.method = None
        file = sie.write(config, variables, 0)
        assert "final_weights" in file.loads
        assert formats.of_file(file.content) == "sie"
        network = sie.read(file.content, published(backbone__architecture=architecture))
        assert network.config.method is None
        expected = {"backbone": variables["params"]["backbone"]}
        np.testing.assert_equal(network.variables["params"], expected)


def test_heads_that_theirs_does_not_have_are_left_out_and_named(filled):
    config = published(online__every_part=True)
    variables = filled(networks.shapes(config, 55))
    file = sie.write(config, variables, 0)
    [line] = file.left_out
    assert line == (
        "label_embedding-equi, label_representation-equi, relation_embedding-inv, "
        "relation_representation-inv: the original asks no part for what it should not know"
    )
    state, _ = files.state_dict(file.content)
    assert not [k for k in state if "classifier_equi" in k or "angles_inv" in k]
    network = sie.read(state, config.copy_and_resolve_references())
    flat, kept = (traverse_util.flatten_dict(v) for v in (variables, network.variables))
    np.testing.assert_equal(kept, {path: flat[path] for path in kept})
    assert {path[2] for path in flat if path not in kept} == set(line.split(":")[0].split(", "))
    assert not network.config.online.every_part


@pytest.mark.parametrize(
    ("words", "fields", "message"),
    [
        ("sie", {"backbone__stem": "small"}, "stem='small', and theirs is 7x7 with a pool"),
        ("sie", {"backbone__width": 16, "method__equi": 16}, "width=16, and theirs is 64"),
        ("sie", {"backbone__architecture": "resnet10"}, "architecture='resnet10', and theirs are"),
        ("wigner", WIGNER, "SIE has no predictor 'wigner'"),
        ("sie_rotcolor,mlp", {}, "SIERotColor has no predictor 'mlp'"),
        ("sie", {"method__relation": "all"}, "no class with .*relation='all'"),
        ("sie_novar", {"method__relation": "rotation+color"}, "no class with .*vary_prediction=F"),
        ("vicreg_equimod", {"method__relation": "rotation+color"}, "only SIE, SIENoVar, SIERotC"),
    ],
)
def test_what_the_original_could_not_load_is_refused(words, fields, message):
    with pytest.raises(ValueError, match=message):
        sie.write(published(words, **fields), {}, 0)


def test_a_run_without_heads_is_refused(filled):
    with pytest.raises(ValueError, match="this run trained none; --backbone writes"):
        written(published(online__features=()), filled)


def test_another_number_of_classes_is_refused_and_its_backbone_is_not(filled):
    config = published()
    variables = filled(networks.shapes(config, 12))
    with pytest.raises(ValueError, match="tell 55 classes, and those of this run 12; --backbone"):
        sie.write(config, variables, 0)
    config.method = None
    assert "conv1.weight" in sie.write(config, variables, 0).content


def test_the_embedded_runs_are_refused_for_their_backbone():
    for variant in ("sie", "vicreg"):
        config = sie_config.get_config(variant)
        for method in (config.method, None):
            config.method = method
            with pytest.raises(ValueError) as error:
                sie.write(config, {}, 0)
            assert "no such backbone: stem='small'" in str(error.value)
            assert "width=16" in str(error.value)
            assert "architecture='resnet10'" in str(error.value)


def test_a_checkpoint_of_another_method_shows_the_difference(filled):
    state, _ = files.state_dict(written(published(), filled).content)
    with pytest.raises(ValueError) as error:
        sie.read(state, published("vicreg"))
    assert "- projector.0.weight (for params/projector/linear_0/kernel" in str(error.value)
    assert "+ projector_inv.0.weight" in str(error.value)
    assert "+ predictor.hypernet.net.0.weight" in str(error.value)
    with pytest.raises(ValueError, match=r"give --config=configs/sie\.py:VARIANT,paper"):
        sie.read(state, None)
