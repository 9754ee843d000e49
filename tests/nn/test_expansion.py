"""Networks over a group and the plain ones that they are written out for: the same outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups.planar import cyclic, dihedral
from jaxequi.models import gresnet, steerable_resnet
from jaxequi.models.gresnet import GResNet
from jaxequi.models.steerable_resnet import BasicBlock, Bottleneck, SteerableResNet
from jaxequi.nn.expansion import expand
from jaxequi.nn.pool import coset_max

NETWORKS = {
    "c8": SteerableResNet(cyclic(8), 2, (1, 1), BasicBlock),
    "d3 bottlenecks": SteerableResNet(dihedral(3), 1, (1, 1), Bottleneck),
    "p4m": GResNet(dihedral(4), (2, 3), (1, 1), head="coset_last"),
    "p4, separable": GResNet(cyclic(4), (2, 3), (1, 1), "gc", head="coset_last"),
}


def drawn(tree, key):
    """The tree with numbers that differ in every entry; variances stay positive."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    made = [a + 0.3 * jax.random.uniform(k, a.shape) for a, k in zip(leaves, keys)]
    return jax.tree.unflatten(structure, made)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_the_same(name, keys):
    network = NETWORKS[name]
    module = steerable_resnet if isinstance(network, SteerableResNet) else gresnet
    other = module.plain(network)
    x = jax.random.normal(next(keys), (2, 17, 17, 3))
    draw = jax.jit(lambda key: drawn(network.init(key, x, False), key))
    variables = draw(next(keys))
    template = jax.eval_shape(lambda: other.init(jax.random.key(0), x, False))

    @jax.jit
    def both(variables):
        written = expand(variables, template, network.group)
        return network.apply(variables, x, False), other.apply(written, x, False), written

    expected, y, written = both(variables)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), written, template)
    y = coset_max(y, network.group)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-2


def test_refuses():
    network = SteerableResNet(cyclic(4), 2, (1,))
    x = jnp.zeros((1, 9, 9, 3))
    variables, narrow = (
        jax.eval_shape(lambda n=n: n.init(jax.random.key(0), x, False))
        for n in (network, steerable_resnet.plain(network.clone(width=1)))
    )
    variables = jax.tree.map(lambda a: jnp.zeros(a.shape), variables)
    with pytest.raises(ValueError, match=r"bn1/mean.*takes \(4,\).*over c4 has \(8,\)"):
        expand(variables, narrow, cyclic(4))
    with pytest.raises(ValueError, match=r"params/other/scale.*nothing"):
        expand(variables, {"params": {"other": {"scale": jnp.zeros(4)}}}, cyclic(4))
    with pytest.raises(ValueError, match="fit and antialias"):
        steerable_resnet.plain(network.clone(fit=True))
