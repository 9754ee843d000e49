"""No device does the work of another one."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from configs import eqinv, ipirm, mae, moco, sie
from jaxequi import experiment
from jaxequi.models import steerable_resnet
from jaxequi.plan import inputs, program
from jaxequi.train import mesh as meshes
from jaxequi.train import programs

METHODS = {
    "moco": (moco, "v2"),
    "eqinv": (eqinv, "eqinv"),  # compares its batch with a table
    "ipirm_mixup": (ipirm, "ipirm_mixup"),  # mixes each image with another one
    "sie": (sie, "sie"),
}


def compiled(file, variant, data, fsdp=1, groups=1):
    """A step as each of so many devices runs it, and its job."""
    config = file.get_config(f"{variant},smoke")
    config.batch_size, config.norm.groups = 16, groups
    config.mesh = {"data": data, "fsdp": fsdp}
    config.backbone = ml_collections.ConfigDict({"name": "tests.experiment.tiny", "features": 16})
    config.evals, config.eval_every_steps, config.best = {}, 0, None
    if "init_from" in config and "before" in config:
        config.init_from = None
    job = experiment.build(config)
    step, _ = programs.trace_step(job)
    return step.lower().compile().as_text(), job


def arithmetic(*given):
    """Operations of the products of a step on each of so many devices."""
    return program.products(compiled(*given)[0])


@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_share_the_arithmetic(name):
    """Rows that are picked by number would be held, and computed with, as a whole by each."""
    alone, shared = (arithmetic(*METHODS[name], devices) for devices in (1, 8))
    assert alone > 0
    assert 8 * shared < 1.2 * alone  # what is of the whole batch is small


def test_keys_are_shuffled_and_no_image_moves():
    text, job = compiled(moco, "v2", 8, 1, 4)
    assert job.config["method"]["shuffle"]
    moved = [one for one in program.collectives(text) if one.kind != "all-reduce"]
    assert moved  # keys go to the queue of every device
    views = job.shapes()["views"].shape
    assert sum(one.bytes for one in moved) < 4 * math.prod(views[2:])  # one image


@pytest.mark.parametrize("name", METHODS)
def test_devices_that_share_the_state_share_the_arithmetic(name, monkeypatch):
    """Though every parameter is split, rows stay where they are."""
    monkeypatch.setattr(meshes, "SMALL", 1)
    alone, shared = arithmetic(*METHODS[name], 1), arithmetic(*METHODS[name], 2, 4)
    assert 8 * shared < 1.2 * alone


@pytest.mark.parametrize(
    ("file", "variant"),
    [(mae, "huge,paper"), (moco, "v2,paper"), (sie, "sie,paper")],
)
def test_a_device_holds_its_part_of_the_state(file, variant):
    """Parameters, moments, target network and queue, without a word but the size of the mesh."""
    config, _ = inputs.prepared(file.get_config(variant), inputs.Data())
    _, state = programs.trace_step(inputs.job(inputs.changed(config, {"mesh.fsdp": 8}), (), 8))

    def size(leaf, shape):
        return math.prod(shape) * getattr(leaf.dtype, "itemsize", 4)

    leaves = jax.tree.leaves(state)
    whole = sum(size(leaf, leaf.shape) for leaf in leaves)
    part = sum(size(leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    assert whole > 1e8
    assert 8 * part < 1.1 * whole


def test_a_gradient_travels_as_weights_and_not_as_filters():
    """Filters of D4 hold each weight eight times, and more."""
    network = steerable_resnet.make("d4resnet10", 2)
    images = jnp.zeros((16, 33, 33, 3))
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)
    mesh = meshes.make_mesh(8)

    def loss(params, stats, x):
        y, _ = network.apply(
            {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        )
        return jnp.mean(y**2)

    whole = meshes.replicated(mesh)
    with meshes.known(mesh):
        lowered = jax.jit(
            jax.grad(loss),
            in_shardings=(whole, whole, meshes.over_batch(mesh)),
            out_shardings=whole,
        ).lower(variables["params"], variables["batch_stats"], images)
    found = sum(one.bytes for one in program.collectives(lowered.compile().as_text()))
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert weights < found < 1.2 * weights  # and the statistics of the norms
