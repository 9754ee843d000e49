"""Eight simulated CPU devices, and an error at the first NaN, for the whole suite."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0"
)

import jax
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # grain reads absl flags, and pytest parses none
jax.config.update("jax_platforms", "cpu")


@pytest.fixture(autouse=True)
def nan_is_an_error():
    with jax.debug_nans(True):
        yield


@pytest.fixture
def keys():
    """Fresh PRNG keys, one a call of `next`."""
    key = jax.random.key(0)

    def stream():
        count = 0
        while True:
            count += 1
            yield jax.random.fold_in(key, count)

    return stream()
