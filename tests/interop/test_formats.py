"""Every format: told by its names, out and back to the last bit, refused where it does not fit."""

from __future__ import annotations

import pathlib
import sys

import jax
import numpy as np
import pytest
from case import Case

from configs import classification, imagenet_p4, rotmnist, sie, unequivariance
from jaxequi import names
from jaxequi.interop import files, formats, networks

FAMILIES = {
    "classification": classification,
    "imagenet_p4": imagenet_p4,
    "rotmnist": rotmnist,
    "sie": sie,
    "unequivariance": unequivariance,
}
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "gcnn"


def config_of(family, words, **fields):
    config = FAMILIES[family].get_config(words)
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def of_groups(architecture, **fields):
    return config_of("classification", "digits", backbone__architecture=architecture, **fields)


def of_pcam(architecture, **fields):
    return config_of("classification", "pcam", backbone__architecture=architecture, **fields)


def classes_of(config):
    """How many classes the data of a config have."""
    return config.method.num_classes or (2 if config.backbone.name == "one_gconv" else 10)


def torchvision(architecture, classes=3):
    return formats.find("torchvision").described(architecture, classes)


NETWORKS = {
    "gresnet": [
        of_groups(name, backbone__width=2)
        for name in ("resnet18", "p4resnet18", "p4mresnet44", "gcp4resnet18", "gcp4mresnet18")
    ]
    + [
        of_groups("p4mresnet18", backbone__width=2, backbone__head="coset_first"),
        config_of("imagenet_p4", "exact,paper"),
    ],
    "pcam": [of_pcam("pcam_resnet44"), of_pcam("pcam_p4resnet44")],
    "rotmnist": [
        config_of("rotmnist", "exact", backbone__planes=2),
        config_of("rotmnist", "plain,two_pools", backbone__planes=2),
    ],
    "one_gconv": [config_of("unequivariance", "even")],
    "torchvision": [torchvision("resnet18")],
}
CASES = [(name, config) for name, configs in NETWORKS.items() for config in configs]


@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_out_and_back(name, config, filled):
    variables = filled(networks.shapes(config, classes_of(config)))
    assert formats.of_run(config) == name
    written = formats.find(name).write(config, variables, 3)
    assert not written.left_out
    state, epoch = files.state_dict(written.content)
    assert epoch in (0, 3)
    assert formats.of_file(state) == formats.of_file(state, config) == name
    network = formats.find(name).read(state, config.copy_and_resolve_references())
    np.testing.assert_equal(network.variables, variables)
    again = formats.find(name).write(network.config, network.variables, 3)
    np.testing.assert_equal(again.content, written.content)
    assert again.loads == written.loads


def test_every_training_has_one_format():
    found = {
        family: {
            formats.of_run(module.get_config(f"{variant}{size}"))
            for variant in module.VARIANTS
            for size in ("", ",paper")
        }
        for family, module in FAMILIES.items()
    }
    assert found == {
        "classification": {"gresnet", "pcam"},
        "imagenet_p4": {"gresnet"},
        "rotmnist": {"rotmnist"},
        "sie": {"sie"},
        "unequivariance": {"one_gconv"},
    }
    for name in names.choices("interop.formats"):
        assert {"matches", "native", "read", "write"} <= set(dir(formats.find(name))), name


# of the published code, run: tests/golden/gcnn/README.md
STORED = {
    "net_resnet18_w4": of_groups("resnet18", backbone__width=4),
    "net_p4resnet18_w4": of_groups("p4resnet18", backbone__width=4),
    "net_p4mresnet44_w2": of_groups("p4mresnet44", backbone__width=2),
    "net_gcp4resnet18_w4": of_groups("gcp4resnet18", backbone__width=4),
    "net_gcp4mresnet44_w3_gcmp": of_groups(
        "gcp4mresnet44", backbone__width=3, backbone__head="coset_first"
    ),
    "net_pcam_p4resnet44": config_of("classification", "pcam"),
    "net_rotmnist_sepcnn_p4_w4": config_of("rotmnist", "exact,two_pools", backbone__planes=4),
    "net_rotmnist_sepcnn_z2_w5": config_of("rotmnist", "plain,two_pools", backbone__planes=5),
}


@pytest.mark.parametrize("name", STORED)
def test_a_file_of_the_published_networks_comes_back_exactly(name):
    state, config = Case(GOLDEN / f"{name}.npz").under("param"), STORED[name]
    format_ = formats.find(formats.of_file(state, config))
    network = format_.read(state, config.copy_and_resolve_references())
    back = format_.write(config, network.variables, 0).content
    assert set(back) == set(state)
    for key, array in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_a_backbone_alone(tmp_path, filled):
    config = torchvision("resnet18")
    variables = filled(networks.shapes(config, 3))
    networks.save(tmp_path / "run", config, variables, 2)
    step, config, alone = networks.load(tmp_path / "run", backbone_alone=True)
    assert step == 2
    written = formats.find(formats.of_run(config)).write(config, alone, 0)
    assert "Identity" in written.loads
    assert not [key for key in written.content if key.startswith("fc")]
    assert formats.of_file(written.content) == "torchvision"
    network = formats.find("torchvision").read(written.content, None)
    assert network.config.method is None
    assert network.config.backbone.architecture == "resnet18"
    expected = {"backbone": variables["params"]["backbone"]}
    np.testing.assert_equal(network.variables["params"], expected)


