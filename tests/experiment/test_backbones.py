"""Every method over a network of any group, by its config alone."""

from __future__ import annotations

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxequi import cli, experiment
from jaxequi.errors import Refusal
from jaxequi.nn.norm import BatchNorm, InnerBatchNorm

METHODS = {
    "sie": "sie",
    "simclr": "sie:simclr",
    "moco": "moco:v2",
    "byol": "byol",
    "supervised": "equivision",
}
FIRST = {
    "c8resnet18": ("conv1", "weights", (18, 3, 2)),
    "p4resnet18": ("stem", "kernel", (3, 3, 1, 3, 2)),
}


def config_of(family):
    file, _, variant = family.partition(":")
    words = ",".join(filter(None, (variant, "smoke")))
    return importlib.import_module(f"configs.{file}").get_config(words)


@pytest.mark.parametrize("network", FIRST)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_builds_over_a_group(method, network):
    config = config_of(METHODS[method])
    with config.unlocked():
        config.backbone.name, config.backbone.width = network, 2
    job = experiment.build(config, overridden=["backbone.name", "backbone.width"])
    assert job.config["backbone"]["architecture"] == network
    batch = {**job.shapes()}
    batch["views"] = jax.ShapeDtypeStruct(batch["views"].shape, jnp.float32)
    params, extra = jax.eval_shape(job.method.init, jax.random.key(0), batch)
    layer, leaf, shape = FIRST[network]
    assert params["backbone"][layer][leaf].shape == shape
    features = jax.eval_shape(job.method.encode, params, extra, batch["views"])
    width = 16 * (1 if network == "c8resnet18" else 4)  # a maximum over each field, or its slices
    assert features["representation"].shape[-1] == width
    # quarter turns at these sizes: said before anything is compiled
    assert job.preflight(job.shapes()).startswith("equivariance, predicted:")


# Of these, what has norms: projectors and predictors beside the backbone.
NORMED = {
    "sie": {"backbone", "projector_inv", "projector_equi"},
    "sie:vicreg": {"backbone", "projector"},
    "sie:simclr_equimod": {"backbone", "projector_inv", "projector_equi"},
    "moco:v2plus": {"backbone", "projector", "predictor"},
    "byol": {"backbone", "projector", "predictor"},
    "simsiam": {"backbone", "projector", "predictor"},
    "ipirm": {"backbone", "projector"},
    "eqinv": {"backbone", "projector"},
    "equivision": {"backbone"},
}


@pytest.mark.parametrize("method", NORMED)
def test_every_norm_of_a_network_is_the_configs(method):
    config = config_of(method)
    config.init_from = None
    config.norm = {"groups": 2, "momentum": 0.25, "epsilon": 0.125, "unbiased": False}
    if method in ("ipirm", "equivision"):  # norms by environment; norms of fields
        config.norm.groups = 1
    seen = {}

    def note(next_function, args, kwargs, context):
        module = context.module
        if isinstance(module, (BatchNorm, InnerBatchNorm)):
            names = ("groups", "momentum", "epsilon", "unbiased")
            made = {name: getattr(module, name) for name in names if hasattr(module, name)}
            seen.setdefault(module.path[0], []).append(made)
        return next_function(*args, **kwargs)

    job = experiment.build(config)
    batch = {**job.shapes()}
    batch["views"] = jax.ShapeDtypeStruct(batch["views"].shape, jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(job.method.init, jax.random.key(0), batch)
    assert set(seen) == NORMED[method]
    for made in (one for of_part in seen.values() for one in of_part):
        assert made.items() <= dict(config.norm).items()


def test_names_of_networks_on_the_command_line():
    def parsed(*words):
        own = cli.flags.FlagValues()
        cli.define_config(own)
        cli.arguments(["main", "--config=configs/sie.py:simclr,smoke", *words], own, [], "")
        config, overridden, _ = cli.config(own)
        config = config.copy_and_resolve_references()
        experiment.networks.follow_names(config, set(overridden))
        return dict(config.backbone)

    assert parsed("--config.backbone=d4resnet50", "--config.backbone.width=3") == {
        "name": "steerable_resnet",
        "architecture": "d4resnet50",
        "width": 3,
    }
    with pytest.raises(Refusal, match=r"'resnet18' is an architecture of gresnet and of torchvi"):
        parsed("--config.backbone=resnet18")
    with pytest.raises(Refusal, match="unknown name in models 'c8resnet19'"):
        parsed("--config.backbone=c8resnet19")
