"""What the networks of "Using and Abusing Equivariance" share: leaves, layouts, the classifier.

Ours is a tree of `methods.supervised.Classifier` over a backbone of groups. The elements of D4
stand in another order in theirs (`groups.planar.turn_then_flip`), in the kernels and in the columns
of a `slices` head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups.planar import Group, turn_then_flip
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import Network, State, check, needed
from jaxequi.interop.mapping import SAME, Layout, Table
from jaxequi.names import unknown
from jaxequi.types import PyTree

_LEAVES = {"bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def table(backbone: Any, rename: Callable[[str], str]) -> Table:
    """Make the table of a `Classifier` over a backbone.

    Args:
      backbone: the network; its group, separable form and head decide the layouts.
      rename: a module's path below the backbone ("layer1_0/conv1") -> theirs.
    """
    group = backbone.group
    separable = getattr(backbone, "separable", None)
    by_slices = getattr(backbone, "head", None) == "slices"

    def look_up(path: str) -> tuple[str, Layout]:
        _, top, *modules, leaf = path.split("/")
        name = "fc" if top == "classifier" else rename("/".join(modules))
        if leaf in _LEAVES:
            return f"{name}.{_LEAVES[leaf]}", SAME
        if leaf == "kernel" and top == "classifier":
            return f"{name}.weight", _columns(group if by_slices else Group(1))
        if leaf == "kernel":
            return f"{name}.weight", _kernel(group, group.order > 1)
        if leaf in ("pointwise", "depthwise") and group.order == 1:
            return f"{name}.{('pointwise', 'depthwise').index(leaf)}.weight", _kernel(group, False)
        if leaf in ("pointwise", "depthwise"):
            has_slices = leaf == "pointwise" or separable == "gc"
            return f"{name}.{leaf}_weight", _kernel(group, has_slices)
        raise unknown(
            f"kind of leaf in {path}", leaf, [*_LEAVES, "kernel", "pointwise", "depthwise"]
        )

    return look_up


def read(
    state: State,
    config: ml_collections.ConfigDict | None,
    native: Callable[[ml_collections.ConfigDict], bool],
    table: Callable[[Any], Table],
    example: str,
) -> Network:
    """Read a state dict of a classifier, given `native` and the table of a backbone.

    Args:
      state, config: as of `formats.Format.read`.
      example: of a `--config`, for the refusal if there is none.
    """
    config = needed(config, example)
    check(native(config), config)
    template = networks.shapes(config, len(state.get("fc.weight", ())))
    variables = mapping.from_torch(state, template, table(networks.module(config)))
    return Network(variables, config, mapping.passed_over(state, mapping.COUNTERS))


def classifier(
    config: ml_collections.ConfigDict, variables: PyTree, table: Callable[[Any], Table]
) -> tuple[dict[str, np.ndarray], int]:
    """Write the state dict of a classifier, given the table of a backbone.

    Returns:
      The state dict, and the number of its classes.

    Raises:
      ValueError: a backbone alone.
    """
    if config.method is None:
        raise Refusal("the original's networks end in a classifier, and this is a backbone alone")
    state = mapping.to_torch(variables, table(networks.module(config)))
    return state, len(state["fc.bias"])


def is_classifier(config: ml_collections.ConfigDict, backbone: str) -> bool:
    """Whether a config is of a classifier over a backbone of that name, or that backbone alone."""
    named = config.backbone.name == backbone
    return named and (config.method is None or config.method.name == "supervised")


def call(maker: str, arguments: Mapping[str, Any]) -> str:
    """Write a call of theirs: "P4ResNet18(width=4, num_classes=10)"."""
    return f"{maker}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _kernel(group: Group, has_slices: bool) -> Layout:
    """[O, I, T, k, k], or without T, to [k, k, T, I, O]."""
    theirs = turn_then_flip(group)

    def from_torch(a: np.ndarray) -> np.ndarray:
        a = a if has_slices else a[:, :, None]
        a = a[:, :, np.argsort(theirs)] if a.shape[2] > 1 else a
        return a.transpose(3, 4, 2, 1, 0)

    def to_torch(a: np.ndarray) -> np.ndarray:
        a = a.transpose(4, 3, 2, 0, 1)
        a = a[:, :, theirs] if a.shape[2] > 1 else a
        return a if has_slices else a[:, :, 0]

    return Layout(from_torch, to_torch)


def _columns(group: Group) -> Layout:
    """A linear layer on C fields of G slices: [K, C G] to [C G, K]."""
    theirs = turn_then_flip(group)

    def reorder(a: np.ndarray, order: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1, group.order)[:, :, order].reshape(a.shape)

    return Layout(
        lambda a: reorder(a, np.argsort(theirs)).T,
        lambda a: reorder(np.ascontiguousarray(a.T), theirs),
    )
