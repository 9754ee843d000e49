"""The prediction: hand numbers for single layers, the reference's table, and the measurement."""

from __future__ import annotations

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxequi.experiment import job, networks
from jaxequi.groups.planar import Group, cyclic, dihedral
from jaxequi.models import gresnet, one_gconv, rotmnist
from jaxequi.models.gresnet import GResNet
from jaxequi.nn import transformer
from jaxequi.nn.gconv import LiftingConv
from jaxequi.nn.pool import MaxPool, avg_pool
from jaxequi.probes import equivariance
from jaxequi.probes.exactness import judge, judge_network, trace
from tests.probes import random_stacks


def bound(network, shape):
    """Images to the output of a network with some variables (drawing them all compiles long)."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(shape), False))
    rng = np.random.default_rng(0)

    def some(path, leaf):
        positive = path[-1].key in ("scale", "var")
        drawn = 1 + rng.random(leaf.shape) if positive else rng.normal(size=leaf.shape) / 4
        return jnp.asarray(drawn, leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(some, shapes)
    return lambda x: network.apply(variables, x, False)


# kernel, stride, padding -> the sizes that are exact
LAYERS = {
    (3, 2, 1): lambda n: n % 2 == 1,
    (1, 2, 0): lambda n: n % 2 == 1,
    (5, 2, 2): lambda n: n % 2 == 1,
    (4, 2, 1): lambda n: n % 2 == 0,
    (2, 2, 0): lambda n: n % 2 == 0,
    (3, 3, 0): lambda n: n % 3 == 0,
    (5, 2, 1): lambda n: n % 2 == 1,
    (4, 1, 0): lambda n: True,
}


@pytest.mark.parametrize("geometry", LAYERS, ids=str)
def test_single_layers(geometry):
    k, s, p = geometry

    def conv(x):
        return jax.lax.conv_general_dilated(
            x,
            jnp.zeros((k, k, 1, 1)),
            (s, s),
            ((p, p), (p, p)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    for fn in (conv, lambda x: avg_pool(x, k, s, p), lambda x: MaxPool(k, s, p).apply({}, x)):
        for n in range(8, 14):
            verdict = judge(fn, (1, n, n, 1), cyclic(4))
            assert verdict.exact == LAYERS[geometry](n)
            if not verdict.exact:
                assert LAYERS[geometry](verdict.smaller)
                assert LAYERS[geometry](verdict.larger)


@functools.cache
def table():
    """Networks of the reference, and its exact input sizes."""
    small = {"width": 1}
    eight, four = (lambda n: n % 8 == 1), (lambda n: n % 4 == 1)
    return {
        "p4resnet18": (gresnet.make("p4resnet18", **small), eight, (25, 28, 31, 32, 33, 224, 225)),
        "resnet18": (gresnet.make("resnet18", **small), eight, (32, 33)),
        "p4mresnet44": (gresnet.make("p4mresnet44", **small), four, (29, 31, 32, 33, 35, 96, 97)),
        "gcp4resnet44": (gresnet.make("gcp4resnet44", **small), four, (32, 33)),
        "pcam_p4resnet44": (gresnet.make("pcam_p4resnet44"), four, (96, 97)),
        "one pool": (rotmnist.make(pools=1), lambda n: n % 2 == 0, (27, 28, 29, 30)),
        "two pools": (rotmnist.make(pools=2), lambda n: n % 4 == 0, (24, 27, 28, 29, 30)),
        "one layer": (one_gconv.make(), lambda n: n % 2 == 1, (31, 32, 33)),
    }


@pytest.mark.parametrize("name", table())
def test_the_sizes_of_the_reference(name):
    network, fits, sizes = table()[name]
    group = network.group if network.group.order > 1 else cyclic(4)
    for n in sizes:
        shape = (1, n, n, 3)
        verdict = judge_network(network, shape, group)
        assert verdict.exact == fits(n), f"{n} pixels"
        assert verdict.unjudged == ()
        if not verdict.exact:
            nearest = [n - d for d in range(1, n) if fits(n - d)], [n + d for d in range(1, 9)]
            assert verdict.smaller == nearest[0][0]
            assert verdict.larger == next(m for m in nearest[1] if fits(m))


def test_says_where_and_why():
    network = gresnet.make("p4mresnet44", width=1)
    verdict = judge_network(network, (1, 32, 32, 3), dihedral(4))
    first = verdict.breaks[0]
    assert (first.layer.layer, first.reads) == ("layer2_0/conv1", (32, 32))
    text = str(verdict)
    assert "NOT equivariant from layer2_0/conv1 on" in text
    assert "(32 + 2*1 - 3) mod 2 = 1" in text
    # of D4 only the transposition reverses no axis
    assert "breaks 6 of 7 elements; kept: mirror, turn 90" in text
    assert "nearest exact sizes: 29 and 33" in text
    assert verdict.padding is None  # the stride is even: two more pixels never mend it

    verdict = judge_network(network, (1, 31, 31, 3), dihedral(4))
    first = verdict.breaks[0]
    assert (first.layer.layer, first.reads) == ("layer3_0/conv1", (16, 16))
    assert verdict.padding == (("stem", 1, 2),)
    assert "stem 1 -> 2" in str(verdict)


@pytest.mark.parametrize("n", [7, 8, 10, 11])
def test_the_padding_it_advises_is_exact(n):
    class Net(nn.Module):
        paddings: dict

        @nn.compact
        def __call__(self, x, train):
            for name, stride in (("a", 3), ("b", 2), ("c", 1)):
                padding = self.paddings.get(name, 0)
                conv = LiftingConv(2, cyclic(1), strides=stride, padding=padding, name=name)
                x = conv(x)
            return x

    shape = (1, 3 * n + 1, 3 * n + 1, 1)
    verdict = judge_network(Net({}), shape, cyclic(4))
    assert not verdict.exact
    if verdict.padding:
        mended = Net({layer: then for layer, _, then in verdict.padding})
        assert judge_network(mended, shape, cyclic(4)).exact


def test_uneven_padding_breaks_at_any_size():
    def same(x):
        return nn.Conv(1, (3, 3), (2, 2)).init_with_output(jax.random.key(0), x)[0]

    assert judge(same, (1, 9, 9, 1), cyclic(4)).exact
    verdict = judge(same, (1, 8, 8, 1), cyclic(4))
    assert "padding 0 before, 1 behind" in str(verdict)
    assert (verdict.smaller, verdict.larger) == (7, 9)
    assert not judge(lambda x: x[:, 1:], (1, 9, 9, 1), cyclic(4)).exact
    assert not judge(
        lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), (1, 9, 9, 1), cyclic(4)
    ).exact
    assert judge(lambda x: x[:, ::2, ::2], (1, 9, 9, 1), cyclic(4)).exact


def test_each_group_has_its_own_demands():
    def columns(x):
        return x[:, :, ::2]

    shape = (1, 8, 8, 1)  # even rows are kept, even columns are sampled off centre
    assert not judge(columns, shape, dihedral(1)).exact
    assert judge(lambda x: x[:, ::2], shape, dihedral(1)).exact
    assert not judge(columns, (1, 9, 9, 1), cyclic(4)).exact  # a quarter turn changes the grid
    assert judge(columns, (1, 9, 9, 1), cyclic(2)).exact
    assert judge(columns, (1, 8, 8, 1), cyclic(1)).exact
    assert not judge(lambda x: x + 0, (1, 8, 9, 1), cyclic(4)).breaks
    eight = judge(lambda x: x[:, ::2, ::2], shape, cyclic(8))
    assert eight.breaks[0].elements == (2, 4, 6)
    assert "not judged" in str(eight)


UNJUDGED = {
    "reshape": lambda x: x.reshape(1, 16, 4, 1),
    "dot_general of rows and columns": lambda x: x.reshape(1, -1) @ jnp.ones((64, 2)),
    "slice of rows and columns": lambda x: x.reshape(64)[1:],
    "slice in each patch": lambda x: x.reshape(1, 4, 2, 4, 2)[:, :, 1:],
    "rev in each patch": lambda x: x.reshape(1, 4, 2, 4, 2)[:, :, ::-1],
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "sort": lambda x: jnp.sort(x, 2),
    "gather": lambda x: x[:, np.array([1, 0, 2, 3, 4, 5, 6, 7])],
    "dot_general": lambda x: jnp.einsum("bhwc,hk->bkwc", x, np.ones((8, 8))),
    "add": lambda x: x + np.arange(8.0)[:, None],  # an encoding of places
    "transpose": lambda x: x.swapaxes(1, 2),
    "while": lambda x: jax.lax.fori_loop(0, jnp.int32(jnp.max(x)), lambda i, x: x + 1, x),
}


@pytest.mark.parametrize("name", UNJUDGED)
def test_owns_up_to_what_it_cannot_judge(name):
    verdict = judge(UNJUDGED[name], (1, 8, 8, 1), cyclic(4))
    assert verdict.unjudged == (f"the network ({name.split()[0]})",)
    assert not verdict.exact
    assert "not certain, part of it is not judged" in str(verdict)


def test_patches_and_rows_of_a_product():
    def patches(x):
        x = transformer.space_to_depth(x, 2)
        rows = jnp.sin(x.reshape(-1, 4) @ jnp.ones((4, 3)))
        return jnp.concatenate([rows[:, :1], rows], 1).reshape(*x.shape[:3], -1)[..., 1:]

    for n, exact in ((8, True), (9, False), (12, True)):
        verdict = judge(patches, (2, n, n, 1), cyclic(4))
        assert verdict.exact == exact
        assert verdict.unjudged == ()
        assert verdict.layers == ("",)
    told = "patches with kernel 2, stride 2, padding 0 on 9 pixels: (9 + 2*0 - 2) mod 2 = 1"
    verdict = judge(patches, (2, 9, 9, 1), cyclic(4))
    assert told in str(verdict)
    assert (verdict.smaller, verdict.larger, verdict.padding) == (8, 10, None)


def test_a_loop_is_judged_by_all_its_rounds():
    def later(carry, _):  # what is added is 0 in the first round alone
        x, places = carry
        return (x + places, jnp.broadcast_to(jnp.arange(8.0)[:, None], x.shape)), None

    def fn(x):
        return jax.lax.scan(later, (x, jnp.zeros_like(x)), None, length=2)[0][0]

    assert not judge(fn, (1, 8, 8, 1), cyclic(4)).exact


def test_a_run_that_asks_for_exactness_is_refused_what_is_not_judged(monkeypatch):
    class Net(nn.Module):
        group: Group = cyclic(4)

        @nn.compact
        def __call__(self, x, train):
            return jnp.mean(jnp.cumsum(x, 1), (1, 2))

    monkeypatch.setattr(networks, "make_backbone", lambda config: Net())
    batch = {"views": np.zeros((1, 1, 8, 8, 3), np.uint8)}
    preflight = job._preflight(ml_collections.ConfigDict({"check": "error"}))
    with pytest.raises(ValueError, match=r"refuses.*\n.*not certain, part of it is not judged"):
        preflight(batch)


def conv(x, k=3, strides=1, padding=1, layout="NHWC", **more):
    pads = padding if isinstance(padding, tuple) else (padding, padding)
    kernel = {"NHWC": (k, k, x.shape[3], x.shape[3]), "NCHW": (x.shape[1], x.shape[1], k, k)}
    return jax.lax.conv_general_dilated(
        x,
        jnp.ones(kernel[layout]),
        (strides, strides),
        (pads, pads),
        dimension_numbers=(layout, {"NHWC": "HWIO", "NCHW": "OIHW"}[layout], layout),
        **more,
    )


def padded(mode, before, after):
    return lambda x: jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), mode=mode)


def transposed(x, k, padding):
    return conv(x, k, padding=padding, lhs_dilation=(2, 2))


def nchw(fn):
    return lambda x: fn(jnp.moveaxis(x, -1, 1))


def unet(k, padding):
    def fn(x):
        deep = transposed(conv(x, 2, 2, 0), k, padding)
        return conv(jnp.concatenate([deep, x], -1))

    return fn


def squeeze_excite(x):
    return x * jax.nn.sigmoid(jnp.mean(x, (1, 2), keepdims=True))


def local_mean(x):
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=True)


def constants(*pads):
    """Paddings, one after the other: (before, after, on rows, on columns, value)."""

    def fn(x):
        for before, after, rows, columns, value in pads:
            ends = [(before * on, after * on) for on in (0, rows, columns, 0)]
            x = jnp.pad(x, ends, constant_values=value)
        return x

    return fn


EXACT = {
    "constants at both ends": constants((1, 1, 1, 1, 5.0), (1, 1, 1, 1, 0.0)),
    **{f"{m} padding": padded(m, 1, 1) for m in ("reflect", "wrap", "edge", "symmetric")},
    "wider reflections": padded("reflect", 2, 2),
    "wider edges": padded("edge", 2, 2),
    "transposed, kernel 4": lambda x: transposed(x, 4, 2),
    "transposed, kernel 3": lambda x: transposed(x, 3, 1),
    "U-Net": unet(2, 1),
    "channels first": nchw(lambda x: conv(x, padding=1, layout="NCHW")),
    "repeated pixels": lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2),
    "one number for all": squeeze_excite,
    "local mean": local_mean,
    "mirrored both ways": lambda x: x[:, ::-1, ::-1],
    "sorted channels": lambda x: jnp.sort(jnp.cumsum(x, -1), -1),
    "split channels": lambda x: jnp.multiply(*jnp.split(x, 2, -1)),
    "loop": lambda x: jax.lax.scan(lambda x, _: (conv(x), None), x, None, length=3)[0],
    "padding that is cut off": lambda x: padded("wrap", 0, 1)(x)[:, :-1, :-1],
    "windows of padding": lambda x: conv(x[:, 3:5, 3:5], 1, 3, (1, 2)),
    "pooling that sees all": lambda x: nn.avg_pool(
        x[:, 3:5, 3:5], (3, 3), padding=((0, 1), (0, 1))
    ),
}
BROKEN = {
    "constants that differ at the ends": constants((1, 0, 1, 1, 0.0), (0, 1, 1, 1, 5.0)),
    "constants that differ by axis": constants((1, 1, 1, 0, 0.0), (1, 1, 0, 1, 5.0)),
    "constants that changed": lambda x: constants((0, 1, 1, 1, 0.5))(
        jnp.tanh(constants((1, 0, 1, 1, 0.5))(x))
    ),
    **{f"uneven {m} padding": padded(m, 0, 1) for m in ("reflect", "wrap", "edge", "symmetric")},
    "roll": lambda x: jnp.roll(x, 1, 1),
    "mirrored": lambda x: x[:, ::-1],
    "transposed, SAME": lambda x: transposed(x, 3, (2, 1)),
    "U-Net of SAME": unet(3, (2, 1)),
    "channels first": nchw(lambda x: conv(x, padding=(0, 1), layout="NCHW")),
    "skip after a breaking stride": lambda x: conv(x, 3, 2, 1) + x[:, ::2, ::2],
    "skip that disagrees": lambda x: conv(x, 3, 2, 1) + nn.avg_pool(x, (2, 2), (2, 2)),
    "wrapped and strided": lambda x: conv(padded("wrap", 1, 1)(x), 3, 2, 0),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_copies_or_spreads_pixels_evenly_is_exact(name):
    verdict = judge(EXACT[name], (1, 8, 8, 2), dihedral(4))
    assert verdict.exact, str(verdict)


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_it_unevenly_is_not(name):
    verdict = judge(BROKEN[name], (1, 8, 8, 2), cyclic(4))
    assert not verdict.exact
    assert verdict.breaks
    assert "exact, every" not in str(verdict)


def test_what_may_cancel_out_is_not_certain():
    def unread(x):  # the row and column of padding is never read
        return conv(padded("constant", 1, 2)(x), 3, 2, 0)

    verdict = judge(unread, (1, 9, 9, 1), cyclic(4))
    assert not verdict.exact
    assert not verdict.certain
    assert "not certain\n  windows miss their grid at the network, but may cancel" in str(verdict)
    assert judge(unread, (1, 8, 8, 1), cyclic(4)).certain


def test_random_stacks_are_what_they_are_called():
    rng, called = np.random.default_rng(0), collections.Counter()
    while sum(called.values()) < 90:
        group = cyclic(4) if rng.random() < 0.6 else dihedral(4)
        stack, n = random_stacks.draw(rng, rng.integers(1, 5)), int(rng.integers(3, 12))
        pooled = bool(rng.random() < 0.3)
        try:
            error = random_stacks.error(stack, n, group, pooled)
        except random_stacks.Misfit:
            continue

        def fn(x, stack=stack, group=group, pooled=pooled):
            y = random_stacks.run(stack, x, group, jnp)
            return y.mean((1, 2)) if pooled else y

        verdict = judge(fn, (1, n, n, 1), group)
        if verdict.exact:
            assert error < 1e-9, f"{stack} on {n}: {error}, {verdict}"
        elif verdict.breaks and verdict.certain and not verdict.unjudged:
            assert error > 1e-9, f"{stack} on {n}: {error}, {verdict}"
        called[verdict.exact, bool(verdict.breaks) and verdict.certain] += 1
    assert min(called.values()) > 10  # exact, broken and uncertain ones


def test_follows_choices_by_platform_and_inner_programs():
    def conv(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    @jax.jit
    def fn(x):
        x = jax.lax.platform_dependent(x, cpu=lambda x: x[:, 0::2, 1::2], default=conv)
        return jax.checkpoint(lambda x: jnp.mean(x, (1, 2)))(x)

    geometry = trace(fn, (1, 8, 8, 1))
    assert [w.kind for w in geometry.windows] == ["pooling"]


NETWORKS = {
    "c4": (GResNet(cyclic(4), (2, 2, 2), (1, 1, 1)), (13, 14, 15)),
    "d4": (GResNet(dihedral(4), (2, 2, 2), (1, 1, 1)), (13, 16)),
    "d1": (GResNet(dihedral(1), (2, 2), (1, 1)), (9, 10)),
    "d2": (GResNet(dihedral(2), (2, 2), (1, 1)), (9, 10)),
    "c4, g": (GResNet(cyclic(4), (2, 2), (1, 1), "g"), (9, 10)),
    "d4, gc": (GResNet(dihedral(4), (2, 2, 2, 2), (1, 1, 1, 1), "gc"), (17, 19)),
    "one pool": (rotmnist.make(planes=2, pools=1), (14, 15)),
    "two pools": (rotmnist.make(planes=2, pools=2), (16, 18)),
    "one layer": (one_gconv.make("d4"), (8, 9)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_prediction_is_measurement(name):
    network, sizes = NETWORKS[name]
    group = network.group
    for n in sizes:
        shape = (2, n, n, 3)
        fn = bound(network, shape)
        verdict = judge(fn, shape, group)
        images = np.asarray(jax.random.normal(jax.random.key(1), shape))
        errors = equivariance.measure(fn, images, group)
        maps = errors.relative[:-1]
        if verdict.exact:
            assert maps.max() < 1e-5
            continue
        first = verdict.breaks[0]
        assert errors.first_above(1e-3) == first.layer.layer
        at = list(errors.layers).index(first.layer.layer)
        broken = np.isin(np.arange(group.order), first.elements)
        assert maps[at][broken].min() > 1e-2
        assert maps[at][~broken].max() < 1e-5
