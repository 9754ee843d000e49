"""Parameter counts of every network, invariance of the heads, and refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import probes
from jaxequi.groups import planar
from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.methods.supervised import Classifier
from jaxequi.models import gresnet, one_gconv, rotmnist

# with 10 and 1000 classes: the default head, and the maximum over cosets first
COUNTS = {
    "resnet18": ((11173962, 11681832), (11173962, 11681832)),
    "resnet44": ((2636458, 2764168), (2636458, 2764168)),
    "p4resnet18": ((11173418, 12188168), (11165738, 11420168)),
    "p4resnet44": ((2633946, 2888376), (2632026, 2696376)),
    "p4mresnet18": ((11546769, 13005039), (11533889, 11717039)),
    "p4mresnet44": ((2962726, 3343876), (2959366, 3007876)),
    "gcp4resnet18": ((11109340, 13961530), (11087740, 11801530)),
    "gcp4resnet44": ((2657907, 3403377), (2652267, 2839377)),
    "gcp4mresnet18": ((11227978, 15284008), (11192138, 11700008)),
    "gcp4mresnet44": ((2931575, 4041365), (2921775, 3061365)),
}


def count(backbone, num_classes, size=33, channels=3):
    network, x = Classifier(backbone, num_classes), jnp.zeros((1, size, size, channels))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), x, False))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name):
    for head, expected in zip(("slices", "coset_first"), COUNTS[name]):
        backbone = gresnet.make(name, head=head)
        body = count(backbone, 10) - 10 * (backbone.features + 1)
        assert tuple(body + k * (backbone.features + 1) for k in (10, 1000)) == expected


def test_parameters_of_the_small_networks():
    assert count(gresnet.make("pcam_resnet44"), 2) == 129538
    assert count(gresnet.make("pcam_p4resnet44"), 2) == 128652
    assert count(rotmnist.make("c4", 10), 10, 28) == 24990
    assert count(rotmnist.make("c4", 20, pools=2), 10, 28) == 98770
    assert count(rotmnist.make("c1", 20), 10, 28) == 25570
    assert count(one_gconv.make(), 2, 32, 1) == 14
    separable = gresnet.GResNet(cyclic(1), (64, 128, 256, 512), (2, 2, 2, 2), "gc")
    assert count(separable, 10) == 1443658


@pytest.mark.parametrize("group", [cyclic(4), dihedral(4)], ids=lambda g: g.name)
def test_the_heads(keys, group):
    x = np.asarray(jax.random.normal(next(keys), (2, 9, 9, 3)))
    body = gresnet.GResNet(group, (2, 3), (1, 1))
    variables = body.init(next(keys), x, False)
    for head in gresnet.HEADS:
        network = body.clone(head=head)
        apply = jax.jit(lambda x, network=network: network.apply(variables, x, False))
        y = np.asarray(apply(x))
        assert y.shape == (2, network.features)
        moved = np.stack([apply(planar.act(group, g, x)) for g in range(1, group.order)])
        if head == "slices":  # the slices are permuted
            fields = y.reshape(2, 3, group.order)
            expected = np.stack([fields[..., group.shift[g]] for g in range(1, group.order)])
            np.testing.assert_allclose(moved.reshape(expected.shape), expected, atol=1e-5)
            assert np.abs(moved - y).max() > 1e-2
        else:
            np.testing.assert_allclose(moved, np.broadcast_to(y, moved.shape), atol=1e-5)


def test_remat_changes_nothing(keys):
    x = jax.random.normal(next(keys), (2, 9, 9, 3))
    network = gresnet.GResNet(cyclic(4), (2, 2), (1, 1))
    variables = network.init(next(keys), x, False)

    def loss(params, remat):
        rest = {"params": params, "batch_stats": variables["batch_stats"]}
        y, _ = network.clone(remat=remat).apply(rest, x, True, mutable=["batch_stats"])
        return jnp.sum(y**2)

    a, b = (jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], r) for r in (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), a, b)


def test_dropout_draws_in_training_only(keys):
    network = rotmnist.make("c4", 2, dropout=0.3)
    x = jax.random.normal(next(keys), (2, 14, 14, 3))
    variables = network.init(next(keys), x, False)

    def apply(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return network.apply(variables, x, train, rngs=rngs, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(apply(False, 0), apply(False, 1))
    assert np.abs(apply(True, 0) - apply(True, 1)).max() > 1e-3


def test_refuses():
    with pytest.raises(ValueError, match=r"unknown architecture 'p4resnet50'.*p4resnet18"):
        gresnet.make("p4resnet50")
    with pytest.raises(ValueError, match="unknown head 'coset'"):
        gresnet.make(head="coset")
    with pytest.raises(ValueError, match="pools=3"):
        rotmnist.make(pools=3)
    with pytest.raises(ValueError, match="no central row"):
        count(rotmnist.make("d4"), 10, 28)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        count(rotmnist.make(pools=2), 10, 8)
    with pytest.raises(ValueError, match="unknown group 'q4'"):
        one_gconv.make("q4")


def test_both_domains_learn_the_same():
    # ten steps of gradient descent: the parameters are the same, and part by rounding alone
    x = np.random.default_rng(0).normal(size=(4, 5, 5, 3))
    nets = [
        gresnet.GResNet(dihedral(4), (26, 26), (1, 1), head="coset_last", domain=domain)
        for domain in ("regular", "fourier")
    ]
    shapes = jax.eval_shape(
        lambda k: nets[0].init(k, jnp.asarray(x, "float32"), True), jax.random.key(0)
    )
    draw = np.random.default_rng(1)
    state = jax.tree.map(lambda a: jnp.asarray(draw.normal(0.1, 0.1, a.shape), a.dtype), shapes)

    def learned(net):
        def loss(params):
            y, _ = net.apply(state | {"params": params}, x, True, mutable="batch_stats")
            return jnp.mean(jnp.square(y - jnp.arange(4)[:, None]))

        def step(params, _):
            value, slope = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, d: p - 0.3 * d, params, slope), value

        return jax.jit(lambda p: jax.lax.scan(step, p, length=10))(state["params"])

    (regular, losses), (fourier, same) = (learned(net) for net in nets)
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(same, losses, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(fourier), jax.tree.leaves(regular)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
    verdicts = [
        str(probes.certify(lambda x, n=net: n.apply(state, x, False), (1, 8, 8, 3), dihedral(4)))
        for net in nets
    ]
    assert verdicts[0] == verdicts[1]
    assert "layer2_0" in verdicts[0]
