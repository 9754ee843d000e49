"""Files of equivision's ResNets: coefficients of steerable filters, with their bases or alone.

equivision, `equivision/e2resnet.py`, over escnn 1.0.11. Ours is a `methods.supervised.Classifier`
over a `models.steerable_resnet`. Beside its coefficients a file may hold the basis they refer to
and the filters they make. Of C_N and D_1 the basis is ours. Of D_N, N > 2, the signs of its
elements depend on the installation that wrote the file: they are read off its bases or its
filters, or else told by the running statistics (`interop.signs`), which takes images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import ml_collections
import numpy as np
from flax import traverse_util

from jaxequi.errors import Refusal
from jaxequi.groups import representations
from jaxequi.groups.planar import Group
from jaxequi.groups.representations import FieldType
from jaxequi.interop import mapping, networks, signs
from jaxequi.interop.formats import File, Network, State, _resnet, check, needed
from jaxequi.models.steerable_resnet import SteerableResNet
from jaxequi.nn import steerable
from jaxequi.nn.steerable import FilterSpace
from jaxequi.types import PyTree

EXAMPLE = "configs/equivision.py:d4resnet18,paper"
NEAR = 1e-5  # of an element of a basis to ours
FITS = 1e-3  # part of a filter that no coefficients of ours make

IGNORED = {
    **mapping.COUNTERS,
    r".*[._]indices_": "positions of channels, which follow from the type",
    r".*\.(filter|expanded_bias)$": "made of the coefficients",
    r".*\._basisexpansion\.": "what the coefficients refer to",
}
_LEAVES = {"bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def rename(module: str) -> str:
    """ "backbone/layer2_0/shortcut_conv" -> "layer2.0.downsample.0", "classifier" -> "fc"."""
    return "fc" if module == "classifier" else _resnet.rename(module.removeprefix("backbone/"))


class _Layer(NamedTuple):
    """A convolution of a network.

    Attributes:
      name: theirs.
      space: which filters.
      pair: its only pair of representations.
    """

    name: str
    space: FilterSpace
    pair: Any

    @property
    def basis(self) -> np.ndarray:
        """f64[B, d_out, d_in, k k]."""
        return self.pair.basis.filters

    @property
    def basis_name(self) -> str:
        """What a file calls its basis."""
        pair = f"'{self.pair.rho_in.name}', '{self.pair.rho_out.name}'"
        return f"{self.name}._basisexpansion.block_expansion_({pair}).sampled_basis"

    @property
    def layout(self) -> mapping.Layout:
        """Coefficients: theirs are one vector of o, i, b; ours [B, fields in, fields out]."""
        theirs = self.pair.shape[::-1]
        return mapping.Layout(
            lambda a: a.reshape(theirs).transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0).ravel()
        )

    def filters(self, weights: np.ndarray) -> np.ndarray:
        """f32[C_out, C_in, k, k] of coefficients f32[B, fields in, fields out]."""
        made = steerable.expand({"weights": weights}, self.space)
        return np.ascontiguousarray(np.asarray(made).transpose(3, 2, 0, 1))

    def coefficients(self, filters: np.ndarray) -> np.ndarray:
        """The inverse of `filters`, by least squares; with the bases' spans it is exact.

        Raises:
          ValueError: the filters are no combination of the basis.
        """
        count, fields_in, fields_out = self.pair.shape
        d_out, d_in, taps = self.basis.shape[1:]
        blocks = filters.reshape(fields_out, d_out, fields_in, d_in, taps)
        blocks = blocks.transpose(1, 3, 4, 2, 0).reshape(-1, fields_in * fields_out)
        matrix = self.basis.reshape(count, -1).T
        found = np.linalg.lstsq(matrix, blocks.astype(np.float64), rcond=None)[0]
        left = np.linalg.norm(matrix @ found - blocks) / np.linalg.norm(blocks)
        if left > FITS:
            raise Refusal(
                f"{self.name}.filter is no filter between these fields: {left:.2g} of it is made "
                f"by no coefficients (allowed: {FITS:g}). Is it of another group?"
            )
        return found.reshape(self.pair.shape).astype(np.float32)


def _layers(group: Group, template: PyTree) -> dict[str, _Layer]:
    """The convolutions by the path of their coefficients, "params/backbone/conv1/weights"."""
    regular, found = representations.regular(group), {}
    for path, leaf in traverse_util.flatten_dict(template, sep="/").items():
        *modules, last = path.split("/")[1:]
        if last != "weights":
            continue
        lifts = modules == ["backbone", "conv1"]
        rho_in = representations.trivial(group) if lifts else regular
        types = FieldType(((rho_in, leaf.shape[1]),)), FieldType(((regular, leaf.shape[2]),))
        spaces = [FilterSpace(*types, size) for size in ((7,) if lifts else (1, 3))]
        made = ((space, steerable.pairs(space)[0]) for space in spaces)
        space, pair = next((s, p) for s, p in made if p.shape == leaf.shape)
        found[path] = _Layer(rename("/".join(modules)), space, pair)
    return found


def _table(group: Group, layers: dict[str, _Layer]) -> mapping.Table:
    def look_up(path: str) -> tuple[str, mapping.Layout]:
        if path in layers:
            return f"{layers[path].name}.weights", layers[path].layout
        _, *modules, leaf = path.split("/")
        name = rename("/".join(modules))
        if leaf == "kernel":
            return f"{name}.weight", mapping.KERNEL
        norm = "" if name == "fc" else f".batch_norm_[{group.order}]"
        return f"{name}{norm}.{_LEAVES[leaf]}", mapping.SAME

    return look_up


def matches(state: State) -> bool:
    """Whether these are the names of a ResNet of steerable layers."""
    stem = "conv1.weights" in state or "conv1.filter" in state
    return stem and any(name.startswith("bn1.batch_norm_[") for name in state)


def native(config: ml_collections.ConfigDict) -> bool:
    """Whether this is a classifier over a steerable ResNet, or the backbone alone."""
    if config.backbone.name != "steerable_resnet":
        return False
    return config.method is None or config.method.name == "supervised"


def read(state: State, config: ml_collections.ConfigDict | None) -> Network:
    """Read a state dict; see `formats.Format`. Without bases and filters D_N is left undecided."""
    config = needed(config, EXAMPLE)
    check(native(config), config)
    network = cast(SteerableResNet, networks.module(config))
    _check_group(state, config.backbone.architecture, network.group)
    template = networks.shapes(config, len(state.get("fc.weight", ())))
    layers = _layers(network.group, template)
    state = {**_from_filters(state, layers), **state}
    left_out = mapping.passed_over(state, IGNORED)
    variables = mapping.from_torch(state, template, _table(network.group, layers), IGNORED)
    flat = traverse_util.flatten_dict(variables, sep="/")
    known: dict[signs.Coupling, int] = {}
    blind = []
    for path, layer in layers.items():
        told = _told(layer, flat[path], state)
        if told is None:
            blind.append(path)
            continue
        flat[path] = flat[path] * told.astype(np.float32)[:, None, None]
        which = signs.couplings_of(layer.pair.basis, layer.pair.rho_in, layer.pair.rho_out)
        known |= dict(zip(which, map(int, told), strict=True))

    def finished(found: Mapping[signs.Coupling, int], said: tuple[str, ...] = ()) -> Network:
        done = dict(flat)
        for path in blind:
            pair = layers[path].pair
            which = signs.couplings_of(pair.basis, pair.rho_in, pair.rho_out)
            rows = np.array([found.get(c, 1) for c in which], np.float32)
            done[path] = flat[path] * rows[:, None, None]
        tree = traverse_util.unflatten_dict(done, sep="/")
        return Network(tree, config, left_out, said)

    lacking = [c for c in signs.undetermined(network.group) if c not in known]
    if not blind or not lacking:
        return finished(known)

    def decide(images: np.ndarray) -> Network:
        backbone = networks.backbone(traverse_util.unflatten_dict(flat, sep="/"))
        found = signs.search(network, backbone, images)
        if not found.sure:
            raise Refusal(_undecided(found, len(images), network.group))
        return finished(found.signs, (_decided(found, len(images)),))

    return Network({}, config, left_out, undecided=decide)


def _check_group(state: State, architecture: str, group: Group) -> None:
    """Refuse a file of another group than the config's, as far as its names say."""
    orders = {int(n) for name in state for n in re.findall(r"^bn1\.batch_norm_\[(\d+)\]", name)}
    named = {
        mirrors
        for name in state
        for mirrors in re.findall(r"^conv1\._basisexpansion.*'irrep_0(,0)?', 'regular'", name)
    }
    ours = ",0" if group.mirrors and group.rotations > 1 else ""
    if orders != {group.order} or named - {ours}:
        mirrored = {"": "without mirrors", ",0": "with mirrors"}
        has = " and ".join(map(str, sorted(orders))) + " elements"
        has += "".join(f", {mirrored[n]}" for n in named)
        raise Refusal(
            f"the file is of a group of {has}, and {architecture} of the config is of "
            f"{group.name}, which has {group.order}; give the config of the file's network"
        )


