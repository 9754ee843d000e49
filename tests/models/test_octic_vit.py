"""Vision transformers over a group: their law, the plain network they are, and what they cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxequi import probes
from jaxequi.groups import planar
from jaxequi.methods import mae, supervised
from jaxequi.models import octic_vit, vit
from jaxequi.nn import fourier
from jaxequi.types import Progress

SMALL = {"patch": 4, "width": 64, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
SIDE = 12


def images(n=2):
    return np.random.default_rng(0).normal(size=(n, SIDE, SIDE, 3)).astype(np.float32)


def started(net):
    """Parameters where nothing is at its start: biases, scales and tables too."""
    shapes = jax.eval_shape(lambda k, x: net.init(k, x, False), jax.random.key(0), images())
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(draw.normal(0.3, 0.3, a.shape), a.dtype), shapes)


def relative(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": 2},
        {"symmetric": 2, "invariant": True, "norm_over": "irreps"},
        {"symmetric": 1, "invariant": True, "positions": "learned"},
        {"symmetric": 2, "pool": "mean", "group": "d1", "positions": "learned"},
    ],
    ids=str,
)
def test_the_law(options):
    net = octic_vit.make(**SMALL, **options)
    group = net.group
    params, x = started(net), images()
    moved = np.concatenate([planar.act(group, g, x) for g in range(group.order)])
    y = np.asarray(jax.jit(lambda p, x: net.apply(p, x, False))(params, moved))
    assert y.shape == (2 * group.order, net.features)
    y = y.reshape(group.order, 2, -1)
    assert np.abs(y[0, 0] - y[0, 1]).max() > 1e-3  # it tells images apart
    for g in range(1, group.order):
        expected = y[0]
        if not net.invariant:
            fields = expected.reshape(2, -1, group.order)
            expected = fields[..., group.shift[g]].reshape(2, -1)
            assert relative(y[g], y[0]) > 1e-2
        assert relative(y[g], expected) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": 2, "positions": "learned"},
        {"symmetric": 1, "pool": "mean"},
        {"symmetric": 1, "group": "c1"},
        {"symmetric": 2, "group": "c4", "pool": "mean"},
    ],
    ids=str,
)
def test_it_is_a_plain_network(options):
    net = octic_vit.make(**SMALL, **options)
    params, x = started(net), images()
    other, written = octic_vit.plain(net, params["params"], 3, 3)
    assert type(other) is vit.ViT
    expected = jax.jit(lambda p, x: net.apply(p, x, False))(params, x)
    found = jax.jit(lambda p, x: other.apply({"params": p}, x, False))(written, x)
    assert relative(found, expected) < 1e-5
    assert jax.tree.map(jnp.shape, written) == jax.tree.map(
        jnp.shape, jax.eval_shape(lambda k: other.init(k, x, False), jax.random.key(0))["params"]
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_equivariant_blocks_have_an_eighth_of_the_parameters():
    def parameters(net):
        x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        return jax.eval_shape(lambda k, x: net.init(k, x, False), jax.random.key(0), x)["params"]

    octic, plain = parameters(octic_vit.make("huge")), parameters(vit.make("huge"))
    assert count(octic["blocks_0"]) * 8 == count(plain["blocks_0"])
    assert octic["blocks_15"]["mlp"]["fc1"]["kernel"].shape == (8, 160, 640)
    assert octic["blocks_16"] == plain["blocks_16"]


@pytest.mark.parametrize(("name", "remat"), [("mae", False), ("mae", True), ("supervised", False)])
def test_methods_take_it(name, remat):
    net = octic_vit.make(**SMALL, symmetric=1, drop_path=0.5, remat=remat)
    method = (
        supervised.make(net, 3)
        if name == "supervised"
        else mae.make(backbone=net, decoder_width=16, decoder_depth=1, decoder_heads=2)
    )
    batch = {"views": images()[:, None], "label": jnp.arange(2)}
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    params, extra = jax.tree.map(lambda a: jnp.full(a.shape, 0.01, a.dtype), shapes)
    start = Progress(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def loss(params):
        return method.loss(params, extra, batch, jax.random.key(0), start)[0]

    gradient = jax.eval_shape(jax.grad(loss), params)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)


def test_hidden_patches_are_not_seen():
    net = octic_vit.make(**SMALL, symmetric=2)
    params, x = started(net), images()
    keep = jnp.asarray([[4, 0, 7], [8, 2, 1]])
    apply = jax.jit(functools.partial(net.apply, train=False))
    tokens = apply(params, x, keep=keep)
    assert tokens.shape == (2, 4, 64)
    hidden = np.array(x)
    hidden[0, :4, 4:8] = 9  # patch 1 of the first image
    np.testing.assert_array_equal(apply(params, hidden, keep=keep), tokens)
    hidden[0, :4, :4] = 9
    assert np.abs(apply(params, hidden, keep=keep)[0] - tokens[0]).max() > 1e-2


def test_one_device_equals_eight():
    net = octic_vit.make(**SMALL | {"depth": 1}, symmetric=1)
    params, x = started(net), images(8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    @jax.jit
    def gradient(params, x):
        return jax.grad(lambda p: jnp.sum(net.apply(p, x, False) ** 2))(params)

    one, eight = gradient(params, x), gradient(params, split)
    assert relative(*(ravel_pytree(jax.device_get(g))[0] for g in (one, eight))) < 1e-5
    # planes stay split by examples: what devices exchange are gradients, summed
    program = gradient.lower(params, split).compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_layer_decay_knows_the_layer_between():
    net = octic_vit.make(**SMALL, symmetric=1, invariant=True)
    assert net.layer_decay(0.5)[0] == (r"(^|/)mix_invariants/", 0.5)
    assert net.layer_decay(0.5)[1:] == vit.layer_decay(2, 0.5)
    assert net.features == 64
    assert octic_vit.make(**SMALL, symmetric=2, invariant=True).features == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 100, "heads": 2}, "nearest widths are 96 or 128"),
        ({"width": 96, "heads": 8, "patch": 4}, "nearest widths are 64 or 128"),
        ({"width": 16, "heads": 2}, "nearest widths are 32"),
        ({"group": "c8"}, "pixel grid"),
        ({"group": "p6"}, "group"),
        ({"symmetric": 13}, "from 0 to all 12"),
        ({"architecture": "bas"}, "Did you mean"),
        ({"norm_over": "irrep"}, "Did you mean 'irreps'"),
    ],
)
def test_bad_networks(arguments, message):
    with pytest.raises(ValueError, match=message):
        octic_vit.make(**arguments)


def test_bad_images_and_writing_out():
    net = octic_vit.make(**SMALL)
    with pytest.raises(ValueError, match="exchanges the sides"):
        jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 8, 12, 3)), False), jax.random.key(0))
    with pytest.raises(ValueError, match="norm_over='irreps'"):
        octic_vit.plain(octic_vit.make(**SMALL, norm_over="irreps"), {}, 3, 3)
    lengths = octic_vit.make(**SMALL, invariant=True)
    with pytest.raises(ValueError, match="invariant=True"):
        octic_vit.plain(lengths, {}, 3, 3)
    assert fourier.invariant_planes(lengths.group) == 6


def test_probes_leave_planes_out():
    net = octic_vit.make(**SMALL, symmetric=2, invariant=True)
    params = started(net)
    errors = probes.check(lambda x: net.apply(params, x, False), images(8), net.group)
    assert errors.layers == ("output",)
    assert errors.relative.max() < 1e-5
