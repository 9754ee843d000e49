# %% [markdown]
# # SIE: a representation that keeps the rotation
#
# Two views of a 3D object, and the rotation between them. SIE (Garrido, Najman, LeCun, ICML 2023)
# splits its representation: one part is to be the same for both views, the other is to follow the
# rotation by a predictor. Here it learns on objects that are computed, and then its predictor is
# asked to turn what it has never seen. Under a minute on a CPU; `FAST = False` is the run of the
# README, five minutes on two cores.

# %%
import contextlib
import dataclasses
import io
import pathlib
import tempfile

import numpy as np
from matplotlib.figure import Figure

from configs import evals, sie
from jaxequi import experiment
from jaxequi.evals import retrieval
from jaxequi.groups import quaternions, relation
from jaxequi.objectives.regression import POOLED_R2_FLOOR
from jaxequi.runs import comparison_figures as plots
from jaxequi.train import log, loop

FAST = True
runs = pathlib.Path(tempfile.mkdtemp())


def train(config, name):
    """Train in a folder; what a terminal would show is kept back."""
    with contextlib.redirect_stdout(io.StringIO()):
        loop.run(experiment.build(config), runs / name)
    return log.read_metrics(runs / name)


# %% [markdown]
# ## What it learns from

# %%
config = sie.get_config("sie")
if FAST:
    for part in (config.train, config.val):
        part.source.image_size, part.source.num_objects = 16, 150
    config.backbone.width = 12
    config.method.projector, config.method.equi = "64-64-64", 48
    config.optimizer.learning_rate = 4e-3
    config.total_steps, config.save_every_steps, config.log_every_steps = 200, 200, 20
    config.mesh.data = 1  # device
    config.online.features, config.eval_every_steps = ("representation",), 0


def large(part):
    """The source of a set, with images to be looked at: the network sees smaller ones."""
    return experiment.make_source({**part.source, "image_size": 64})


source = large(config.train)
records = source.read(range(6), np.tile([3, 7], (6, 1)))
figure = Figure(figsize=(7.6, 3.2), layout="constrained")
figure.suptitle("two views of an object, and the rotation between them (degrees about x, y, z)")
turn = relation.relation("rotation").between
for axis, record in zip(figure.subplots(2, 3).flat, records):
    z = np.asarray(turn({"latent": np.asarray(record["latent"])[None]}))
    degrees = np.degrees(quaternions.to_euler_xyz(z))[0]
    axis.imshow(np.concatenate([np.asarray(view) for view in record["image"]], axis=1))
    axis.set_title("{:.0f}, {:.0f}, {:.0f}".format(*degrees), fontsize=9)
    axis.axis("off")
figure

# %% [markdown]
# ## Training
#
# Beside the method, heads learn to read the rotation and the class off each part of the
# representation; the method does not notice them. What they reach, on the batches that they learn
# from, says what the part holds.

# %%
rows = train(config, "sie")
figure = Figure(figsize=(8, 3.3), layout="constrained")
figure.suptitle("what heads read off SIE's parts while it learns")
axes = figure.subplots(1, 2)
for axis, metric, guess, title in (
    (axes[0], "r2", POOLED_R2_FLOOR, "rotation R2"),
    (axes[1], "top1", 1 / 12, "class, top-1"),
):
    for part, label in {"equi": "equivariant part", "inv": "invariant part"}.items():
        values = [row[f"online/{metric}/representation-{part}"] for row in rows]
        axis.plot([row["step"] for row in rows], values, "o-", ms=3, label=label)
    axis.axhline(guess, color="grey", ls=":", label="constant guess")
    axis.set(title=title, xlabel="step", ylim=(-0.05, 1))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
figure

# %% [markdown]
# ## The predictor is asked
#
# `configs/evals.py:sie_predictor` encodes all 50 views of every held-out object once, and asks:
# from view 0 and a rotation, which view is it? The rank of the right one is 1 at best; guessing
# would find every rank as often as any other.

# %%
asked = evals.get_config("sie_predictor")
asked.checkpoint = str(runs / "sie")
asked.mesh = config.mesh
asked.evals = {"retrieval": {}}
found = train(asked, "predictor")[-1]
predictor = plots.predictor(runs / "sie")
predictor = dataclasses.replace(predictor, source=large(config.val), pipes=("decode",))
views = predictor.views["embedding"].shape[1]
guess = retrieval.scores(np.arange(1, views + 1))
for name in ("mrr", "hit@1", "hit@5"):
    print(f"{name:<6} {found[f'val/retrieval/{name}']:.2f}   (guessing: {guess[name]:.2f})")
figure = plots.ranks({"SIE": predictor})
figure.suptitle("rank of the view asked for among the 50 views of its object")
figure

# %% [markdown]
# Some questions, and the nearest of all held-out views:

# %%
plots.found("SIE", predictor)

# %% [markdown]
# And a sweep: the predictor turns view 0 about each axis, and the nearest view of the object is
# shown. A good one turns the object from left to right.

# %%
plots.sweep("SIE", predictor)

# %% [markdown]
# How the family compares, with numbers, is
# [a table of the site](../docs/systems/sie.md#what-was-measured). SIE's MRR there is 0.46; a run as
# short as this has only begun.
