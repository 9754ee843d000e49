"""State dicts of torch's optimizers at the start: what a training of the originals goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_OF_TORCH = {
    "maximize": False,
    "foreach": None,
    "differentiable": False,
    "fused": None,
}


def fresh(groups: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Write an optimizer that has made no step.

    Args:
      groups: of each the number of its parameters, and its options.
    """
    written, start = [], 0
    for count, options in groups:
        written.append({**options, "params": list(range(start, start + count))})
        start += count
    return {"state": {}, "param_groups": written}


def sgd(learning_rate: float, momentum: float, weight_decay: float) -> dict[str, Any]:
    """Options of a group of torch.optim.SGD."""
    return {
        "lr": learning_rate,
        "momentum": momentum,
        "dampening": 0,
        "weight_decay": weight_decay,
        "nesterov": False,
        **_OF_TORCH,
    }
