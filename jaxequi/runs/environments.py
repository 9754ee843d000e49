"""What EqInv made of its training set: environments, what the mask keeps, what a shift costs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxequi.data import transforms
from jaxequi.evals import context
from jaxequi.experiment import sets
from jaxequi.nn import mask
from jaxequi.train import checkpoint
from jaxequi.train.workdir import CHECKPOINTS, CONFIG_FILE
from jaxequi.types import OWN, Source

SHOWN = 12  # images of each row
CLASSES = 3
BINS = 6  # of the distance between the floor's hue and that of the class


def figures(
    run: pathlib.Path, features: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, tuple[str, Figure]]:
    """Draw a run of the method eqinv; title -> (name of the file, figure).

    Args:
      features: of sets, as the run kept them.

    Raises:
      ValueError: its checkpoint or its data cannot be read.
    """
    config = json.loads((run / CONFIG_FILE).read_text())
    _, _, params, extra = checkpoint.read_network(run.absolute() / CHECKPOINTS)
    source = sets.make_source(config["train"]["source"])
    shown = config["val" if "val" in config else "train"]["views"]
    made = {
        "Environments of three classes": (
            "environments",
            images(extra[OWN]["environments"], source, shown),
        )
    }
    found = next((f for f in features.values() if {"representation", "latent"} <= set(f)), None)
    if found is not None:
        name = config["method"].get("activation", "sigmoid")
        values = np.asarray(mask.activate(jnp.asarray(params["mask"]["values"]), name))
        made["What the mask keeps"] = ("mask", kept(values, found))
    return made


def by_shift(features: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Accuracy by how far the floor's hue is from that of the class, a line a run.

    Args:
      features: of runs by their names: "logits" f32[n, V, 12], "latent" f[n, V, 7], "label" i[n].
    """
    figure = Figure(figsize=(6, 4), layout="tight")
    axis = figure.subplots()
    edges = np.linspace(0, 0.5, BINS + 1)
    for name, seen in features.items():
        latent = seen["latent"]
        label = np.repeat(seen["label"], latent.shape[1])
        away = context.shifts(context.hue_of_floor(latent.reshape(len(label), -1)))
        place = np.digitize(away[np.arange(len(label)), label], edges[1:-1])
        right = seen["logits"].reshape(len(label), -1).argmax(-1) == label
        found = [right[place == i].mean() if (place == i).any() else np.nan for i in range(BINS)]
        axis.plot((edges[1:] + edges[:-1]) / 2, found, "o-", label=name)
    axis.set(xlabel="distance of the floor's hue from the class's, parts of the circle")
    axis.set(ylabel="top-1", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def images(table: np.ndarray, source: Source, pipes: list[str], seed: int = 0) -> Figure:
    """Some images of a class, and of both of its environments; of three classes.

    Args:
      table: int8[C, N].
      source: the training set.
      pipes: how its examples are shown.
    """
    random, transform = np.random.default_rng(seed), transforms.make(pipes[:1])
    chosen = np.linspace(0, len(table) - 1, min(CLASSES, len(table))).astype(int)
    figure = Figure(figsize=(SHOWN, 3.3 * len(chosen)), layout="tight")
    axes = figure.subplots(3 * len(chosen), SHOWN, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, k in enumerate(chosen):
        for row, environment in enumerate((-1, 0, 1)):
            there = np.flatnonzero(table[k] == environment)
            rows = random.permutation(there)[:SHOWN].tolist()
            records = source.read(rows, np.zeros((len(rows), 1), np.int64))
            for axis, record in zip(axes[3 * line + row], records):
                axis.imshow(transform(record, random)["views"][0], interpolation="nearest")
            name = source.class_names[k]
            title = (name, f"others, environment 0 of {name}", "others, environment 1")[row]
            axes[3 * line + row][0].set_title(title, fontsize=8, loc="left", parse_math=False)
    return figure


def kept(values: np.ndarray, features: Mapping[str, np.ndarray]) -> Figure:
    """The mask against how much each feature tells of the floor, and of the class.

    Args:
      values: f[R], the mask as it multiplies.
      features: "representation" f[n, V, R], "latent" f[n, V, 7], "label" i[n] of held-out images.
    """
    rows = features["representation"][:, 0]
    floor = context.carried(rows, context.hue_of_floor(features["latent"][:, 0]))
    classes, place = np.unique(features["label"], return_inverse=True)
    means = np.stack([rows[features["label"] == k].mean(0) for k in classes])[place]
    total = np.maximum(rows.var(axis=0), 1e-12)
    of_class = means.var(axis=0) / total
    figure = Figure(figsize=(10, 4), layout="tight")
    for axis, share, what in zip(
        figure.subplots(1, 2, sharey=True), (floor, of_class), ("the floor's hue", "the class")
    ):
        r = np.corrcoef(share, values)[0, 1] if np.ptp(share) and np.ptp(values) else 0.0
        axis.scatter(share, values, s=12)
        axis.set(xlabel=f"share of a feature's variance by {what}", title=f"correlation {r:.2f}")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mask")
    return figure
