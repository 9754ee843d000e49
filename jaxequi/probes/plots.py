"""Figures of broken and kept symmetry: maps side by side, error curves, accuracy over a circle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxequi.groups import planar
from jaxequi.groups.planar import Group
from jaxequi.probes import layers
from jaxequi.probes.equivariance import ROUNDING, Errors
from jaxequi.types import Array


def feature_maps(
    fn: Callable[[Array], Any],
    image: np.ndarray,
    group: Group,
    element: int = 1,
    keep: Callable[[str], bool] | None = None,
    regular: bool = True,
) -> Figure:
    """Draw, layer by layer, the moved map of an image, the map of the moved image, and their gap.

    A column is a layer; the gap is drawn on the scale of the maps above it.

    Args:
      fn: images f32[B, H, W, C] -> anything, by Linen modules.
      image: f32[H, W, C].
      group: the group; `element` moves the image.
      element: index of the element.
      keep: names of the layers to draw; None draws all.
      regular: whether maps are regular fields of the group; the first field's slice that came from
        slice 0 is drawn.
    """
    x = np.asarray(image)[None]
    turned = planar.transform(group, element, x)
    recorder = layers.recorder(fn, x.shape, keep)
    upright, moved = recorder.run(jnp.asarray(x)), recorder.run(jnp.asarray(turned))
    act = planar.act_on_field if regular else planar.transform
    columns: list[tuple[str, Any, Any]] = [("image", turned, turned)]
    for name, before, after in zip(recorder.names, upright, moved):
        if before.ndim == 4:
            columns.append((name, act(group, element, np.asarray(before)), after))
    figure = Figure(figsize=(0.4 + 1.7 * len(columns), 5.9), layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    move = group.labels[element]
    for axis, title in zip(axes[:, 0], (f"map, then {move}", f"{move}, then map", "gap")):
        axis.set_ylabel(title, fontsize=10)
    for line, (name, *maps) in zip(axes.T, columns):
        channel = element if regular and name != "image" else 0
        a, b = (np.asarray(m)[0, ..., channel] for m in maps)
        low, high = min(a.min(), b.min()), max(a.max(), b.max())
        gap = np.abs(a - b)
        for axis, shown in zip(line, (a, b)):
            axis.imshow(shown, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        line[2].imshow(gap, vmin=0, vmax=high - low, cmap="magma", interpolation="nearest")
        line[0].set_title(f"{name}\n{a.shape[0]} x {a.shape[1]}", fontsize=9)
        line[2].set_xlabel(f"largest {gap.max():.1e}", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def error_curves(measured: Mapping[str, Errors]) -> Figure:
    """Draw the relative error of every layer, worst element, one curve for each measurement.

    The grey band is what rounding alone explains. Elements off the pixel grid, which interpolate,
    have a curve of their own.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    lowest = 1e-8
    longest: Sequence[str] = max((e.layers[:-1] for e in measured.values()), key=len)
    for label, errors in measured.items():
        worst = np.maximum(errors.relative[:-1, errors.exact].max(1), lowest)
        (line,) = axis.semilogy(worst, "o-", ms=3, label=label)
        if not errors.exact.all():
            worst = np.maximum(errors.relative[:-1, ~errors.exact].max(1), lowest)
            label = f"{label}, interpolated turns"
            axis.semilogy(worst, "o:", ms=3, label=label, color=line.get_color())
    axis.axhspan(lowest, ROUNDING, color="grey", alpha=0.15, lw=0)
    axis.set_ylim(lowest, 10)
    axis.set_xticks(range(len(longest)), longest, rotation=90, fontsize=6)
    axis.set_ylabel("relative equivariance error")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def circle(accuracies: Mapping[str, np.ndarray]) -> Figure:
    """Draw accuracies f64[A] at angles 0, 1, ... times 360 / A degrees on a polar axis, closed."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axis = figure.add_subplot(projection="polar")
    for label, found in accuracies.items():
        angles = np.linspace(0, 2 * np.pi, len(found) + 1)
        style = "o-" if len(found) <= 8 else "-"  # four quarter turns are points, no curve
        label = f"{label} (mean {np.mean(found):.3f})"
        axis.plot(angles, np.append(found, found[0]), style, ms=4, label=label, clip_on=False)
    axis.set_ylim(0, 1)
    axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.1, -0.16))
    return figure


def unlearning(losses: Mapping[str, np.ndarray]) -> Figure:
    """Draw losses f64[T] of the learned-unequivariance experiment, with chance at ln 2."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for label, values in losses.items():
        axis.plot(values, label=label)
    axis.axhline(np.log(2), color="grey", ls=":", lw=1, label="ln 2: a guess")
    axis.set(xlabel="step", ylabel="cross-entropy", ylim=(0, 1))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure
