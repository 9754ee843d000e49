"""Signs of the couplings of D_N, which a file of coefficients leaves open, told by its statistics.

escnn finds the couplings of D_N (`groups.kernels.couplings`) as null vectors, whose signs depend on
the installation, and its files may hold the coefficients alone, as equivision's do. A wrong sign
makes other filters, and what they put out varies otherwise than BatchNorm has stored. So on images
like those of the training the stored variances tell the signs. The variances of a layer are
quadratic forms in the signs of its own filters, so that a layer is computed once for all of them.

The difference is small: on photographs a sign moves a variance by a few percent, less than one
photograph differs from the next. Images of other kinds than the training's decide nothing, which
the search says (`Found.certainty`).

Simulated files of d4resnet18 (drawn coefficients, random signs, statistics of crops of
photographs; 2026-11-27): searched on other crops of the same two or eight photographs all 9 signs
were right in three of three, with variances 1.0 to 1.6 % from the stored ones. On crops of another
photograph 2 and 4 signs were wrong in two of two, with 25 %, and the next best assignment was as
likely: such files are refused. A bottleneck network was right on the images of its statistics. Of
d8resnet18 the search for 23 signs ended beside them, and was refused: there it is the first guesses
that count, all positive and `REFERENCE`. No trained file was at hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxequi.groups import kernels, representations
from jaxequi.groups.planar import Group
from jaxequi.groups.representations import FieldType, Irrep, Representation
from jaxequi.models.steerable_resnet import SteerableResNet
from jaxequi.models.torchvision_resnet import Bottleneck
from jaxequi.nn import steerable
from jaxequi.nn.steerable import FilterSpace, RegularConv
from jaxequi.types import PyTree

Coupling = tuple[Irrep, Irrep, Irrep]
"""Irreps of output and input, and the one that joins them."""

SURE = 10.0
"""Logarithm of how many times likelier than any other an assignment must be to be taken."""

CLOSE = 0.05
"""Mean deviation of variances above which no assignment is taken."""

REFERENCE = {"d4": "-------+-", "d8": "-----++++------+---+---"}
"""Signs of `undetermined` in one installation of escnn 1.0.11, the first guess."""

STAGES = 2  # of the network that are looked at
POSITIONS = 8192  # of a layer of which its covariances are the mean, at most
FIELDS = 64  # of a layer that are looked at, at most
STARTS = 24  # of the search


def couplings_of(basis: kernels.Basis, rho_in: Representation, rho_out: Representation) -> list:
    """The `Coupling` of each element of a basis."""
    irreps = representations.irreps(rho_out.group)
    return [
        (rho_out.irreps[o], rho_in.irreps[i], irreps[j])
        for o, i, j in zip(basis.out_irrep, basis.in_irrep, basis.coupled, strict=True)
    ]


def between_regular(group: Group, size: int) -> list[Coupling]:
    """The coupling of each filter of so many pixels between regular fields."""
    regular = representations.regular(group)
    return couplings_of(kernels.basis(regular, regular, size), regular, regular)


def undetermined(group: Group, size: int = 3) -> list[Coupling]:
    """Couplings between regular fields whose sign the reference's coefficients leave open.

    Those with an irrep of size 2, as far as filters of so many pixels have them. If input or output
    are trivial the reference's couplings are positive, as ours, and its first layer is exact.
    """
    still = representations.irreps(group)[0]

    def is_open(coupling: Coupling) -> bool:
        sizes = [representations.irrep_matrices(group, i).shape[-1] for i in coupling]
        return group.mirrors and max(sizes) == 2 and still not in coupling[:2]

    return [c for c in dict.fromkeys(between_regular(group, size)) if is_open(c)]


def apply(backbone: PyTree, signs: Mapping[Coupling, int], group: Group) -> PyTree:
    """Multiply the coefficients between regular fields by the signs of their couplings.

    Args:
      backbone: parameters of a `SteerableResNet`; the first layer, `conv1`, stays.
      signs: +1 or -1; couplings that it does not name keep theirs.
      group: the group.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        if path[-1].key != "weights" or len(path) < 3:
            return leaf
        rows = [signs.get(c, 1) for c in between_regular(group, _size(leaf, group))]
        return leaf * np.array(rows, np.float32)[:, None, None]

    return jax.tree_util.tree_map_with_path(one, backbone)


def _size(weights: Any, group: Group) -> int:
    """Pixels of a side of the filters between regular fields."""
    sizes = {len(between_regular(group, size)): size for size in (1, 3)}
    return sizes[len(weights)]


