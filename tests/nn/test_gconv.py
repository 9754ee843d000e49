"""The law of the group convolutions: exact if and only if the stride fits the grid."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import planar
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.nn.gconv import DOMAINS, GroupConv, LiftingConv, filter_bank, group_conv, pays

GROUPS = [Group(n, m) for n in (1, 2, 4) for m in (False, True)]


def errors(layer, x, group, lifting):
    """Largest error of each element, relative to the largest entry of the result."""
    y = np.asarray(layer(x))
    act = planar.act if lifting else planar.act_on_field
    moved = [
        np.abs(layer(act(group, g, x)) - planar.act_on_field(group, g, y)).max()
        for g in range(1, group.order)
    ]
    return np.array(moved) / np.abs(y).max()


def drawn(count):
    """Groups, kernels, strides, paddings, dilations, sizes, and whether the layer lifts."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        group = GROUPS[rng.integers(1, len(GROUPS))]
        k = int(rng.choice((1, 3, 5) if group.mirrors else (1, 2, 3, 4, 5)))
        s, p, d = (int(rng.integers(*r)) for r in ((1, 4), (0, 3), (1, 3)))
        n = int(rng.integers(d * (k - 1) + 1, 14))
        yield group, k, s, p, d, n, bool(rng.integers(2))


@pytest.mark.parametrize(
    "case", list(drawn(40)), ids=lambda c: "-".join(str(getattr(v, "name", v)) for v in c)
)
def test_the_law_holds_exactly_when_the_stride_fits(case):
    group, k, s, p, d, n, lifting = case
    rng = np.random.default_rng(1)
    slices = 1 if lifting else group.order
    x = rng.normal(size=(1, n, n, 2 * slices)).astype(np.float32)
    kernel = jnp.asarray(rng.normal(size=(k, k, slices, 2, 2)).astype(np.float32))
    bias = jnp.asarray(rng.normal(size=2).astype(np.float32))

    layer = jax.jit(lambda x: group_conv(x, kernel, group, bias, s, p, d))

    found = errors(layer, x, group, lifting)
    fits = (n + 2 * p - d * (k - 1) - 1) % s == 0
    if fits:
        assert found.max() < 2e-6
    else:
        # what reverses no side, a transposition, survives even there
        reverses = (group.matrices[1:] != [[0, -1], [-1, 0]]).any((1, 2))
        assert (found[~reverses] < 2e-6).all()
        window = min(n, d * (k - 1) + 1)
        if window > s or k > 1:  # else the layer may see nothing of what moved
            assert found[reverses].min() > 1e-3


@pytest.mark.parametrize("separable", ["g", "gc"])
@pytest.mark.parametrize("group", [cyclic(4), dihedral(4), dihedral(1)], ids=lambda g: g.name)
def test_separable_is_the_product_of_its_factors(keys, group, separable):
    layer = GroupConv(3, group, strides=2, padding=1, use_bias=True, separable=separable)
    x = jax.random.normal(next(keys), (2, 9, 9, 2 * group.order))
    variables = layer.init(next(keys), x)
    p = variables["params"]
    y = layer.apply(variables, x)
    full = group_conv(x, p["depthwise"] * p["pointwise"], group, p["bias"], 2, 1)
    np.testing.assert_allclose(y, full, atol=2e-6)
    assert errors(lambda x: layer.apply(variables, x), np.asarray(x), group, False).max() < 2e-6


def test_the_filter_bank_turns_the_kernel_and_its_slices():
    kernel = jnp.arange(9 * 4.0).reshape(3, 3, 4, 1, 1)
    bank = np.asarray(filter_bank(kernel, cyclic(4)))  # [3, 3, T, G]
    for s in range(4):
        for t in range(4):
            turned = np.rot90(kernel[:, :, (t - s) % 4, 0, 0], s)
            np.testing.assert_array_equal(bank[:, :, t, s], turned)


def test_parameters_do_not_grow_with_the_lifted_side(keys):
    group = dihedral(4)
    lift = LiftingConv(5, group, use_bias=True).init(next(keys), jnp.zeros((1, 5, 5, 3)))["params"]
    assert {k: v.shape for k, v in lift.items()} == {"kernel": (3, 3, 1, 3, 5), "bias": (5,)}
    x = jnp.zeros((1, 5, 5, 16))
    deep = GroupConv(5, group).init(next(keys), x)["params"]
    assert {k: v.shape for k, v in deep.items()} == {"kernel": (3, 3, 8, 2, 5)}
    split = GroupConv(5, group, separable="gc").init(next(keys), x)["params"]
    shapes = {"depthwise": (3, 3, 1, 1, 5), "pointwise": (1, 1, 8, 2, 5)}
    assert {k: v.shape for k, v in split.items()} == shapes
    bound = 1 / np.sqrt(2 * 9)  # the reference's fan-in, without the order of the group
    assert 0.9 * bound < np.abs(split["pointwise"]).max() <= bound


