"""Relations: rotation, then differences of latents; the sign of the quaternion is kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.errors import Refusal
from jaxequi.groups import quaternions, relation
from jaxequi.types import Relation


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
    found = relation.relation(name)
    z = found.between({"latent": jnp.asarray(latent, jnp.float32)})
    assert z.shape == (200, 4 + len(columns)) == (200, len(found.columns))
    np.testing.assert_allclose(
        z[:, :4], quaternions.relative_pose(latent[:, 0], latent[:, 1]), atol=2e-6
    )
    differences = latent[:, 1, columns] - latent[:, 0, columns]
    np.testing.assert_allclose(z[:, 4:], differences, atol=2e-6)
    assert (z[:, 3] < 0).any()  # no sign was flipped


def test_a_relation_of_ones_own_is_passed_through():
    own = Relation(("a",), lambda batch: batch["index"])
    assert relation.relation(own) is own


@pytest.mark.parametrize("name", ["rotation", "all"])
def test_numpy_is_answered_in_float64(name):
    """As evaluations ask it; a batch on the devices is answered in its own dtype."""
    latent = latents()
    exact = relation.relation(name).between({"latent": latent})
    assert isinstance(exact, np.ndarray)
    assert exact.dtype == np.float64
    on_device = relation.relation(name).between({"latent": jnp.asarray(latent, jnp.float32)})
    assert isinstance(on_device, jnp.ndarray)
    assert on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, exact, atol=2e-6)
    difference = latent[:, 1, 3] - latent[:, 0, 3]
    if name == "all":
        np.testing.assert_array_equal(exact[:, 4], difference)


def test_what_has_no_relation_is_refused():
    asked = relation.relation("rotation")
    for latent in (None, np.zeros((3, 2, 5)), np.zeros((3, 7)), np.zeros((3, 3, 7))):
        with pytest.raises(Refusal, match=r"'rotation' needs batch\['latent'\] .*\[B, 2, 7\]"):
            asked.between({"latent": latent})
    with pytest.raises(Refusal, match="Did you mean 'rotation'"):
        relation.relation("rotations")
