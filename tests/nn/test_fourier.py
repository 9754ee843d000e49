"""Layers in the basis of the irreps equal those between regular fields, with their gradients."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import planar
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.nn import fourier, gconv
from jaxequi.nn.conv import Window
from jaxequi.nn.norm import BatchNorm
from jaxequi.nn.transformer import patchify
from jaxequi.train import mesh as meshes

GROUPS = [Group(1), dihedral(1), cyclic(2), cyclic(3), cyclic(4), dihedral(2), dihedral(4)]


def named(value):
    return getattr(value, "name", value)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def dense_matrix(w, group):
    """[I G, O G] of y[s] = sum_t w[s^-1 t] x[t] on channels, field-major."""
    _, inputs, outputs = w.shape
    return w[group.shift.T].transpose(2, 0, 3, 1).reshape(inputs * len(w), outputs * len(w))


def close(a, b, tolerance):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1))


@pytest.mark.parametrize(
    ("group", "kind"),
    [*((g, np.float64) for g in (*GROUPS, dihedral(8))), (dihedral(4), np.float32)],
    ids=named,
)
def test_dense_equals_the_convolution_over_the_group(group, kind):
    x, cotangent = (normal(5, n * group.order).astype(kind) for n in (3, 2))
    w, bias = normal(group.order, 3, 2).astype(kind), normal(2).astype(kind)
    tolerance = 1e-12 if kind == np.float64 else 1e-5

    @jax.jit
    def regular(x, w, bias, cotangent):
        def layer(x, w, bias):
            return x @ dense_matrix(w, group) + jnp.repeat(bias, group.order)

        y, pull = jax.vjp(layer, x, w, bias)
        return y, *pull(cotangent)

    @jax.jit
    def in_planes(x, w, bias, cotangent):
        def layer(x, kernel, bias):
            y = fourier.dense(fourier.analyse(x, group), kernel, group, bias)
            return fourier.synthesise(y, group)

        y, pull = jax.vjp(layer, x, fourier.transform(w, group), bias)
        dx, dkernel, dbias = pull(cotangent)
        return y, dx, fourier.inverse(dkernel, group), dbias

    with jax.enable_x64(kind == np.float64):
        expected, found = (f(x, w, bias, cotangent) for f in (regular, in_planes))
        for a, b in zip(found, expected):
            close(a, b, tolerance)


CONVOLUTIONS = [
    (dihedral(4), 3, 2, 1, 1),
    (dihedral(4), 1, 2, 1, 1),
    (dihedral(1), 3, (2, 1), (1, 0), 1),
    (cyclic(4), 3, 2, (2, 1), 2),
    (cyclic(4), 2, 1, 1, 1),
    (dihedral(2), 5, 1, 2, 1),
    (Group(1), 3, 1, 0, 1),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: "-".join(str(named(v)) for v in c))
def test_conv_equals_the_group_convolution(case):
    group, k, *geometry = case
    x = normal(2, 7, 6, 3 * group.order)
    kernel, bias = normal(k, k, group.order, 3, 2), normal(2)
    windows = [Window(s, (p, p), d) for s, p, d in zip(*map(gconv.pair, geometry))]

    @jax.jit
    def regular(x, kernel, cotangent):
        def layer(x, kernel):
            return gconv.group_conv(x, kernel, group, jnp.asarray(bias), *geometry)

        y, pull = jax.vjp(layer, x, kernel)
        return y, *pull(cotangent)

    @jax.jit
    def in_planes(x, kernel, cotangent):
        def layer(x, planes):
            fields = fourier.inverse(fourier.analyse(x, group), group)
            y = fourier.conv(fields, planes, group, *windows, bias)
            return fourier.synthesise(y, group)

        planes = fourier.realigned(kernel, group)
        y, pull = jax.vjp(layer, x, planes)
        dx, dplanes = pull(cotangent)
        return y, dx, fourier.unaligned(dplanes, group), fourier.unaligned(planes, group)

    sides = [w.outputs(n, k) for w, n in zip(windows, x.shape[1:3])]
    cotangent = normal(2, *sides, 2 * group.order, seed=1)
    with jax.enable_x64(True):
        expected = *regular(x, kernel, cotangent), kernel
        for a, b in zip(in_planes(x, kernel, cotangent), expected, strict=True):
            close(a, b, 1e-12)


@pytest.mark.parametrize("group", [dihedral(1), cyclic(4), dihedral(4)], ids=named)
def test_layer_norm_equals_that_of_all_channels(group):
    x = (3 + normal(4, 5, 6 * group.order)).astype(np.float32)
    scale, bias = (jnp.asarray(normal(6, seed=s), jnp.float32) for s in (1, 2))
    plain = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    wide = {"scale": jnp.repeat(scale, group.order), "bias": jnp.repeat(bias, group.order)}
    expected = plain.apply({"params": wide}, x)
    found = fourier.layer_norm(fourier.analyse(x, group), scale, bias, group)
    close(fourier.synthesise(found, group), expected, 1e-5)
    module = fourier.LayerNorm(group)
    params = {"scale": scale, "bias": bias}
    close(module.apply({"params": params}, fourier.analyse(x, group)), found, 1e-6)


def test_a_batch_norm_and_a_relu_between_the_transforms():
    group = dihedral(4)
    x = (1 + normal(4, 3, 3, 2 * group.order)).astype(np.float32)
    params = {"scale": jnp.asarray([0.5, 2.0]), "bias": jnp.asarray([1.0, -1.0])}
    state = {"params": params, "batch_stats": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    regular = BatchNorm(False, field_size=group.order)
    expected, stats = regular.apply(state, x, mutable="batch_stats")
    kept = []

    def norm_and_relu(fields):
        y, new = BatchNorm(False).apply(state, fields, mutable="batch_stats")
        kept.append(new)
        return nn.relu(y)

    found = fourier.pointwise(norm_and_relu, fourier.analyse(x, group), group)
    close(fourier.synthesise(found, group), nn.relu(expected), 1e-5)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), kept[0], stats)


@pytest.mark.parametrize("group", [dihedral(1), cyclic(4), dihedral(4)], ids=named)
def test_layer_norm_by_irreps_follows_the_group(group):
    x = normal(3, 1, 1, 4 * group.order).astype(np.float32)
    scale = jnp.asarray(normal(fourier.invariant_planes(group), 4, seed=1), jnp.float32)
    bias = jnp.asarray(normal(4, seed=2), jnp.float32)

    def norm(x):
        y = fourier.layer_norm_by_irreps(fourier.analyse(x, group), scale, bias, group)
        return fourier.synthesise(y, group)

    for g in range(group.order):
        close(norm(planar.act_on_field(group, g, x)), planar.act_on_field(group, g, norm(x)), 1e-5)


def test_layer_norm_by_irreps_has_the_means_and_variances_of_octic_vits():
    """One mean over both columns of E where they are turned by 45 degrees; E counts once."""
    group, x, bias = dihedral(4), normal(8, 3, 4).astype(np.float32), np.float32([1, 2, 0, -1])
    scale = np.stack([np.float32([1, 2, 3, 4])] * 6)  # alike in all columns of whatever basis
    turn = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
    ones = x[:4] - x[:4].mean(-1, keepdims=True)
    twos = np.einsum("jk,krnc->rnjc", turn, x[4:].reshape(2, 2, 3, 4))  # E of [row, ..., column, C]
    twos = twos - twos.mean((-2, -1), keepdims=True)
    spread = (np.square(ones).mean(-1).sum(0) + np.square(twos).mean((0, 2, 3)) + 1e-5) / 8
    twos = np.einsum("jk,rnjc->krnc", turn, twos).reshape(4, 3, 4)
    expected = scale[0] * np.concatenate([ones, twos]) / np.sqrt(spread)[:, None]
    expected[0] += np.sqrt(8) * bias
    close(fourier.layer_norm_by_irreps(x, scale, bias, group), expected.astype(np.float32), 1e-5)


@pytest.mark.parametrize("group", [cyclic(4), dihedral(4)], ids=named)
def test_attention_equals_that_of_the_channels(group):
    heads, fields = 2, 4
    qkv = normal(2, 5, 3 * fields * group.order).astype(np.float32)
    q, k, v = np.moveaxis(qkv.reshape(2, 5, 3, heads, -1), 2, 0)
    expected = jax.nn.dot_product_attention(q, k, v).reshape(2, 5, -1)
    found = fourier.attend(fourier.analyse(qkv, group), heads)
    close(fourier.synthesise(found, group), expected, 1e-5)


@pytest.mark.parametrize(("group", "count"), [(dihedral(1), 2), (cyclic(4), 3), (dihedral(4), 6)])
def test_invariants(group, count):
    x = normal(2, 3 * group.order).astype(np.float32)
    found = fourier.invariants(fourier.analyse(x, group), group)
    assert found.shape == (2, 3 * count) == (2, 3 * fourier.invariant_planes(group))
    # the lengths of all coefficients are the length of the field
    shared = np.square(found).sum(-1)
    close(shared, np.square(x).sum(-1), 1e-5)
    for g in range(group.order):
        moved = planar.act_on_field(group, g, x[:, None, None])[:, 0, 0]
        close(fourier.invariants(fourier.analyse(moved, group), group), found, 1e-5)
    slope = jax.grad(lambda x: fourier.invariants(x, group).sum())(jnp.zeros((group.order, 3)))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("group", [dihedral(1), dihedral(4)], ids=named)
def test_patches_become_fields(group, size):
    images = normal(2, 4 * size, 4 * size, 3).astype(np.float32)
    kernel = jnp.asarray(normal(size, size, 3, 2, seed=1), jnp.float32)
    bias = jnp.asarray([1.0, -2.0])

    @jax.jit
    def fields(images):
        y = fourier.embed(patchify(images, size), kernel, group, bias)
        return fourier.synthesise(y, group).reshape(2, 4, 4, -1)

    y = fields(images)
    for g in range(group.order):
        moved = fields(planar.act(group, g, images))
        close(moved, planar.act_on_field(group, g, y), 1e-5)
    if size == 3:  # what lifts with an odd kernel
        close(y, gconv.group_conv(images, kernel[:, :, None], group, bias, strides=3), 1e-5)


def test_a_cpu_passes_examples_one_by_one_where_it_computes_no_gradient(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    mlp, x = fourier.MLP(16, dihedral(4)), normal(8, 4, 5, 8).astype(np.float32)
    params = mlp.init(jax.random.key(0), x)

    def with_gradient(params, x):
        y, pull = jax.vjp(mlp.apply, params, x)
        return y, pull(y)

    looped, whole = jax.jit(mlp.apply).lower(params, x), jax.jit(with_gradient).lower(params, x)
    assert looped.as_text().count("stablehlo.while") == 1
    assert "stablehlo.while" not in whole.as_text()
    assert "stablehlo.while" not in jax.jit(mlp.apply).lower(params, x[:, :1]).as_text()
    expected = whole.compile()(params, x)[0]
    close(looped.compile()(params, x), expected, 1e-6)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    close(jax.jit(mlp.apply)(params, x), expected, 1e-6)  # two at once
    monkeypatch.setattr("os.cpu_count", lambda: 6)  # three, of four examples
    assert "stablehlo.while" not in jax.jit(mlp.apply).lower(params, x).as_text()


@pytest.mark.parametrize("devices", [2, 3])
def test_examples_of_several_devices_stay_there(devices, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    mlp, x = fourier.MLP(16, dihedral(4)), normal(8, 4, 5, 8).astype(np.float32)
    params = mlp.init(jax.random.key(0), x)
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    placed = jax.device_put((params, x), meshes.replicated(mesh))
    with meshes.known(mesh):
        program = jax.jit(mlp.apply).lower(*placed).compile()
    close(program(*placed), mlp.apply(params, x), 1e-6)
    # three devices cannot share four examples: the layer is left to XLA
    assert (" while(" in program.as_text()) == (devices == 2)


def test_a_constant_field():
    group = dihedral(4)
    found = fourier.inverse(fourier.constant(jnp.asarray([3.0, -1.0]), group), group)
    close(found, np.broadcast_to(np.float32([3, -1]), (8, 2)), 1e-6)


def test_half_precision_errs_little_more_than_the_plain_layer():
    group = dihedral(4)
    x, w = normal(64, 16 * 8).astype(np.float32), (normal(8, 16, 16) / 11).astype(np.float32)

    def gelu(y):
        return nn.gelu(y, approximate=False)

    def plain(x, w):
        return gelu(x @ dense_matrix(w, group))

    def in_planes(x, w):
        y = fourier.dense(fourier.analyse(x, group), fourier.transform(w, group), group)
        return fourier.synthesise(fourier.pointwise(gelu, y, group), group)

    @jax.jit
    def measured(x, w):
        half = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
        exact, *rounded = (
            (y, *pull(jnp.ones_like(y)))
            for y, pull in (
                jax.vjp(plain, x, w),
                jax.vjp(plain, *half),
                jax.vjp(in_planes, *half),
            )
        )
        assert all(a.dtype == jnp.bfloat16 for a in rounded[1])
        return [
            jnp.stack([jnp.sqrt(jnp.mean((a - b) ** 2) / jnp.mean(b**2)) for a, b in zip(r, exact)])
            for r in rounded
        ]

    plain_errors, errors = measured(x, w)
    # root mean square, relative, of the result and its gradients: 0.5 percent; the plain layer 0.35
    assert (errors < 7e-3).all()
    assert (errors < 2 * plain_errors).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fourier.analyse(jnp.zeros((2, 12)), dihedral(4)), "multiple of 8"),
        (
            lambda: fourier.dense(jnp.zeros((8, 2, 3)), jnp.zeros((8, 4, 3)), dihedral(4)),
            r"takes \[8, ..., I\] and \[8, I, O\]",
        ),
        (lambda: fourier.lift(np.zeros((4, 6)), dihedral(4)), "exchanges the sides"),
        (lambda: fourier.lift(np.zeros((4, 4)), cyclic(8)), "pixel grid"),
        (
            lambda: fourier.patches(jnp.zeros((8, 1, 5, 5, 1)), 2, dihedral(4), Window(), Window()),
            "no central row",
        ),
        (
            lambda: fourier.Attention(3, dihedral(4)).init(
                jax.random.key(0), jnp.zeros((8, 1, 2, 4))
            ),
            "3 heads split the 4 fields",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
