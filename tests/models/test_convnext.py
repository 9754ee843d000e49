"""ConvNeXts over a group: their law, the plain network they are, and what they cost."""

from __future__ import annotations

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxequi import experiment, probes
from jaxequi.groups import planar
from jaxequi.groups.planar import dihedral
from jaxequi.models import convnext
from jaxequi.probes import exactness
from jaxequi.types import Progress

SMALL = {"width": 16, "depths": (1, 2), "patch": 2, "layer_scale": 0.5}
ISO = {"architecture": "iso_small", "width": 16, "depths": (2,), "patch": 4}
SIDE = 12


def images(n=2, side=SIDE):
    return np.random.default_rng(0).normal(size=(n, side, side, 3)).astype(np.float32)


def started(net):
    """Parameters where nothing is at its start: biases and scales too."""
    shapes = jax.eval_shape(lambda k, x: net.init(k, x, False), jax.random.key(0), images())
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(draw.normal(0.2, 0.3, a.shape), a.dtype), shapes)


def relative(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "options",
    [
        {**SMALL, "group": "d1", "symmetric": 3},
        {**SMALL, "group": "c4", "symmetric": 3},
        {**SMALL, "group": "d4", "invariant": True},
        {**ISO, "group": "d4", "symmetric": 2},
    ],
    ids=str,
)
def test_the_law(options):
    net = convnext.make(**options)
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
            assert relative(y[g], y[0]) > 1e-3
        assert relative(y[g], expected) < 1e-5


def weighted(net, params, x):
    """A number that depends on every feature, and its gradients."""

    def total(params, x):
        y = net.apply({"params": params}, x, False)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)), y

    return jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({**SMALL, "depths": (1, 1), "group": "d4", "symmetric": 2}, 12),
        ({**SMALL, "depths": (1, 1), "group": "c4", "symmetric": 1}, 15),  # fills no last patch
        ({**ISO, "group": "d1", "symmetric": 0}, 12),
    ],
    ids=str,
)
def test_it_is_a_plain_network(options, side):
    with jax.enable_x64(True):
        net = convnext.make(**options, dtype=jnp.float64)
        params = jax.tree.map(lambda a: a.astype(jnp.float64), started(net)["params"])
        x = jnp.asarray(images(side=side), jnp.float64)

        @jax.jit
        def both(params, x):
            other, written = convnext.plain(net, params)
            # the parameters of one are a linear map of the other's, and so are the gradients
            _, pull = jax.vjp(lambda p: convnext.plain(net, p)[1], params)
            (_, y), (dp, dx) = weighted(other, written, x)
            return (y, dx, *pull(dp)), written

        expected, written = both(params, x)
        (_, y), (dp, dx) = jax.jit(functools.partial(weighted, net))(params, x)
        other, _ = convnext.plain(net, params)
        rough = other.clone(dtype=jnp.float32)
    assert other == convnext.make(**options | {"group": "c1", "symmetric": 0}, dtype=jnp.float64)
    for found, wanted in zip((y, dx, *jax.tree.leaves(dp)), jax.tree.leaves(expected), strict=True):
        assert found.dtype == jnp.float64
        assert relative(found, wanted) < 1e-12
    shapes = jax.eval_shape(lambda k: rough.init(k, images(), False), jax.random.key(0))["params"]
    assert jax.tree.map(jnp.shape, written) == jax.tree.map(jnp.shape, shapes)


def parameters(net, side=224):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda k, x: net.init(k, x, False), jax.random.key(0), x)["params"]


# With a head of 1000 classes: of torchvision to the last one, of the isotropic ones in millions.
PUBLISHED = {
    "tiny": 28_589_128,
    "small": 50_223_688,
    "base": 88_591_464,
    "large": 197_767_336,
}
MILLIONS = {"iso_small": 22, "iso_base": 87, "iso_large": 306, "xlarge": 350}


@pytest.mark.parametrize("name", [*PUBLISHED, *MILLIONS])
def test_published_numbers_of_parameters(name):
    net = convnext.make(name)
    found = count(parameters(net)) + 1000 * (net.features + 1)
    if name in PUBLISHED:
        assert found == PUBLISHED[name]
    else:
        assert round(found / 1e6) == MILLIONS[name]


