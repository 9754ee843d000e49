"""Meshes, shardings, and batches laid over devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxequi.train import mesh as meshes


@pytest.mark.parametrize(
    ("asked", "shape"),
    [((-1, 1), (8, 1)), ((2, -1), (2, 4)), ((1, 8), (1, 8)), ((4, 2), (4, 2)), ((2, 1), (2, 1))],
)
def test_mesh_shape(asked, shape):
    assert tuple(meshes.make_mesh(*asked).shape.values()) == shape


@pytest.mark.parametrize("asked", [(3, -1), (-1, -1), (-1, 3), (0, 8), (4, 4)])
def test_mesh_that_does_not_fit(asked):
    with pytest.raises(ValueError, match=r"8 device\(s\)"):
        meshes.make_mesh(*asked)


def test_batch_must_divide():
    mesh = meshes.make_mesh(4, 2)
    meshes.check_batch_size(mesh, 16)
    with pytest.raises(ValueError, match="batch_size=12 does not divide over 8 devices"):
        meshes.check_batch_size(mesh, 12)


@pytest.mark.parametrize("asked", [(8, 1), (2, 4), (1, 8)])
def test_to_global_keeps_order(asked):
    mesh = meshes.make_mesh(*asked)
    batch = {"views": np.arange(16 * 3).reshape(16, 3), "aug": {"flip": np.arange(16.0)}}
    placed = meshes.to_global(mesh, batch, 16)
    assert meshes.local_rows(mesh, 16).tolist() == list(range(16))
    np.testing.assert_array_equal(placed["views"], batch["views"])
    np.testing.assert_array_equal(placed["aug"]["flip"], batch["aug"]["flip"])
    assert {s.data.shape for s in placed["views"].addressable_shards} == {(2, 3)}


def test_rules_split_the_largest_axis_that_divides():
    mesh = meshes.make_mesh(2, 4)
    shapes = {
        "params": {"a": jax.ShapeDtypeStruct((60, 8, 120), np.float32)},
        "mu": {"a": jax.ShapeDtypeStruct((60, 8, 120), np.float32)},
        "odd": jax.ShapeDtypeStruct((63, 75), np.float32),
        "params/small": jax.ShapeDtypeStruct((4092,), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    rules = [("step", "replicate"), ("params/|odd|step", "fsdp")]
    placed = meshes.shard_state(mesh, shapes, rules)
    assert placed["params"]["a"].spec == P(None, None, "fsdp")
    assert placed["mu"]["a"].spec == P()
    assert placed["odd"].spec == P()
    assert placed["params/small"].spec == P()
    assert placed["step"].spec == P()
    with pytest.raises(ValueError, match=r"sharding rule \('a', 'split'\): write"):
        meshes.shard_state(mesh, shapes, [("a", "split")])
