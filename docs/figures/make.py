"""Draw the figures of the site, without training anything: python docs/figures/make.py [NAME ...]

Names: d4, kernels, errors, views, readme; without one, all. Some seconds each, on a CPU.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from jaxequi.data.sources import drawing, scenes  # noqa: E402
from jaxequi.groups import kernels, planar, representations  # noqa: E402
from jaxequi.models.gresnet import GResNet  # noqa: E402
from jaxequi.probes import equivariance, plots  # noqa: E402

OBJECTS = 6


def _bare(axes) -> None:
    for axis in np.asarray(axes).flat:
        axis.set(xticks=[], yticks=[])


def d4() -> Figure:
    """A drawing under the elements of D4, in their order."""
    group = planar.named("d4")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots(2, 4)
    for element, axis in enumerate(axes.flat):
        axis.imshow(planar.act(group, element, drawing.draw(), (0, 1)), cmap="Greys")
        axis.set_title(f"{element}: {group.labels[element]}", fontsize=9)
    _bare(axes)
    return figure


def kernel_rows() -> Figure:
    """Basis filters of 7 x 7 pixels from a grey image to a regular field of C8."""
    group = planar.named("c8")
    rho_in, rho_out = representations.trivial(group), representations.regular(group)
    basis = kernels.basis(rho_in, rho_out, 7)
    # One of each frequency, on the ring with most pixels that carries it.
    rows = [np.flatnonzero(basis.frequency == m)[-1] for m in range(4)]
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.subplots(len(rows), group.order)
    for line, row in zip(axes, rows):
        filters = basis.filters[row, :, 0].reshape(-1, 7, 7)
        top = np.abs(filters).max()
        for element, axis in enumerate(line):
            axis.imshow(filters[element], cmap="RdBu_r", vmin=-top, vmax=top)
        line[0].set_ylabel(f"m = {basis.frequency[row]}", fontsize=9)
    for element, axis in enumerate(axes[0]):
        axis.set_title(group.labels[element], fontsize=9)
    _bare(axes)
    return figure


def _measured() -> dict[str, equivariance.Errors]:
    """Errors of one network with one draw of weights, at two sizes."""
    group = planar.cyclic(4)
    network = GResNet(group, widths=(4, 4, 4), blocks=(1, 1, 1), head="coset_first")
    draw = jax.jit(lambda key: network.init(key, jnp.zeros((1, 33, 33, 3)), False))
    variables = draw(jax.random.key(0))

    def encode(images):
        return network.apply(variables, images, False)

    found = {}
    for size in (33, 32):
        grey = drawing.draw(size).astype(np.float32) / drawing.LINE
        images = np.repeat(grey[None, ..., None], 3, -1)
        found[f"{size} x {size} pixels"] = equivariance.measure(encode, images, group)
    return found


def errors() -> Figure:
    """The equivariance error of each layer at 33 and at 32 pixels."""
    return plots.error_curves(_measured())


def _pairs() -> list[np.ndarray]:
    """Two views of each of some embedded objects, beside each other."""
    source = scenes.make("train", image_size=64, num_objects=48)
    records = source.read(range(OBJECTS), np.tile([3, 7], (OBJECTS, 1)))
    return [np.concatenate([np.asarray(view) for view in r["image"]], 1) for r in records]


def views() -> Figure:
    """Pairs of views of embedded objects."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    axes = figure.subplots(2, OBJECTS // 2)
    for axis, pair in zip(axes.flat, _pairs()):
        axis.imshow(pair)
    _bare(axes)
    return figure


def readme() -> Figure:
    """What SIE learns from, and what the probe finds: the two halves of the package."""
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes = left.subplots(3, OBJECTS // 3)
    for axis, pair in zip(axes.flat, _pairs()):
        axis.imshow(pair)
    _bare(axes)
    left.suptitle("two views of an object, and the rotation between", fontsize=9)
    axis = right.subplots()
    for label, found in _measured().items():
        worst = np.maximum(found.relative[:-1].max(1), 1e-8)
        axis.semilogy(worst, "o-", ms=3, label=label)
    axis.axhspan(1e-8, equivariance.ROUNDING, color="grey", alpha=0.15, lw=0)
    axis.set_ylim(1e-8, 10)
    axis.set_xticks(range(0, len(worst), 4))
    axis.set_xlabel("layer", fontsize=8)
    axis.set_ylabel("equivariance error", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center right")
    right.suptitle("one pixel decides whether a network over C4 is equivariant", fontsize=9)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "d4": d4,
    "kernels": kernel_rows,
    "errors": errors,
    "views": views,
    "readme": readme,
}


def main(names: list[str]) -> None:
    """Draw those named, or all."""
    for name in names or FIGURES:
        # Without the version of matplotlib in it, a figure drawn again is the same file.
        FIGURES[name]().savefig(HERE / f"{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1:])