class Found(NamedTuple):
    """What a search found.

    Attributes:
      signs: of each of `undetermined`, +1 or -1.
      deviation: mean |log variance - log stored variance|, of the fields of a layer against their
        median.
      certainty: logarithm of how many times likelier it is than the next best assignment, of those
        that differ in one or two signs, if the deviations of fields are independent and have the
        distribution of Laplace.
    """

    signs: dict[Coupling, int]
    deviation: float
    certainty: float

    @property
    def sure(self) -> bool:
        """Whether the images decide."""
        return self.certainty >= SURE and self.deviation <= CLOSE


def search(network: SteerableResNet, variables: PyTree, images: np.ndarray) -> Found:
    """Find the signs with which a network has its stored variances.

    Args:
      network: over D_N.
      variables: {"params": ..., "batch_stats": ...} of the backbone, with coefficients as a file
        has them.
      images: f32[N, H, W, 3], normalised and cropped as in the training.
    """
    group = network.group
    wanted = undetermined(group)
    watched = _watched(network.clone(stage_sizes=network.stage_sizes[:STAGES]))
    for guess in ("+" * len(wanted), REFERENCE.get(group.name, "")):
        signs = np.array([1 if sign == "+" else -1 for sign in guess])
        if len(signs) == len(wanted):
            layers = _layers(
                group, watched, variables, images, dict(zip(wanted, signs, strict=True))
            )
            found = _judged(layers, signs, wanted)
            if found.sure:
                return found
    random = np.random.default_rng(0)
    # What a bottleneck's first layer puts out varies alike with either sign of a coupling of its
    # own; which it was shows behind it.
    ahead = undetermined(group, 1) if network.block is Bottleneck else []
    best: tuple[float, np.ndarray, list[_Layer]] | None = None
    for first in itertools.product((1, -1), repeat=len(ahead)):
        signs = np.array([dict(zip(ahead, first)).get(c, 1) for c in wanted])
        for attempt in range(6):
            layers = _layers(
                group, watched, variables, images, dict(zip(wanted, signs, strict=True))
            )
            use = layers if attempt else layers[: 1 + bool(ahead)]
            starts = [signs, *random.choice([-1, 1], (STARTS, len(wanted)))]
            before, signs = signs, min((_descend(use, s) for s in starts), key=_second)[0]
            if attempt and (before == signs).all():
                break
        deviation = float(_deviations(layers, signs[None]).mean())
        if best is None or deviation < best[0]:
            best = deviation, signs, layers
    assert best is not None
    return _judged(best[2], best[1], wanted)


def _judged(layers: list[_Layer], signs: np.ndarray, wanted: list[Coupling]) -> Found:
    """Compare an assignment with its neighbours."""
    own = _deviations(layers, signs[None])
    more = _deviations(layers, signs * _moves(len(signs))) - own
    deviation = float(own.mean())
    certainty = float(more.sum(1).min() / max(deviation, 1e-3))
    return Found(dict(zip(wanted, map(int, signs), strict=True)), deviation, certainty)


class _Layer(NamedTuple):
    """Variances of a layer as forms in the signs.

    Attributes:
      forms: f64[F, T + 1, T + 1]: covariances of what the filters of each coupling put out alone;
        the filters without an open sign come first.
      stored: f64[F], logarithms of the stored variances.
    """

    forms: np.ndarray
    stored: np.ndarray


def _layers(
    group: Group,
    watched: _Watched,
    variables: PyTree,
    images: np.ndarray,
    signs: Mapping[Coupling, int],
) -> list[_Layer]:
    """The layers between regular fields, in order, reading what they read with these signs."""
    random = np.random.default_rng(0)
    params = apply(variables["params"], signs, group)
    inputs = _inputs(watched, {**variables, "params": params}, images)
    found = []
    for (block, name), (x, stride) in inputs.items():
        weights = np.asarray(variables["params"][block][name]["weights"])
        fields = random.permutation(weights.shape[2])[:FIELDS]
        stored = variables["batch_stats"][block][name.replace("conv", "bn")]["var"]
        size = _size(weights, group)
        patches = _patches(x, size, stride, random)
        parts = _parts(patches, weights[:, :, fields], size, list(signs), group)
        parts -= parts.mean(-1, keepdims=True)
        forms = parts @ parts.transpose(0, 2, 1) / parts.shape[-1]
        found.append(_Layer(forms, np.log(np.asarray(stored, np.float64)[fields])))
    return found


