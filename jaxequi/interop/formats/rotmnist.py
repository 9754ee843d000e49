"""Files of the RotMNIST networks of "Using and Abusing Equivariance".

Edixhoven, Lengyel and van Gemert (2023); `experiments/rotmnist/models_groupy.py`, SepCNN, and the
network of the published logs, which has the same names. Ours are those of `models.rotmnist`, which
calls its layers as they do.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from jaxequi.errors import Refusal
from jaxequi.interop import networks
from jaxequi.interop.formats import File, Network, State, _gconv, check
from jaxequi.interop.mapping import Table
from jaxequi.types import PyTree

_EQUIVARIANCE = {"c1": "Z2", "c4": "P4"}


def table(backbone: Any) -> Table:
    """Make the table of a classifier over a `models.rotmnist.RotMnistNet`."""
    return _gconv.table(backbone, lambda module: module.replace("/", "."))


def matches(state: State) -> bool:
    """Whether these are the names of seven convolutions and their norms."""
    parts = {name.partition(".")[0] for name in state}
    return parts == {"fc", *(f"{kind}{i}" for kind in ("conv", "bn") for i in range(1, 8))}


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is a network of the RotMNIST experiment."""
    return _gconv.is_classifier(config, "rotmnist")


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`."""
    return _gconv.read(state, config, native, table, "configs/rotmnist.py:exact,paper")


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write the state dict; see `formats.Format`."""
    check(native(config), config)
    del epoch  # theirs holds none
    state, classes = _gconv.classifier(config, variables, table)
    backbone = networks.module(config)
    if backbone.group.name not in _EQUIVARIANCE:
        raise Refusal(
            f"the original has networks over {' and '.join(_EQUIVARIANCE)}, and this run's is over "
            f"{backbone.group.name}"
        )
    arguments = {"planes": backbone.planes, "equivariance": _EQUIVARIANCE[backbone.group.name]}
    if backbone.pools == 2:
        loads = _gconv.call("SepCNN", {**arguments, "num_classes": classes})
        return File(dict(state), f"{loads} of experiments/rotmnist/models_groupy.py")
    loads = _gconv.call("GCNN", {**arguments, "pad": 1})
    return File(
        dict(state),
        f"{loads} of the published logs; SepCNN of the repository takes the same arrays, but pools "
        "twice and computes something else",
    )
