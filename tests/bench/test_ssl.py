"""The bench of augmentation-invariant learning: its bytes are those of the arrays that it names."""

from __future__ import annotations

from jaxequi.bench import ssl


def test_a_queue_is_met_in_parts():
    found = ssl.queue_bytes(rows=512, queue=16384, width=8)
    assert found["queue"] == 4 * 16384 * 8
    assert found["similarities"] == 4 * 512 * 16385
    # A quarter of the similarities at a time, and what their gradient is made of; else all of them.
    assert found["beside_arguments"] < 0.8 * found["similarities"]
    assert found["beside_arguments_if_whole"] > found["similarities"]
