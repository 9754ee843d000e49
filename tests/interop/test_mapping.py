"""State dicts in and out: layouts, round trip, and a readable difference where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.groups.planar import cyclic
from jaxequi.interop import mapping
from jaxequi.interop.formats import gresnet, pcam, sie, torchvision
from jaxequi.models.gresnet import GResNet

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


def test_a_layout_that_does_not_fit_is_in_the_difference():
    ours = variables()
    state = mapping.to_torch(ours, TABLE)
    table = mapping.by_module(lambda module: module.replace("/", "."))
    state["head.weight"] = state["head.weight"][0]
    with pytest.raises(ValueError) as error:
        mapping.from_torch(state, ours, table)
    assert str(error.value).splitlines()[1:] == [
        "- head.weight (for params/head/kernel (4, 6))",
        "+ head.weight (4,) (that cannot be laid out so)",
    ]


def test_ignored_names_need_no_place_and_are_told():
    ours = variables()
    state = mapping.to_torch(ours, TABLE)
    state["queue"] = state["queue_ptr"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"\+ queue \(3,\)\n\+ queue_ptr"):
        mapping.from_torch(state, ours, TABLE)
    ignored = {**mapping.COUNTERS, "queue": "filled anew"}
    np.testing.assert_equal(mapping.from_torch(state, ours, TABLE, ignored), ours)
    counters, queue = mapping.passed_over(state, ignored)
    assert counters.startswith("1 such as stem.bn.num_batches_tracked: torch's BatchNorm")
    assert queue == "2 such as queue: filled anew"


def test_what_is_named_and_missing_is_not_ignored():
    ours = variables()
    state = mapping.to_torch(ours, TABLE)
    del state["head.bias"]
    with pytest.raises(ValueError, match=r"- head.bias"):
        mapping.from_torch(state, ours, TABLE, {"head": "a pattern over all of the head"})


GROUPS = GResNet(cyclic(1), (1,), (1,))
STAGES = {  # table -> what it calls block 10 of stage 11
    "sie": (sie.TABLE, "backbone.layer11.10"),
    "torchvision": (torchvision.TABLE, "layer11.10"),
    "groups": (gresnet.table(GROUPS), "layers.10.10"),
    "groups, PCAM": (pcam.table(GROUPS), "layer11.10"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_and_blocks_of_two_digits(name):
    table, block = STAGES[name]
    random = np.random.default_rng(0)
    shape = (3, 3, 1, 1, 1) if "groups" in name else (3, 3, 1, 1)
    blocks = {
        f"layer{stage}_{block}": {
            "conv1": {"kernel": random.normal(size=shape)},
            "shortcut_bn": {"scale": random.normal(size=1)},
        }
        for stage in range(1, 13)
        for block in range(12)
    }
    ours = {"params": {"backbone": blocks}}
    state = mapping.to_torch(ours, table)
    assert len(state) == 2 * 12 * 12
    kernel = blocks["layer11_10"]["conv1"]["kernel"]
    np.testing.assert_array_equal(state[f"{block}.conv1.weight"].ravel(), kernel.ravel())
    scale = blocks["layer11_10"]["shortcut_bn"]["scale"]
    np.testing.assert_array_equal(state[f"{block}.downsample.1.weight"], scale)
    np.testing.assert_equal(mapping.from_torch(state, ours, table), ours)


def test_layers_of_two_digits_in_heads():
    names = [sie.rename(f"projector_inv/linear_{i}") for i in (0, 1, 10, 11)]
    assert names == [f"projector_inv.{place}" for place in (0, 3, 30, 33)]
    assert sie.rename("projector/norm_10") == "projector.31"
    assert sie.rename("predictor/mlp/linear_10") == "predictor.pred.20"
    assert sie.rename("predictor/hypernetwork_10") == "predictor.hypernet.net.20"
