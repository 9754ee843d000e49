"""Networks over a group written out as plain ones: ordinary filters, the same outputs.

A trained network needs the group no longer: its filters are constants. The plain network runs
wherever convolutions do, and costs at inference what its channels cost.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.groups import representations
from jaxequi.groups.planar import Group
from jaxequi.groups.representations import FieldType
from jaxequi.nn import gconv, steerable
from jaxequi.nn.steerable import FilterSpace
from jaxequi.types import Array, PyTree


def expand(variables: PyTree, template: PyTree, group: Group) -> PyTree:
    """Write out the variables of a network over a group for a plain network.

    Args:
      variables: of layers of `nn.gconv` and of `steerable.RegularConv`, and of norms of their
        fields; any collections.
      template: variables of the plain network, or their shapes. Its modules have the same names,
        and `group.order` channels for each field.
      group: the group.

    Returns:
      A tree like `template`: filters as `filter_bank` and `steerable.expand` make them, and numbers
      of a field repeated over its channels.

    Raises:
      ValueError: a leaf of the template that has no counterpart, or another shape than it; the
        message names it.
    """

    def written(path: tuple[Any, ...], leaf: Any) -> Array:
        *modules, name = (part.key for part in path)
        layer = variables
        for part in modules:
            layer = layer.get(part, {})
        place = "/".join(map(str, [*modules, name]))
        if name == "kernel":
            made = _filters(layer, leaf.shape, group)
        else:
            made = jnp.repeat(layer[name], group.order) if name in layer else None
        if made is None or made.size != leaf.size:
            has = "nothing" if made is None else str(made.shape)
            raise Refusal(
                f"{place}: the plain network takes {leaf.shape}, and the network over {group.name} "
                f"has {has} for it. Widths must be {group.order} times the fields."
            )
        return made.reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(written, template)


def _filters(layer: Any, shape: tuple[int, ...], group: Group) -> Array | None:
    """f32[k, k, C_in, C_out] of a layer; None if it has no filters."""
    if "weights" in layer:
        fields_in, fields_out = layer["weights"].shape[1:]
        lifts = shape[-2] == fields_in
        rho_in = (representations.trivial if lifts else representations.regular)(group)
        space = FilterSpace(
            FieldType(((rho_in, fields_in),)),
            FieldType(((representations.regular(group), fields_out),)),
            shape[0],
        )
        return steerable.expand({"weights": layer["weights"]}, space)
    if "pointwise" in layer:
        return gconv.filter_bank(layer["depthwise"] * layer["pointwise"], group)
    return gconv.filter_bank(layer["kernel"], group) if "kernel" in layer else None