def test_names_of_two_systems_are_told_apart_by_the_config():
    config = torchvision("resnet50")
    empty = jax.tree.map(
        lambda s: np.broadcast_to(np.float32(0), s.shape), networks.shapes(config, 3)
    )
    state = formats.find("torchvision").write(config, empty, 0).content
    alone = {key: array for key, array in state.items() if not key.startswith("fc.")}
    with pytest.raises(ValueError, match="sie and torchvision have the names of this file; say"):
        formats.of_file(alone)
    assert formats.of_file(alone, config) == "torchvision"
    assert formats.of_file(alone, config_of("sie", "vicreg,paper")) == "sie"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (of_groups("p4resnet18", backbone__width=2, backbone__head="coset_last"), "coset_first"),
        (of_pcam("pcam_p4resnet44", backbone__width=2), "widths of the original's PCAM"),
        (of_pcam("pcam_p4resnet44", backbone__head="slices"), "over the slices last"),
        (config_of("rotmnist", "exact", backbone__group="c2", backbone__planes=2), "c1 and c4"),
        (config_of("unequivariance", "even", backbone__group="c2"), "over c4"),
        (config_of("unequivariance", "even", method__num_classes=3), "2 classes"),
    ],
)
def test_what_the_original_does_not_have_is_refused(config, message, filled):
    variables = filled(networks.shapes(config, classes_of(config)))
    with pytest.raises(ValueError, match=message):
        formats.find(formats.of_run(config)).write(config, variables, 0)


def test_of_one_pool_it_is_said_that_the_repository_pools_twice(filled):
    config = config_of("rotmnist", "exact", backbone__planes=2)
    written = formats.find("rotmnist").write(config, filled(networks.shapes(config, 10)), 0)
    assert written.loads.startswith("GCNN(planes=2, equivariance='P4', pad=1) of the published")
    assert "pools twice and computes something else" in written.loads


def test_imagenet_resumes(filled):
    config = config_of("imagenet_p4", "exact,paper")
    written = formats.find("gresnet").write(config, filled(networks.shapes(config, 1000)), 7)
    assert set(written.content) == {"epoch", "state_dict", "best_prec1", "optimizer"}
    assert written.content["epoch"] == 7
    assert "module.layers.3.1.conv2.weight" in written.content["state_dict"]
    [group] = written.content["optimizer"]["param_groups"]
    assert len(group["params"]) == 62  # 20 convolutions, 20 norms of two, a classifier of two


def test_groups_have_no_backbone_alone(filled):
    config = of_groups("p4resnet18", backbone__width=2)
    variables = filled(networks.shapes(config, 10))
    config.method = None
    with pytest.raises(ValueError, match="end in a classifier"):
        formats.find(formats.of_run(config)).write(config, variables, 0)


def test_a_file_of_another_network_shows_the_difference(filled):
    config = of_groups("resnet18", backbone__width=2)
    state = formats.find("gresnet").write(config, filled(networks.shapes(config, 10)), 0).content
    with pytest.raises(ValueError) as error:
        formats.find("gresnet").read(state, of_groups("p4resnet18", backbone__width=2))
    assert "- conv1.weight (for params/backbone/stem/kernel (3, 3, 1, 3, 2))" in str(error.value)
    assert "+ conv1.weight (2, 3, 3, 3) (that cannot be laid out so)" in str(error.value)
    with pytest.raises(ValueError, match="give --config=configs/classification"):
        formats.find("gresnet").read(state, None)
    with pytest.raises(ValueError, match="names of gresnet, and the config describes method 'sie'"):
        formats.of_file(state, config_of("sie", "sie"))
    with pytest.raises(ValueError, match=r"10 classes|- fc.weight .* \(16, 3\)"):
        formats.find("gresnet").read(
            state, of_groups("resnet18", backbone__width=2, method__num_classes=3)
        )


def test_a_format_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "other.py").write_text("def matches(state):\n    return 'other.weight' in state\n")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    try:
        assert formats.of_file({"other.weight": np.zeros(2)}) == "other"
    finally:
        sys.modules.pop("jaxequi.interop.formats.other", None)


def test_what_no_format_has_is_told():
    with pytest.raises(ValueError, match=r"1 arrays: a.weight, .*There is: airl, eqinv, equ"):
        formats.of_file({"a.weight": np.zeros(2)})
    config = config_of("sie", "sie")
    config.backbone = {"name": "torchvision_resnet"}
    with pytest.raises(ValueError, match=r"no format of airl, .* has a place for method 'sie'"):
        formats.of_run(config)
    with pytest.raises(ValueError, match="has no place for method 'sie'"):
        formats.find("gresnet").write(config, {}, 0)
    with pytest.raises(ValueError, match="has no place for method 'sie'"):
        formats.find("gresnet").read({}, config)
    with pytest.raises(ValueError, match="Did you mean 'torchvision'"):
        formats.find("torchvison")


def test_blocks_that_no_network_has_are_told():
    config = torchvision("resnet18")
    empty = jax.tree.map(
        lambda s: np.broadcast_to(np.float32(0), s.shape), networks.shapes(config, 3)
    )
    state = formats.find("torchvision").write(config, empty, 0).content
    less = {key: array for key, array in state.items() if not key.startswith("layer4.1")}
    with pytest.raises(ValueError, match=r"BasicBlocks, \(2, 2, 2, 1\) of them, is none that we"):
        formats.find("torchvision").read(less, None)
