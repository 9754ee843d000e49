"""How a trained network gets into a first state: what is laid, what is drawn, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxequi.errors import Refusal
from jaxequi.train import optim
from jaxequi.train.state import Start, initialise, lay, placed
from jaxequi.types import OWN, Method, Output


def network(scale=1.0, width=3):
    """Collections of a network: a backbone with BatchNorm, and a projector."""
    return {
        "params": {
            "backbone": {"kernel": scale * np.arange(2.0 * width).reshape(2, width)},
            "projector": {"kernel": scale * np.full((width, 2), 5.0)},
        },
        "batch_stats": {"backbone": {"mean": scale * np.arange(1.0, width + 1)}},
    }


def state_of(params, extra):
    method = Method(
        init=lambda key, batch: jax.tree.map(jnp.asarray, (params, extra)),
        loss=lambda *_: (jnp.zeros(()), Output({}, {}, {})),
        encode=lambda *_: {},
    )
    return initialise(method, optim.Optimizer(*optax.sgd(0.1)), jax.random.key(0), {})


def begun(start, params, extra):
    """The state that a run of these values begins with."""
    state = state_of(params, extra)
    return placed(lay(start, jax.eval_shape(lambda: state)), state)


def zeros(tree):
    return jax.tree.map(np.zeros_like, tree)


def test_every_value_is_found_by_its_path():
    there = network()
    state = begun(
        Start(there, "", "run"),
        zeros(there["params"]),
        {"batch_stats": zeros(there["batch_stats"])},
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, there["params"])
    jax.tree.map(np.testing.assert_array_equal, state.extra["batch_stats"], there["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert state.step == 0


def test_a_target_starts_as_a_copy_of_the_online_network_and_a_queue_as_drawn():
    there, queue = network(), np.full((4, 2), 7.0)
    target = zeros({"params": there["params"], "batch_stats": there["batch_stats"]})
    extra = {
        "batch_stats": zeros(there["batch_stats"]),
        OWN: {"target": target, "queue": queue, "pointer": np.int32(3)},
    }
    state = begun(Start(there, "", "run"), zeros(there["params"]), extra)
    own = state.extra[OWN]
    for name in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, own["target"][name], there[name])
    np.testing.assert_array_equal(own["queue"], queue)
    assert own["pointer"] == 3


def test_a_frozen_network_is_the_networks_backbone():
    there = network()
    frozen = {
        "params": zeros(there["params"]["backbone"]),
        "batch_stats": zeros(there["batch_stats"]["backbone"]),
    }
    head = {"head": {"kernel": np.full((3, 4), 9.0)}}
    state = begun(Start(there, "^params/head/", "run"), head, {OWN: {"backbone": frozen}})
    found = state.extra[OWN]["backbone"]
    np.testing.assert_array_equal(found["params"]["kernel"], there["params"]["backbone"]["kernel"])
    np.testing.assert_array_equal(
        found["batch_stats"]["mean"], there["batch_stats"]["backbone"]["mean"]
    )
    np.testing.assert_array_equal(state.params["head"]["kernel"], 9)


def test_what_is_fresh_is_drawn_though_the_network_has_it():
    there = network()
    drawn = jax.tree.map(lambda a: np.full_like(a, -1), there["params"])
    extra = {
        "batch_stats": zeros(there["batch_stats"]),
        OWN: {"target": {"params": jax.tree.map(lambda a: np.full_like(a, -1), there["params"])}},
    }
    state = begun(Start(there, "params/projector/", "run"), drawn, extra)
    np.testing.assert_array_equal(state.params["projector"]["kernel"], -1)
    np.testing.assert_array_equal(state.extra[OWN]["target"]["params"]["projector"]["kernel"], -1)
    np.testing.assert_array_equal(
        state.params["backbone"]["kernel"], there["params"]["backbone"]["kernel"]
    )


def test_what_is_lacking_is_told_beside_what_stays_unused():
    there = network()
    params = zeros(there["params"]) | {"predictor": {"bias": np.zeros(2)}}
    params["head"] = params.pop("projector")
    state = jax.eval_shape(lambda: state_of(params, {}))
    with pytest.raises(Refusal) as error:
        lay(Start(there, "bias", "step 7 of here"), state)
    told = str(error.value).splitlines()
    assert told[0].startswith("step 7 of here does not give")
    assert told[1:-1] == [
        "- params/head/kernel (3, 2)",
        "+ batch_stats/backbone/mean (3,)",
        "+ params/projector/kernel (3, 2)",
    ]
    assert "`fresh`" in told[-1]
    assert "'bias'" in told[-1]


def test_another_shape_is_told_with_both():
    wide = zeros(network(width=5)["params"])
    state = jax.eval_shape(lambda: state_of(wide, {}))
    with pytest.raises(Refusal) as error:
        lay(Start(network(), "", "run"), state)
    told = str(error.value)
    assert "- params/backbone/kernel (2, 5), which has (2, 3) there" in told
    assert "- params/projector/kernel (5, 2), which has (3, 2) there" in told
    assert "+ batch_stats/backbone/mean (3,)" in told
    assert "+ params" not in told


def test_long_lists_are_cut():
    many = {f"layer{i:02}": {"bias": np.zeros(2)} for i in range(25)}
    state = jax.eval_shape(lambda: state_of(many, {}))
    with pytest.raises(Refusal) as error:
        lay(Start({"params": {f"old{i}": np.zeros(1) for i in range(25)}}, "", "run"), state)
    told = str(error.value).splitlines()
    assert sum(line.startswith("- ") for line in told) == 20
    assert sum(line.startswith("+ ") for line in told) == 20
    assert told.count("  ... and 5 more") == 2


def test_values_keep_the_places_of_the_state():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    state = state_of({"kernel": jnp.zeros((2, 8), jnp.bfloat16)}, {})
    state = state.replace(params=jax.device_put(state.params, place))
    found = placed({"params/kernel": np.arange(16.0).reshape(2, 8)}, state)
    assert found.params["kernel"].sharding == place
    assert found.params["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.params["kernel"], np.arange(16.0).reshape(2, 8))
