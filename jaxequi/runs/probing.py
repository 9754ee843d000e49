"""A network asked where it breaks its symmetry: prediction, measurement, and images of both.

Of a run the figures go into its report, and a trained classifier is tested at 36 angles, too.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from jaxequi import experiment
from jaxequi.experiment import trained
from jaxequi.groups.planar import Group, cyclic
from jaxequi.probes import equivariance, exactness, invariance, plots
from jaxequi.runs import report
from jaxequi.train import drawing
from jaxequi.train import mesh as meshes
from jaxequi.types import PyTree

MOST_MAPS = 8
"""Layers whose maps are drawn, spread over the network, besides the first that breaks."""


def examples(config: ml_collections.ConfigDict, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First images f32[count, H, W, 3] of the validation set as a network sees them, and labels."""
    shown = dataclasses.replace(experiment.make_set(config, "val"), num_views=1)
    count = min(count, len(shown.source))
    with shown.batches(
        lambda step: np.arange(count), meshes.make_mesh(1, 1), count, 0, 1
    ) as opened:
        batch = next(opened)
    seen = shown.augment(jax.random.key(0), batch)
    return np.asarray(seen["views"][:, 0]), np.asarray(batch["label"])


def probe(
    network: nn.Module, variables: PyTree, images: np.ndarray, group: Group, regular: bool
) -> tuple[str, dict[str, Figure]]:
    """Predict and measure a network on some images.

    Args:
      network: `(images f32[B, H, W, 3], train) -> f32[B, R]`.
      variables: its collections.
      images: f32[N, H, W, 3].
      group: whose elements move the images.
      regular: whether its maps are regular fields of the group.

    Returns:
      What to print, and figures by name.
    """

    def encode(x: Any) -> Any:
        return network.apply(variables, x, False)

    verdict = exactness.judge_network(network, (1, *images.shape[1:]), group)
    errors = equivariance.measure(encode, images, group, regular)
    first = errors.first_above()
    on, off = errors.exact, ~errors.exact
    head = f"{'layer':32} {'absolute':>10} {'relative':>10}"
    if off.any():  # the worst of each: elements of the grid, and those that interpolate
        rows = [f"{head} {'off grid':>10}   (worst of {on.sum()} elements, and of {off.sum()})"]
    else:
        rows = [f"{head}   (worst of {group.order} elements)"]
    for name, absolute, relative in zip(errors.layers, errors.absolute, errors.relative):
        row = f"{name:32} {absolute[on].max():10.2e} {relative[on].max():10.2e}"
        rows.append(f"{row} {relative[off].max():10.2e}" if off.any() else row)
    measured = {
        None: "no layer breaks",
        "output": "no layer breaks; the output is not invariant, its head keeps the slices apart",
    }.get(first, f"breaks from {first} on")
    lines = [f"predicted: {verdict}", f"measured: {measured}", *rows]
    figures = {
        "equivariance": plots.error_curves({f"{images.shape[1]} pixels": errors}),
        "maps": plots.feature_maps(
            encode, images[0], group, 1, keep=_drawn(verdict).__contains__, regular=regular
        ),
    }
    return "\n".join(lines), figures


def _drawn(verdict: exactness.Verdict) -> set[str]:
    """Names of modules below the root whose maps tell the story: they slide windows."""
    stages = list(dict.fromkeys(layer.partition("/")[0] for layer in verdict.layers))
    spread = np.linspace(0, len(stages) - 1, min(MOST_MAPS, len(stages))).round().astype(int)
    broken = {b.layer.layer.partition("/")[0] for b in verdict.breaks[:1]}
    return {stages[i] for i in spread} | broken


def of_run(
    run: trained.Trained, count: int, group: Group | None = None, out: pathlib.Path | None = None
) -> str:
    """Probe a trained network with `count` images.

    Args:
      group: whose elements move the images; by default the network's own, or C4.
      out: folder for the figures; by default the run's, whose report is written anew.

    Returns:
      What to print.
    """
    network = experiment.make_backbone(run.config)
    chosen = _group(network, group)
    images, labels = examples(run.config, count)
    text, figures = probe(network, run.backbone_variables, images, *chosen)
    lines = [text]
    if "classifier" in run.params:
        head = run.params["classifier"]

        def classify(x: Any) -> Any:
            return network.apply(run.backbone_variables, x, False) @ head["kernel"] + head["bias"]

        found = invariance.sweep(classify, images, labels)
        lines.append(
            f"accuracy of {len(images)} images: upright {found[0]:.4f}, "
            f"quarter turns {found[:: len(found) // 4].mean():.4f}, circle {found.mean():.4f}"
        )
        figures["circle"] = plots.circle({"accuracy": found})
    lines.append(_save(figures, out or run.run / report.FIGURES))
    if not out:
        lines.append(f"report: {report.write(run.run)}")
    return "\n".join(lines)


def of_config(
    config: ml_collections.ConfigDict, count: int, group: Group | None, out: pathlib.Path
) -> str:
    """Probe a network as it is drawn; see `of_run`."""
    network = experiment.make_backbone(config)
    chosen = _group(network, group)
    images, _ = examples(config, count)
    x, key = jnp.asarray(images[:1]), jax.random.key(config.seed)
    variables = drawing.draw(lambda key: network.init(key, x, False), key)
    text, figures = probe(network, variables, images, *chosen)
    return f"{text}\n{_save(figures, out)}"


def _group(network: nn.Module, given: Group | None) -> tuple[Group, bool]:
    """The group to move images by, and whether the network's maps are regular fields of it."""
    own = getattr(network, "group", cyclic(1))
    regular = given is None and own.order > 1
    group = own if regular else given or cyclic(4)
    return group, regular


def _save(figures: dict[str, Figure], out: pathlib.Path) -> str:
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=110)
    return f"figures: {out}/{{{','.join(figures)}}}.png"
