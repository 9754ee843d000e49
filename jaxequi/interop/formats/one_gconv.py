"""Files of the network that unlearns its equivariance, of "Using and Abusing Equivariance".

Edixhoven, Lengyel and van Gemert (2023); `experiments/learning_unequivariance/`, CustomNet of the
notebook. Ours is `models.one_gconv`.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop import networks
from jaxequi.interop.formats import File, Network, State, _gconv, check
from jaxequi.interop.mapping import Table
from jaxequi.types import PyTree


def table(backbone: Any) -> Table:
    """Make the table of a classifier over a `models.one_gconv.OneGConv`."""
    return _gconv.table(backbone, {"conv": "net.0"}.__getitem__)


def matches(state: State) -> bool:
    """Whether these are the names of one convolution and a classifier."""
    return set(state) == {"net.0.weight", "net.0.bias", "fc.weight", "fc.bias"}


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is the network of one group convolution."""
    return _gconv.is_classifier(config, "one_gconv")


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`."""
    return _gconv.read(state, config, native, table, "configs/unequivariance.py:even")


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write the state dict; see `formats.Format`."""
    check(native(config), config)
    del epoch  # theirs holds none
    state, classes = _gconv.classifier(config, variables, table)
    backbone = networks.module(config)
    if backbone.group.name != "c4" or classes != 2:
        raise Refusal(
            f"the original's network is over c4 and tells 2 classes, and this run's is over "
            f"{backbone.group.name} and tells {classes}"
        )
    loads = _gconv.call("CustomNet", {"channels": backbone.features})
    return File(dict(state), f"{loads} of learning_unequivariance/learned_unequi_horses.ipynb")
