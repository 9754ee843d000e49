"""State dicts in and out: layouts, round trip, and a readable difference where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.interop import mapping
from jaxequi.interop.tables import resnet

TABLE = mapping.by_module(lambda module: module.replace("/", "."))


def variables():
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    return {
        "params": {
            "stem": {"conv": {"kernel": draw(3, 5, 2, 4)}, "bn": {"scale": draw(4)}},
            "head": {"kernel": draw(4, 6), "bias": draw(6)},
        },
        "batch_stats": {"stem": {"bn": {"mean": draw(4), "var": draw(4)}}},
    }


def test_names_and_layouts():
    ours = variables()
    state = mapping.to_torch(ours, TABLE)
    assert {k: v.shape for k, v in state.items()} == {
        "stem.conv.weight": (4, 2, 3, 5),
        "stem.bn.weight": (4,),
        "stem.bn.running_mean": (4,),
        "stem.bn.running_var": (4,),
        "stem.bn.num_batches_tracked": (),
        "head.weight": (6, 4),
        "head.bias": (6,),
    }
    kernel = ours["params"]["stem"]["conv"]["kernel"]
    assert state["stem.conv.weight"][3, 1, 2, 4] == kernel[2, 4, 1, 3]
    assert state["head.weight"][5, 1] == ours["params"]["head"]["kernel"][1, 5]
    assert state["stem.bn.num_batches_tracked"].dtype == np.int64


def test_round_trip():
    ours = variables()
    back = mapping.from_torch(mapping.to_torch(ours, TABLE), ours, TABLE)
    np.testing.assert_equal(back, ours)


def test_the_difference_lists_every_key():
    ours = variables()
    state = mapping.to_torch(ours, TABLE)
    state["fc.bias"] = state.pop("head.bias")
    state["head.weight"] = state["head.weight"][:5]
    with pytest.raises(ValueError) as error:
        mapping.from_torch(state, ours, TABLE)
    assert str(error.value).splitlines()[1:] == [
        "- head.weight (for params/head/kernel (4, 6))",
        "- head.bias (for params/head/bias (6,))",
        "+ fc.bias (6,)",
        "+ head.weight (5, 4) (that would be (4, 5))",
    ]


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="the same name"):
        mapping.to_torch(variables(), lambda path: ("x", mapping.SAME))


def test_a_leaf_without_a_rule_is_named():
    with pytest.raises(ValueError, match="params/token"):
        mapping.to_torch({"params": {"token": np.zeros(3)}}, TABLE)


def test_resnet_names():
    assert resnet.TABLE("params/bn1/scale")[0] == "bn1.weight"
    assert (
        resnet.TABLE("batch_stats/backbone/layer2_10/shortcut_bn/mean")[0]
        == "backbone.layer2.10.downsample.1.running_mean"
    )
