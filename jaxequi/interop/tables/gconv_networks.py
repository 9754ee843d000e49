"""Names of the networks of "Using and Abusing Equivariance", and layouts of their group axes.

Our side is a tree of `methods.supervised.Classifier` over `models.gresnet`, `models.rotmnist` or
`models.one_gconv`; theirs are the state dicts of `experiments/models`, `classification/pcam`,
`rotmnist/models_groupy.py` and `learning_unequivariance`. The elements of D4 stand in another order
there (`groups.planar.turn_then_flip`), in the kernels and in the columns of a `slices` head.
"""

from __future__ import annotations

import re

import numpy as np

from jaxequi.groups.planar import Group, turn_then_flip
from jaxequi.interop.mapping import SAME, Layout, Table
from jaxequi.models.gresnet import GResNet
from jaxequi.models.one_gconv import OneGConv
from jaxequi.models.rotmnist import RotMnistNet
from jaxequi.names import unknown

_LEAVES = {"bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}


def table(backbone: GResNet | RotMnistNet | OneGConv, stages: str = "layers.{0}") -> Table:
    """Make the table of a `Classifier` over one of these backbones.

    Args:
      backbone: the network; its group and separable form decide the layouts.
      stages: what the file calls stage {0}, counted from 0, or {1}, counted from 1: the reference's
        ResNets have `layers.{0}`, its PCAM networks `layer{1}`.
    """
    group = backbone.group
    separable = getattr(backbone, "separable", None)
    by_slices = getattr(backbone, "head", None) == "slices"
    stem = {"stem": "conv1", "bn": "bn1", "conv": "net.0"}

    def rename(modules: list[str]) -> str:
        if modules == ["classifier"]:
            return "fc"
        names = []
        for part in modules[1:]:  # below "backbone"
            stage = re.fullmatch(r"layer(\d+)_(\d+)", part)
            if stage:
                count = int(stage[1])
                names += [stages.format(count - 1, count), stage[2]]
            else:
                names.append(_SHORTCUT.get(part, part))
        return stem.get(names[0], names[0]) if len(names) == 1 else ".".join(names)

    def look_up(path: str) -> tuple[str, Layout]:
        _, *modules, leaf = path.split("/")
        name = rename(modules)
        if leaf in _LEAVES:
            return f"{name}.{_LEAVES[leaf]}", SAME
        if leaf == "kernel" and modules == ["classifier"]:
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