def test_equivariant_blocks_have_an_eighth_of_the_parameters():
    octic, plain = parameters(convnext.make(group="d4")), parameters(convnext.make())
    assert count(octic["blocks_0"]) * 8 == count(plain["blocks_0"])
    assert count(octic["downsample_1"]) * 8 == count(plain["downsample_1"])
    assert octic["blocks_8"]["mlp"]["fc1"]["kernel"].shape == (8, 48, 192)
    assert octic["blocks_9"] == plain["blocks_9"]
    assert octic["downsample_3"] == plain["downsample_3"]
    assert "layer_scale" in plain["blocks_0"]
    assert "layer_scale" not in parameters(convnext.make("iso_small"))["blocks_0"]


def test_where_it_starts():
    net = convnext.make(width=16, depths=(2,), group="c4", symmetric=1)
    params = jax.jit(lambda: net.init(jax.random.key(0), images(), False)["params"])()
    for block, shape in (("blocks_0", (4,)), ("blocks_1", (16,))):
        np.testing.assert_array_equal(params[block]["layer_scale"], np.full(shape, 1e-6, "f4"))
        assert not np.any(params[block]["mlp"]["fc1"]["bias"])
        for kernel in (params[block]["mlp"]["fc2"]["kernel"], params[block]["depthwise"]["kernel"]):
            np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.1)


def flops(net):
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = {"params": parameters(net)}
    traced = jax.jit(lambda p, x: net.apply(p, x, False)).trace(params, x)
    lowered = traced.lower(lowering_platforms=("tpu",))  # a CPU has loops, whose rounds count once
    return lowered.cost_analysis()["flops"]


def test_flops():
    # products are 12 of 64 and 2 of 4; of 18 blocks 0.213 and 0.512
    size = {"architecture": "iso_base", "depths": (4,)}
    plain = flops(convnext.make(**size))
    d4, d1 = (flops(convnext.make(**size, group=g, symmetric=4)) / plain for g in ("d4", "d1"))
    assert 0.22 < d4 < 0.25
    assert 0.51 < d1 < 0.54