class _Watched(NamedTuple):
    """A network that tells what its layers read: compiled once, for all signs.

    Attributes:
      run: (variables, images) -> what each layer reads, by its path.
      strides: of the layers, filled while `run` is traced.
    """

    run: Callable[[PyTree, Any], dict[str, Any]]
    strides: dict[str, int]


def _watched(network: SteerableResNet) -> _Watched:
    strides: dict[str, Any] = {}

    def run(variables: PyTree, x: Any) -> Any:
        seen = {}

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            if isinstance(layer, RegularConv) and context.method_name == "__call__":
                seen["/".join(layer.path)] = args[0]
                strides["/".join(layer.path)] = layer.stride
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            network.apply(variables, x, False)
        return seen

    return _Watched(jax.jit(run), strides)


def _inputs(watched: _Watched, variables: PyTree, images: np.ndarray) -> dict:
    """What each layer between regular fields reads, and its stride, by block and name."""
    seen = watched.run(variables, images)
    return {
        tuple(path.split("/")): (np.asarray(x, np.float32), watched.strides[path])
        for path, x in sorted(seen.items())
        if "/" in path
    }


def _patches(x: np.ndarray, size: int, stride: int, random: np.random.Generator) -> np.ndarray:
    """Windows of a map [B, H, W, C], all or at random places: f32[n, k k C]."""
    ahead = size // 2
    places = np.mgrid[: len(x), : x.shape[1] : stride, : x.shape[2] : stride].reshape(3, -1)
    if places.shape[1] > POSITIONS:
        places = places[:, random.choice(places.shape[1], POSITIONS, replace=False)]
    batch, rows, columns = places
    x = np.pad(x, ((0, 0), (ahead, ahead), (ahead, ahead), (0, 0)))
    taps = [x[batch, rows + i, columns + j] for i in range(size) for j in range(size)]
    return np.stack(taps, 1).reshape(len(batch), -1)


def _parts(
    patches: np.ndarray, weights: np.ndarray, size: int, order: list[Coupling], group: Group
) -> np.ndarray:
    """What the filters of no open coupling, and of each, put out: f64[F, T + 1, n G]."""
    regular = representations.regular(group)
    reads, makes = (FieldType(((regular, n),)) for n in weights.shape[1:])
    space, which = FilterSpace(reads, makes, size), between_regular(group, size)
    parts = np.zeros((len(order) + 1, len(patches), weights.shape[2] * group.order))
    for place, coupling in enumerate([None, *order]):
        rows = [(c not in order) if coupling is None else c == coupling for c in which]
        if any(rows):
            mine = weights * np.array(rows, np.float32)[:, None, None]
            filters = np.asarray(steerable.expand({"weights": mine}, space))
            parts[place] = patches @ filters.reshape(patches.shape[1], -1)
    parts = parts.reshape(len(order) + 1, len(patches), -1, group.order)
    return np.moveaxis(parts, 2, 0).reshape(weights.shape[2], len(order) + 1, -1)


def _deviations(layers: Sequence[_Layer], signs: np.ndarray) -> np.ndarray:
    """How far variances are from the stored ones: f64[K, fields of all layers] of signs [K, T]."""
    signs = np.concatenate([np.ones((len(signs), 1)), signs], 1)
    found = []
    for forms, stored in layers:
        variances = np.einsum("kt,ftu,ku->kf", signs, forms, signs, optimize=True)
        logarithms = np.log(np.maximum(variances, 1e-30)) - stored
        # contrast and brightness of the images move all fields alike
        found.append(np.abs(logarithms - np.median(logarithms, 1, keepdims=True)))
    return np.concatenate(found, 1)


def _moves(count: int) -> np.ndarray:
    """Every flip of one or of two signs, as factors [K, T]."""
    places = [*itertools.combinations(range(count), 1), *itertools.combinations(range(count), 2)]
    moves = np.ones((len(places), count), int)
    for row, flipped in zip(moves, places, strict=True):
        row[list(flipped)] = -1
    return moves


def _descend(layers: Sequence[_Layer], signs: np.ndarray) -> tuple[np.ndarray, float]:
    """Flip one or two signs at a time as long as that comes nearer."""
    moves, best = _moves(len(signs)), float(_deviations(layers, signs[None]).mean())
    while True:
        values = _deviations(layers, signs * moves).mean(1)
        place = int(values.argmin())
        if values[place] >= best - 1e-12:
            return signs, best
        signs, best = signs * moves[place], float(values[place])


def _second(pair: tuple[Any, float]) -> float:
    return pair[1]