def test_computes_in_the_dtype_asked_for(keys):
    layer = LiftingConv(2, cyclic(4), use_bias=True, dtype=jnp.bfloat16)
    x = jnp.ones((1, 5, 5, 3))
    variables = layer.init(next(keys), x)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (GroupConv(2, cyclic(4)), (1, 5, 5, 6), "6 channels are no whole number"),
        (LiftingConv(2, cyclic(8)), (1, 5, 5, 3), "45 degrees"),
        (LiftingConv(2, dihedral(4), kernel_size=4), (1, 5, 5, 3), "no central row"),
        (LiftingConv(2, cyclic(4), kernel_size=7), (1, 5, 5, 3), "smaller than the kernel"),
        (GroupConv(2, cyclic(4), separable="cg"), (1, 5, 5, 4), "unknown separable form 'cg'"),
    ],
    ids=["channels", "group", "even", "small", "separable"],
)
def test_refuses(keys, layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.init(next(keys), jnp.zeros(shape))


def test_refuses_kernels_that_do_not_fit_the_group():
    with pytest.raises(ValueError, match="not square"):
        filter_bank(jnp.zeros((3, 1, 4, 1, 1)), cyclic(4))
    with pytest.raises(ValueError, match="3 slices"):
        filter_bank(jnp.zeros((3, 3, 3, 1, 1)), cyclic(4))
    with pytest.raises(ValueError, match="filters take 8"):
        group_conv(jnp.zeros((1, 5, 5, 4)), jnp.zeros((3, 3, 4, 2, 1)), cyclic(4))


@pytest.mark.parametrize(
    ("group", "k", "fields", "geometry"),
    [(dihedral(4), 3, 26, (2, 1, 1)), (cyclic(4), 3, 64, ((1, 2), 1, 1)), (cyclic(4), 1, 32, (2,))],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_both_domains_give_the_same(group, k, fields, geometry):
    rng = np.random.default_rng(2)
    assert pays(group, k, fields)
    x = rng.normal(size=(2, 5, 5, 3 * group.order))
    kernel, bias = rng.normal(size=(k, k, group.order, 3, fields)), rng.normal(size=fields)

    @functools.partial(jax.jit, static_argnums=3)
    def layer(x, kernel, bias, domain):
        def conv(x, kernel, bias):
            return group_conv(x, kernel, group, bias, *geometry, domain=domain)

        y, pull = jax.vjp(conv, x, kernel, bias)
        return y, *pull(jnp.sin(y))

    with jax.enable_x64(True):
        program = layer.lower(x, kernel, bias, "fourier").as_text()
        assert "dot_general" in program
        assert "stablehlo.convolution" not in program  # it runs irrep by irrep, not by channels
        for a, b in zip(*(layer(x, kernel, bias, domain) for domain in DOMAINS)):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_few_fields_stay_channels():
    assert not pays(dihedral(4), 3, 24)
    assert not pays(dihedral(4), 1, 12)
    assert not pays(Group(1), 1, 10_000)
    x, kernel = jnp.zeros((1, 5, 5, 16)), jnp.zeros((3, 3, 8, 2, 2))

    def lowered(domain):
        layer = jax.jit(lambda x, w: group_conv(x, w, dihedral(4), padding=1, domain=domain))
        return layer.lower(x, kernel).as_text()

    assert lowered("fourier") == lowered("regular")
    with pytest.raises(ValueError, match="Did you mean 'fourier'"):
        group_conv(x, kernel, dihedral(4), domain="fourrier")
    wide = jnp.zeros((3, 3, 8, 3, 32))
    with pytest.raises(ValueError, match="16 channels and the filters take 24"):
        group_conv(x, wide, dihedral(4), domain="fourier")


def test_one_device_equals_eight_by_irreps():
    group = dihedral(4)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, 5, 5, 8)).astype(np.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 1, 25)).astype(np.float32))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    def gradient(kernel, x):
        def loss(kernel):
            return jnp.sum(jnp.sin(group_conv(x, kernel, group, domain="fourier")))

        return jax.grad(loss)(kernel)

    one = gradient(kernel, x)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        eight = gradient(kernel, split)
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5 * np.abs(one).max())