def _from_filters(state: State, layers: dict[str, _Layer]) -> dict[str, np.ndarray]:
    """Coefficients of layers of which a file has the filter alone."""
    found = {}
    for layer in layers.values():
        name = f"{layer.name}.filter"
        space = layer.space
        shape = (space.type_out.size, space.type_in.size, space.size, space.size)
        if f"{layer.name}.weights" in state or name not in state:
            continue
        if state[name].shape == shape:
            found[f"{layer.name}.weights"] = layer.layout.to_torch(layer.coefficients(state[name]))
    return found


def _told(layer: _Layer, weights: np.ndarray, state: State) -> np.ndarray | None:
    """Signs [B] of a file's elements against ours, by its basis or its filter; None: it has none.

    Raises:
      ValueError: another basis than ours, or a filter that these coefficients do not make.
    """
    if layer.basis_name in state:
        theirs, ours = np.asarray(state[layer.basis_name]), layer.basis
        if theirs.shape == ours.shape:
            found = np.where((theirs * ours).sum((1, 2, 3)) < 0, -1, 1)
            gap = np.abs(theirs - found[:, None, None, None] * ours).max()
        if theirs.shape != ours.shape or gap > NEAR:
            raise Refusal(
                f"{layer.basis_name} is {theirs.shape} and not the basis of escnn 1.0.11, which is "
                f"{ours.shape} here: coefficients of another basis mean other filters"
            )
        return found
    filters = state.get(f"{layer.name}.filter")
    if filters is not None and np.any(filters):
        meant = layer.coefficients(np.asarray(filters))
        products = (meant * weights).sum((1, 2))
        found = np.where(products < 0, -1, 1)
        gap = np.abs(meant - found[:, None, None] * weights).max()
        if gap > FITS * np.abs(meant).max():
            raise Refusal(
                f"{layer.name}.filter and {layer.name}.weights of the file contradict each other "
                f"by {gap:.2g}: a network that was in evaluation mode when its weights were loaded "
                "keeps old filters. Save it after .train().eval(), or take the filters out"
            )
        return found
    pair = layer.pair
    which = signs.couplings_of(pair.basis, pair.rho_in, pair.rho_out)
    ambiguous = signs.undetermined(pair.rho_out.group)
    return None if any(c in ambiguous for c in which) else np.ones(len(weights))


