"""Traces in words, by hand."""

from __future__ import annotations

import pytest

from jaxequi.train import profiling
from jaxequi.train.profiling import Event

PROGRAM = """\
%fused_computation.1 (param_0: f32[4]) -> f32[4] {
  %a.1 = f32[4]{0} add(%x, %y), metadata={op_name="jit(step)/jvp(Net)/head/add"}
  ROOT %m.1 = f32[4]{0} multiply(%a.1, %y), metadata={op_name="jit(step)/jvp(Net)/head/mul"}
}

ENTRY %main.9 (p: f32[4]) -> f32[4] {
  %fusion.1 = f32[4]{0} fusion(%p), kind=kLoop, calls=%fused_computation.1
  %while.2 = f32[4]{0} while(%fusion.1), condition=%c, body=%b
  ROOT %dot.3 = f32[4]{0} dot(%while.2, %p), metadata={op_name="jit(step)/optimizer/dot"}
}
"""


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("jit(step)/jvp(Net)/backbone/conv1/conv", "Net/backbone"),
        ("jit(step)/transpose(jvp(Net))/backbone/conv1/conv", "Net/backbone (backward)"),
        ("jit(step)/jvp(vmap(Net))/while/body/closed_call/head/dot", "Net/head"),
        ("jit(step)/jvp()/jit(relu)/max", "loss"),
        ("jit(step)/transpose(jvp())/mul", "loss (backward)"),
        ("jit(step)/optimizer/add", "optimizer"),
        ("jit(step)/reduce_sum", "other"),
    ],
)
def test_a_path_is_read_as_a_scope(path, scope):
    assert profiling.scope(path) == scope


def test_scopes_of_a_program():
    found = profiling.scopes(PROGRAM)
    assert found == {
        "a.1": "Net/head",
        "m.1": "Net/head",
        "fusion.1": "Net/head",  # which says nothing itself
        "dot.3": "optimizer",
    }  # a loop is what runs in it


def test_spans_that_overlap_count_once():
    assert profiling.busy([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert profiling.busy([]) == 0


def test_a_summary():
    ran = [
        Event("fusion.1", "cpu", 0, 3e6),
        Event("dot.3", "cpu", 2e6, 3e6),  # on another thread
        Event("fusion.1", "cpu", 9e6, 12e6),
    ]
    text = profiling.summary(ran, profiling.scopes(PROGRAM), 2)
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "profile of 2 steps; nothing ran in 50.0 % of the time",
        "a step, by scope:",
        "3.00 ms 85.7 % Net/head",
        "0.50 ms 14.3 % optimizer",
        "the longest operations:",
        "3.00 ms 85.7 % fusion.1: Net/head",
        "0.50 ms 14.3 % dot.3: optimizer",
    ]
    assert "names no instruction" in profiling.summary([], {}, 2)
