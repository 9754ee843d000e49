"""Figures of many runs: learning curves, and what predictors find when they are asked."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxequi import experiment
from jaxequi.data import transforms
from jaxequi.evals import _queries, retrieval
from jaxequi.experiment import cache, trained
from jaxequi.groups import quaternions
from jaxequi.objectives.regression import POOLED_R2_FLOOR
from jaxequi.runs.table import Run
from jaxequi.types import Source

R2 = (
    "val/online/r2/representation-equi",
    "val/online/r2/representation",
)  # the first that a run logs
QUERIES, FOUND = 4, 5
SWEEP = np.radians(np.arange(-90, 91, 30))


def curves(runs: Mapping[str, Sequence[Run]]) -> Figure:
    """Rotation R2 over the training steps of each method: mean over seeds, and their range."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    axis = figure.subplots()
    for label, seeds in runs.items():
        points: dict[int, list[float]] = {}
        for run in seeds:
            metric = next((name for name in R2 if run.last(name) is not None), None)
            for row in run.rows:
                if metric in row:
                    points.setdefault(row["step"], []).append(row[metric])
        if points:
            steps = sorted(points)
            [line] = axis.plot(steps, [np.mean(points[s]) for s in steps], "o-", ms=3, label=label)
            low, high = ([pick(points[s]) for s in steps] for pick in (min, max))
            axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15)
    axis.axhline(POOLED_R2_FLOOR, color="grey", ls=":", label="constant guess")
    axis.set(xlabel="step", ylabel="rotation R2 (equivariant part, where there is one)")
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)  # many curves leave no room
    return figure


@dataclasses.dataclass(frozen=True)
class Asked:
    """A trained predictor, and the held-out views that it is asked about.

    Attributes:
      predict: (embedding f32[B, E], z f32[B, L]) -> f32[B, E].
      views: see `evals.retrieval.ranks`.
      source, pipes: where the images come from, and the pipes that they go through.
    """

    predict: Callable[..., Any]
    views: Mapping[str, np.ndarray]
    source: Source
    pipes: Sequence[str]

    def similarity(self, objects: np.ndarray, relation: np.ndarray) -> np.ndarray:
        """Cosines of predictions from view 0 of `objects`, by z f32[N, L], with every view.

        Returns:
          f32[N, n, V].
        """
        embedding = self.views["embedding"]
        start, z = jnp.asarray(embedding[objects, 0]), jnp.asarray(relation)
        asked = np.asarray(self.predict(start, z))
        near = embedding / (np.linalg.norm(embedding, axis=-1, keepdims=True) + 1e-8)
        asked = asked / (np.linalg.norm(asked, axis=-1, keepdims=True) + 1e-30)
        return np.einsum("qe,nve->qnv", asked, near)

    def image(self, row: int, view: int) -> np.ndarray:
        """One stored image, u8[H, W, 3]."""
        [record] = self.source.read([int(row)], np.array([[int(view)]]))
        transform = transforms.make(self.pipes)
        return np.asarray(transform(record, np.random.default_rng(0))["views"])[0]


def predictor(run: pathlib.Path) -> Asked | None:
    """Open what an evaluation kept of a run's held-out set; None where there is nothing to open.

    Raises:
      ValueError: the run's checkpoint or the features cannot be read.
    """
    if not (run / cache.FOLDER).is_dir():
        return None
    network = trained.load(run)
    found = cache.find(network, "val") if network.has_predictor else None
    if found is None or "predictable" not in found.arrays:
        return None
    assert network.method is not None and network.method.relation is not None  # noqa: PT018
    return Asked(
        predict=jax.tree_util.Partial(network.predict, network.params, network.extra),
        views=_queries.views(found.arrays, network.method.relation),
        source=experiment.make_source(network.config.val.source),
        pipes=network.config.val.views,
    )


def ranks(predictors: Mapping[str, Asked]) -> Figure:
    """How often the view asked for came first, second, ... among the views of its object."""
    figure = Figure(figsize=(8, 4), layout="tight")
    axis = figure.subplots()
    views = 0
    for label, one in predictors.items():
        found = retrieval.ranks(one.predict, one.views)
        views = found.shape[1]
        shares = np.histogram(found, np.arange(0.5, views + 1))[0] / found.size
        axis.step(np.arange(1, views + 1), shares, where="mid", label=label)
    axis.axhline(1 / max(views, 1), color="grey", ls=":", label="chance")
    axis.set(xlabel="rank of the view asked for", ylabel="share of queries", xscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def found(label: str, one: Asked, seed: int = 0) -> Figure:
    """Some queries: the view started from, the view asked for, and the five nearest of all."""
    views = one.views
    objects, count = views["embedding"].shape[:2]
    random = np.random.default_rng(seed)
    rows = random.choice(objects, min(QUERIES, objects), replace=False)
    asked = random.integers(1, count, len(rows))
    relation = views["relation"][rows, asked]
    similarity = one.similarity(rows, relation).reshape(len(rows), -1)
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :FOUND]
    figure = Figure(figsize=(1.7 * (FOUND + 2), 2.1 * len(rows)), layout="tight")
    for line, (row, view) in enumerate(zip(rows, asked)):
        degrees = np.degrees(quaternions.to_euler_xyz(relation[line, :4]))
        shown = [(row, 0, "from"), (row, view, "turned by {:.0f} {:.0f} {:.0f}".format(*degrees))]
        for place, at in enumerate(best[line]):
            other, other_view = divmod(int(at), count)
            right = "the view" if (other, other_view) == (row, view) else ""
            same = "same object" if other == row else "another object"
            shown.append((other, other_view, f"{place + 1}: {right or same}"))
        _images(figure, one, shown, line, len(rows))
    figure.suptitle(f"{label}: the nearest of {objects * count} held-out views", fontsize=10)
    return figure


def sweep(label: str, one: Asked, row: int = 0) -> Figure:
    """The nearest view of the object while the predictor turns it about each axis."""
    figure = Figure(figsize=(1.7 * len(SWEEP), 2.1 * 3), layout="tight")
    extra = one.views["relation"].shape[-1] - 4
    for line, name in enumerate("xyz"):
        angles = np.zeros((len(SWEEP), 3))
        angles[:, line] = SWEEP
        z = quaternions.from_euler_xyz(angles)
        z = np.concatenate([z, np.zeros((len(z), extra))], axis=1).astype(np.float32)
        near = one.similarity(np.full(len(z), row), z)[:, row].argmax(axis=1)
        shown = [
            (row, view, f"{name} {angle:+.0f}°") for view, angle in zip(near, np.degrees(SWEEP))
        ]
        _images(figure, one, shown, line, 3)
    figure.suptitle(f"{label}: the nearest view while the predictor turns view 0", fontsize=10)
    return figure


def _images(
    figure: Figure, one: Asked, shown: Sequence[tuple[Any, Any, str]], line: int, lines: int
) -> None:
    for at, (row, view, title) in enumerate(shown):
        axis = figure.add_subplot(lines, len(shown), line * len(shown) + at + 1)
        axis.imshow(one.image(row, view))
        axis.set_title(title, fontsize=7)
        axis.axis("off")
