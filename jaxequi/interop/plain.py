"""A trained network over a group as a plain ResNet: ordinary convolutions, the same logits.

Its arrays are those of a classifier of torchvision's blocks under torchvision's names, with as many
channels as the fields have elements (`nn.expansion`). Before `fc` stands, as in the original, the
mean over pixels and then the maximum over the `order` channels of each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from jaxequi.errors import Refusal
from jaxequi.groups.planar import Group
from jaxequi.interop import mapping, networks
from jaxequi.interop.formats import torchvision
from jaxequi.models import steerable_resnet
from jaxequi.models.steerable_resnet import SteerableResNet
from jaxequi.models.torchvision_resnet import ResNet
from jaxequi.nn import expansion
from jaxequi.nn.pool import coset_max
from jaxequi.types import Array, PyTree

State = Mapping[str, Any]


class Plain(NamedTuple):
    """A plain classifier.

    Attributes:
      network: the backbone, f32[B, H, W, 3] to f32[B, R G].
      group: the group; a field has as many channels as it has elements.
      epsilon: of its norms.
      template: shapes of its variables, {"params": ..., "batch_stats": ...}.
    """

    network: ResNet
    group: Group
    epsilon: float
    template: PyTree


def expand(config: ml_collections.ConfigDict, variables: PyTree) -> tuple[Plain, State]:
    """Write out a classifier over a group.

    Args:
      config: of the run.
      variables: its {"params": ..., "batch_stats": ...}.

    Returns:
      The plain network, and its state dict: numpy arrays under torchvision's names.

    Raises:
      ValueError: no classifier over a steerable ResNet, or one that pads or blurs.
    """
    network = networks.module(config)
    if not isinstance(network, SteerableResNet) or "classifier" not in variables["params"]:
        raise Refusal(
            f"backbone {config.backbone.name!r}, method {config.method.name!r}: what is written "
            "out is a classifier over a steerable_resnet (method 'supervised')"
        )
    other, x = steerable_resnet.plain(network), jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: other.init(jax.random.key(0), x, False))
    backbone = expansion.expand(networks.backbone(variables), shapes, network.group)
    written = networks.under_backbone(backbone)
    written["params"]["classifier"] = variables["params"]["classifier"]
    written = jax.tree.map(np.asarray, written)
    template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), written)
    made = Plain(other, network.group, config.norm.epsilon, template)
    return made, mapping.to_torch(written, torchvision.TABLE)


def logits(plain: Plain, state: State, images: Array | np.ndarray) -> Array:
    """Compute f32[B, K] of normalised images f32[B, H, W, 3]; the state dict may be traced."""
    tree = {}
    for path in traverse_util.flatten_dict(plain.template, sep="/"):
        name, layout = torchvision.TABLE(path)
        tree[path] = layout.from_torch(state[name])
    variables = traverse_util.unflatten_dict(tree, sep="/")
    y = jnp.asarray(plain.network.apply(networks.backbone(variables), images, False))
    head = variables["params"]["classifier"]
    return coset_max(y, plain.group) @ head["kernel"] + head["bias"]
