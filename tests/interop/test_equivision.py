"""Files of equivision: exact where they say what they mean, and never silently wrong."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest
from case import Case

from configs import equivision
from jaxequi.errors import Refusal
from jaxequi.groups.planar import dihedral
from jaxequi.interop import formats, networks, signs
from jaxequi.models import steerable_resnet
from jaxequi.models.torchvision_resnet import BasicBlock, Bottleneck

FORMAT = formats.find("equivision")
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "steerable"


def config_of(group, width=1):
    config = equivision.get_config(f"{group}resnet18" if group != "d3" else "d4resnet18")
    config.backbone.architecture, config.backbone.width = f"{group}resnet18", width
    return config.copy_and_resolve_references()


def drawn(config, classes=3, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: random.normal(size=s.shape).astype(np.float32), networks.shapes(config, classes)
    )


def without(state, *words):
    return {name: a for name, a in state.items() if not any(word in name for word in words)}


def flipped(state, group):
    """The same network in a file of an installation that has other signs, and the signs."""
    order = signs.undetermined(group)
    random = np.random.default_rng(1)
    theirs = dict(zip(order, map(int, random.choice([-1, 1], len(order)))))
    state = dict(state)
    for name in list(state):
        if "('regular', 'regular')" not in name:
            continue
        size = round(state[name].shape[-1] ** 0.5)
        rows = np.array([theirs.get(c, 1) for c in signs.between_regular(group, size)])
        state[name] = state[name] * rows[:, None, None, None].astype(np.float32)
        weights = name.partition("._basis")[0] + ".weights"
        flat = state[weights].reshape(-1, len(rows)) * rows
        state[weights] = flat.ravel().astype(np.float32)
    return state, theirs


@pytest.mark.parametrize("name", ["D8_basic", "D4_bottleneck", "C4_basic", "D1_basic"])
def test_networks_of_the_reference_compute_the_same(name, short):
    case = Case(GOLDEN / f"net_{name}.npz")
    block = BasicBlock if case.meta["block"] == "E2BasicBlock" else Bottleneck
    short(block)
    state = case.under("param")
    state |= {name: state[stored] for name, stored in case.meta["alias"].items()}
    config = config_of(case.meta["group"].lower(), case.meta["base_width"])
    assert formats.of_file(state, config) == "equivision"
    network = FORMAT.read(state, config)
    assert network.undecided is None
    backbone = networks.backbone(network.variables)
    x = np.moveaxis(case["in/x33"], 1, -1)
    y = jax.jit(lambda v: networks.module(config).apply(v, x, False))(backbone)
    head = network.variables["params"]["classifier"]
    np.testing.assert_allclose(
        y @ head["kernel"] + head["bias"], case["out/logits33"], rtol=1e-3, atol=1e-4
    )
    written = FORMAT.write(config, network.variables, 0).content
    assert not set(state) - set(written)
    assert {n: a.shape for n, a in state.items()} == {n: written[n].shape for n in state}


@pytest.mark.parametrize("group", ["c1", "d1", "c4", "d3", "d4"])
def test_out_and_back_whatever_a_file_holds(group, short):
    config = config_of(group)
    variables = drawn(config)
    state = FORMAT.write(config, variables, 0).content
    state, _ = flipped(state, networks.module(config).group)

    def back(given):
        network = FORMAT.read(given, config)
        return network.variables if network.undecided is None else None

    np.testing.assert_equal(back(state), variables)
    np.testing.assert_equal(back(without(state, ".filter")), variables)
    np.testing.assert_equal(back(without(state, "_basisexpansion")), variables)
    alone = back(without(state, "_basisexpansion", ".weights"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), alone, variables)
    coefficients = back(without(state, "_basisexpansion", ".filter", "indices"))
    if group in ("d3", "d4"):
        assert coefficients is None
        # one layer that tells its signs tells those of all
        first = {n: a for n, a in state.items() if "layer1.0.conv1._basis" in n}
        some = without(state, "_basisexpansion", ".filter") | first
        np.testing.assert_equal(back(some), variables)
    else:
        np.testing.assert_equal(coefficients, variables)


def test_running_statistics_tell_the_signs(short):
    config = config_of("d4", 6)
    config.train.views = ("decode|random_resized_crop(48)|flip",)
    config.train.augment = ("normalise('imagenet')",)
    group = dihedral(4)
    images = networks.images(config, "photographs", 48)
    assert images.shape == (48, 48, 48, 3)
    network = networks.module(config)
    variables = drawn(config)
    learning = network.clone(norm=lambda **o: steerable_resnet.BatchNorm(momentum=1.0, **o))
    _, measured = jax.jit(lambda v, x: learning.apply(v, x, True, mutable=["batch_stats"]))(
        networks.backbone(variables), images
    )
    variables["batch_stats"]["backbone"] = jax.tree.map(np.asarray, measured["batch_stats"])
    state, theirs = flipped(FORMAT.write(config, variables, 0).content, group)
    assert len(theirs) == 9
    assert -1 in theirs.values()
    undecided = FORMAT.read(without(state, "_basis", ".filter"), config).undecided
    network = undecided(images)
    np.testing.assert_equal(network.variables, variables)
    assert "9 signs of couplings" in network.said[0]
    noise = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    with pytest.raises(Refusal, match=r"48 images do not decide.*less likely.*--images"):
        undecided(noise)


@pytest.mark.parametrize("name", ["D4", "D8"])
def test_the_first_guess_is_the_installation_that_is_stored(name):
    stored = Case(GOLDEN / "dn_coupling_signs.npz").under(f"out/{name}")
    theirs = {
        tuple(tuple(map(int, irrep)) for irrep in triple.reshape(3, 2)): "-" if sign < 0 else "+"
        for triple, sign in zip(stored["triples"], stored["sign"], strict=True)
    }
    group = dihedral(int(name[1]))
    guess = "".join(theirs[c] for c in signs.undetermined(group))
    assert signs.REFERENCE[group.name] == guess


def test_what_is_of_another_network_is_refused(short):
    config = config_of("d4")
    state = FORMAT.write(config, drawn(config), 0).content
    with pytest.raises(
        Refusal, match=r"8 elements, with mirrors, .*c8resnet18 .* of c8, which has"
    ):
        FORMAT.read(state, config_of("c8"))
    with pytest.raises(Refusal, match=r"group of 8 elements.*of c4, which has 4"):
        FORMAT.read(without(state, "_basis"), config_of("c4"))
    with pytest.raises(Refusal, match=r"- conv1.weights \(for params/backbone/conv1/weights \(18"):
        FORMAT.read(state, config_of("d4", 2))
    with pytest.raises(Refusal, match=r"give --config=configs/equivision.py"):
        FORMAT.read(state, None)
    other = state | {"layer1.0.conv1.filter": state["layer1.0.conv1.filter"] + 1}
    with pytest.raises(Refusal, match=r"layer1.0.conv1.filter is no filter between these fields"):
        FORMAT.read(without(other, "_basis"), config)
    stale = state | {"layer1.0.conv1.weights": state["layer1.0.conv1.weights"][::-1]}
    with pytest.raises(Refusal, match=r"filter and layer1.0.conv1.weights .* contradict"):
        FORMAT.read(without(stale, "_basis"), config)
    name = "layer1.0.conv1._basisexpansion.block_expansion_('regular', 'regular').sampled_basis"
    with pytest.raises(Refusal, match="not the basis of escnn"):
        FORMAT.read(state | {name: state[name][::-1]}, config)
    config.backbone.fit = True
    with pytest.raises(Refusal, match="neither fit nor antialias"):
        FORMAT.write(config, {}, 0)
