"""From costs to time and advice, by hand."""

import pytest

from jaxequi.plan import chips, estimate
from jaxequi.plan.program import Collective, Cost

GB = 1e9


def cost(**changes):
    values = {
        "flops": 197e12 * 0.010,  # ten milliseconds of a v5e
        "traffic": 819e9 * 0.020,  # twenty
        "state": 1 * GB,
        "temporary": 3 * GB,
        "memory": 4 * GB,
        "collectives": [],
    }
    return Cost(**{**values, **changes})


def test_roofline_of_one_chip():
    times = estimate.roofline(chips.parse("v5e:1x1"), cost())
    assert times.compute == pytest.approx(0.010)
    assert times.traffic == pytest.approx(0.020)
    assert times.network == 0
    assert times.bound == "traffic"
    assert times.lower == pytest.approx(0.020)
    assert times.upper == pytest.approx(0.030)


def test_a_gpu_multiplies_float32_at_half_the_rate():
    part = chips.parse("h100:1")
    half = estimate.roofline(part, cost(flops=989e12, traffic=0.0), share16=0.5)
    assert half.compute == pytest.approx(0.5 + 0.5 * 989 / 494)


@pytest.mark.parametrize(
    ("topology", "ring"),
    [
        ("v5e:1x1", 45 * GB),
        ("v5e:2x2", 2 * 45 * GB),  # a link along each axis
        ("v5e:4x8", 2 * 45 * GB),
        ("v5e:16x16", 4 * 45 * GB),  # both axes close
        ("v5e:8x16", 3 * 45 * GB),
        ("v5p:4x4x4", 6 * 90 * GB),
        ("v5p:2x2x1", 2 * 90 * GB),
        ("v7x:4x4x4", 3 * 90 * GB),  # two devices share a chip's links
        ("h100:8", 450 * GB),
    ],
)
def test_links_of_a_slice(topology, ring):
    assert chips.parse(topology).ring == pytest.approx(ring)


def test_a_sum_over_a_ring_takes_its_bytes_twice():
    part = chips.parse("v5e:4x4")
    reduce = Collective("all-reduce", 16, 90 * GB, 1)
    times = estimate.roofline(part, cost(collectives=[reduce]))
    assert times.network == pytest.approx(2 * 15 / 16)
    assert times.bound == "network"


@pytest.mark.parametrize(
    ("memory", "fixed", "expected"),
    [(8, 2, 192), (8, 8, 64), (20, 2, 64), (8, 15, 64), (21, 21, 0), (25, 21, 0)],
)
def test_largest_batch_on_a_straight_line(memory, fixed, expected):
    # Of 20 there are 18 for what 64 examples take 6 of: 192. What takes less than is said to be
    # fixed fits itself, or not.
    assert estimate.largest_batch(memory, fixed, 20, 64, 64) == expected


def test_the_same_batch_per_device_on_more_devices():
    gather = Collective("all-gather", 4, 4 * GB, 1)
    reduce = Collective("all-reduce", 4, 1 * GB, 1)
    part = Collective("all-reduce", 2, 1 * GB, 1)
    here = cost(flops=10.0, collectives=[gather, reduce, part])
    there = estimate.scaled(here, 40.0, 4, 16)
    assert there.flops == 10.0
    assert there.traffic == here.traffic
    assert there.collectives == [
        Collective("all-gather", 16, 16 * GB, 1),
        Collective("all-reduce", 16, 1 * GB, 1),
        part,
    ]
    assert estimate.scaled(here, 40.0, 4, 1).collectives == []


def test_what_every_device_repeats_grows_with_the_batch():
    # Of 40 on four devices 16 are done by each: 6 + 16 in place of 10.
    here = cost(flops=22.0)
    assert estimate.repeated(here, 40.0, 4) == pytest.approx(2.2)
    assert estimate.scaled(here, 40.0, 4, 8).flops == pytest.approx(6 + 32)
    assert estimate.scaled(here, 40.0, 4, 1).flops == pytest.approx(6 + 4)


def test_gradients_of_split_parameters():
    found = estimate.data_parallel(0.0, 8 * GB, 16, 4)
    assert found == [
        Collective("all-gather", 4, 16 * GB, 2),
        Collective("reduce-scatter", 4, 8 * GB, 1),
        Collective("all-reduce", 4, 2 * GB, 1),
    ]
    assert estimate.data_parallel(8 * GB, 0.0, 1, 1) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5f:4x4", "Did you mean 'v5"),
        ("v5e", "such as v5e:4x4"),
        ("v5e:4x4x4", "a torus of 2 axes"),
        ("v5p:4x4", "a torus of 3 axes"),
        ("v5e:0x4", "CHIP:SHAPE"),
        ("v5e:32x32", "at most 256 in a pod"),
        ("h100:16", "at most 8 behind one switch"),
    ],
)
def test_topologies_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        chips.parse(text)


def test_other_names_of_chips():
    assert chips.parse("tpu7x:2x2x1").devices == 8
    assert chips.parse(" V5LITEPOD:2x2 ").name == "v5e:2x2"