def _decided(found: signs.Found, images: int) -> str:
    flipped = sum(sign < 0 for sign in found.signs.values())
    return (
        f"{len(found.signs)} signs of couplings, which the file leaves open, are told by its "
        f"running statistics: on {images} images variances differ by {found.deviation:.1%} with "
        f"them, and every other choice of one or two is e^{found.certainty:.0f} times less likely "
        f"or more ({flipped} of the signs are not ours)"
    )


def _undecided(found: signs.Found, images: int, group: Group) -> str:
    return (
        f"the file has coefficients of {group.name} without the basis that they refer to, and "
        f"{len(found.signs)} signs of it are open. {images} images do not decide them: with the "
        f"best choice variances differ from the stored ones by {found.deviation:.1%}, and another "
        f"is only e^{found.certainty:.1f} times less likely (asked for: {signs.CLOSE:.0%} at most, "
        f"and e^{signs.SURE:g}). Give "
        "more images like those of the training, --images=\"folder(root='imagenet/train')\", or "
        "save the state dict of the network in evaluation mode, which holds bases and filters"
    )


def write(config: ml_collections.ConfigDict, variables: PyTree, epoch: int) -> File:
    """Write the state dict; see `formats.Format`. It holds bases and filters."""
    check(native(config), config)
    del epoch  # theirs holds none
    if config.method is None:
        raise Refusal("the original's networks end in a classifier, and this is a backbone alone")
    network = cast(SteerableResNet, networks.module(config))
    if network.fit or network.antialias:
        raise Refusal("the original's networks have neither fit nor antialias; set both False")
    layers = _layers(network.group, variables)
    state = mapping.to_torch(variables, _table(network.group, layers))
    flat = traverse_util.flatten_dict(variables, sep="/")
    for path, layer in layers.items():
        state[f"{layer.name}.filter"] = layer.filters(flat[path])
        state[layer.basis_name] = layer.basis.astype(np.float32)
    order, ending = network.group.order, f".batch_norm_[{network.group.order}].running_mean"
    for name in [name for name in state if name.endswith(ending)]:
        module, fields = name.removesuffix(ending), len(state[name])
        state[f"{module}.indices_{order}"] = np.array([0, fields * order])
    fields = network.features
    state[f"gpool.in_indices_{order}"] = np.array([0, fields * order])
    state[f"gpool.out_indices_{order}"] = np.array([0, fields])
    classes, architecture = len(state["fc.bias"]), config.backbone.architecture
    return File(
        dict(state), f"equivision's {architecture}, {network.width} fields, {classes} classes"
    )
