"""Relations: rotation, then differences of latents; the sign of the quaternion is kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.groups import quaternions
from jaxequi.methods import _relation


def latents(n=200):
    random = np.random.default_rng(0)
    low = [-np.pi / 2] * 3 + [0] * 4
    high = [np.pi / 2] * 3 + [1, np.pi / 4, 2 * np.pi, 1]
    return random.uniform(low, high, (n, 2, 7))


@pytest.mark.parametrize(
    ("name", "columns"),
    [("rotation", []), ("rotation+color", [3, 6]), ("all", [3, 4, 5, 6])],
)
def test_columns(name, columns):
    latent = latents()
    found = _relation.relation(name)
    z = found.between({"latent": jnp.asarray(latent, jnp.float32)})
    assert z.shape == (200, 4 + len(columns)) == (200, len(found.columns))
    np.testing.assert_allclose(
        z[:, :4], quaternions.relative_pose(latent[:, 0], latent[:, 1]), atol=2e-6
    )
    differences = latent[:, 1, columns] - latent[:, 0, columns]
    np.testing.assert_allclose(z[:, 4:], differences, atol=2e-6)
    assert (z[:, 3] < 0).any()  # no sign was flipped


def test_a_relation_of_ones_own_is_passed_through():
    own = _relation.Relation(("a",), lambda batch: batch["index"])
    assert _relation.relation(own) is own