def test_one_device_equals_eight():
    net = convnext.make(**SMALL | {"depths": (1, 1)}, group="d4", symmetric=2)
    params, x = started(net), images(8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    @jax.jit
    def gradient(params, x):
        return jax.grad(lambda p: jnp.sum(net.apply(p, x, False) ** 2))(params)

    one = gradient(params, x)
    with jax.set_mesh(mesh):
        compiled = gradient.lower(params, split).compile()
        eight = compiled(params, split)
    assert relative(*(ravel_pytree(jax.device_get(g))[0] for g in (one, eight))) < 1e-5
    program = compiled.as_text()  # what devices exchange are gradients, summed
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_what_is_computed_again_is_the_same():
    net = convnext.make(**ISO, group="d1", symmetric=1)
    params, x = started(net)["params"], images()
    found = [
        jax.jit(functools.partial(weighted, n))(params, x) for n in (net, net.clone(remat=True))
    ]
    once, again = (ravel_pytree(f)[0] for f in found)
    assert relative(again, once) < 1e-5


def test_bfloat16():
    net = convnext.make(**SMALL, group="d4", symmetric=2)
    rough = net.clone(dtype=jnp.bfloat16)
    params, x = started(net), images()
    y, again = (jax.jit(lambda p, x, n=n: n.apply(p, x, False))(params, x) for n in (net, rough))
    assert again.dtype == jnp.float32
    assert 0 < relative(again, y) < 0.1


def test_branches_are_left_out():
    net = convnext.make(**ISO, group="d1", symmetric=1, drop_path=0.5)
    params, x = started(net), images(1)
    step = jax.jit(lambda k: net.apply(params, x, True, rngs={"dropout": k}))
    outputs = {float(step(jax.random.key(i))[0, 0]) for i in range(8)}
    assert len(outputs) == 2  # the rate of the first of two blocks is 0


def test_layer_decay_takes_three_blocks_for_a_layer():
    factors = convnext.make("base").layer_decay(0.5)

    def of(path):
        return next(f for pattern, f in factors if re.search(pattern, path))

    # facebookresearch/ConvNeXt, `optim_factory.py`: layers 0 to 13
    layers = {
        "stem/kernel": 0,
        "stem_norm/scale": 0,
        "blocks_2/mlp/fc1/kernel": 1,
        "downsample_1/kernel": 2,
        "blocks_5/norm/scale": 2,
        "downsample_2_norm/scale": 3,
        "blocks_6/layer_scale": 3,
        "blocks_9/layer_scale": 4,
        "blocks_32/layer_scale": 11,
        "downsample_3/bias": 12,
        "blocks_35/depthwise/kernel": 12,
        "norm/scale": 13,
    }
    for path, layer in layers.items():
        assert of(f"backbone/{path}") == 0.5 ** (13 - layer), path


@pytest.mark.parametrize(
    ("options", "side", "exact"),
    [
        ({}, 28, True),
        ({}, 26, False),
        ({"group": "d4", "symmetric": 3}, 28, True),
        ({"group": "d4", "symmetric": 3}, 26, False),
        ({"group": "d1", "invariant": True}, 28, True),
    ],
    ids=str,
)
def test_the_verdict(options, side, exact):
    net = convnext.make(**SMALL, **options)
    group = net.group if net.group.order > 1 else dihedral(4)
    verdict = exactness.judge_network(net, (2, side, side, 3), group)
    assert verdict.exact == exact
    assert verdict.unjudged == ()
    assert verdict.layers[:3] == ("stem", "blocks_0/depthwise", "downsample_1")
    if not exact:
        assert verdict.breaks[0].layer.layer == "downsample_1"
        assert verdict.certain
        assert (verdict.smaller, verdict.larger) == (24, 28)


def test_the_verdict_is_what_is_measured():
    net = convnext.make(**SMALL, group="d4", invariant=True)
    params, apply = started(net), jax.jit(net.apply, static_argnums=2)
    for side, exact in ((12, True), (14, False)):
        errors = probes.check(lambda x: apply(params, x, False), images(8, side), net.group)
        assert (errors.relative.max() < 1e-5) == exact


@pytest.mark.parametrize(
    ("symmetric", "first"), [(0, "blocks_0"), (1, "downsample_1_norm"), (2, "blocks_2")]
)
def test_plain_filters_are_told(symmetric, first):
    net = convnext.make(**SMALL, group="d4", symmetric=symmetric)
    verdict = exactness.judge_network(net, (2, 28, 28, 3), net.group)
    assert not verdict.exact
    assert verdict.breaks == ()
    assert f"filters from {first} on, which are plain" in str(verdict)


METHODS = {"simclr": "sie:simclr", "moco": "moco:v2", "byol": "byol", "supervised": "equivision"}


@pytest.mark.parametrize("method", METHODS)
def test_methods_take_it(method):
    file, _, variant = METHODS[method].partition(":")
    words = ",".join(filter(None, (variant, "smoke")))
    config = importlib.import_module(f"configs.{file}").get_config(words)
    given = {"group": "d4", "width": 16, "depths": (1, 1), "patch": 4}
    overridden = [f"backbone.{name}" for name in ("name", *given)]
    with config.unlocked():
        config.backbone.name = "convnext"  # in place of a ResNet, whose architecture it has not
        config.backbone.update(given)
    job = experiment.build(config, overridden=overridden)
    batch = {**job.shapes()}
    batch["views"] = jax.ShapeDtypeStruct(batch["views"].shape, jnp.float32)
    params, extra = jax.eval_shape(job.method.init, jax.random.key(0), batch)
    assert params["backbone"]["blocks_0"]["depthwise"]["kernel"].shape == (7, 7, 1, 1, 2)
    start = Progress(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def loss(params, extra, batch):
        return job.method.loss(params, extra, batch, jax.random.key(0), start)[0]

    gradient = jax.eval_shape(jax.grad(loss), params, extra, batch)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
    assert job.preflight(job.shapes()).startswith("equivariance, predicted:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 100, "group": "d4"}, "nearest widths are 96 or 104"),
        ({"width": 4, "group": "d4"}, "nearest widths are 8"),
        ({"group": "c8"}, "pixel grid"),
        ({"group": "p6"}, "group"),
        ({"group": "d4", "symmetric": 19}, "from 0 to all 18"),
        ({"group": "d4", "symmetric": 3, "invariant": True}, "nothing stays invariant"),
        ({"architecture": "tinny"}, "Did you mean 'tiny'"),
        ({"depths": ()}, "one depth a stage"),
        ({"drop_path": 1.0}, "probability below 1"),
    ],
)
def test_bad_networks(arguments, message):
    with pytest.raises(ValueError, match=message):
        convnext.make(**arguments)


def test_bad_images_and_writing_out():
    net = convnext.make("tiny", group="d4", invariant=True)
    assert (net.symmetric, net.features) == (18, 576)
    with pytest.raises(ValueError, match="patches of 32x32 pixels"):
        jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 24, 64, 3)), False), jax.random.key(0))
    with pytest.raises(ValueError, match="invariant=True"):
        convnext.plain(net, {})
