# %% [markdown]
# # A method from scratch
#
# A method is a function `make(...)` that returns pure functions. The loop, the data, checkpoints,
# evaluations and reports are there already and need not know it. Here is one that the package does
# not have: Barlow Twins (Zbontar, Jing, Misra, LeCun, Deny, ICML 2021), on scikit-learn's digits.
# Under a minute on a CPU; `FAST = False` learns in a wider network, and for longer.

# %%
import contextlib
import io
import pathlib
import sys
import tempfile
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxequi
from configs import common
from jaxequi import experiment
from jaxequi.evals import knn
from jaxequi.nn.heads import Projector
from jaxequi.train import log, loop
from jaxequi.types import Method, Output, collections

FAST = True
runs = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## The method
#
# The embeddings of two views of the same images, z and z', have a matrix of correlations between
# their dimensions, taken over the batch. Its diagonal should be 1: each dimension says the same of
# both views. All else should be 0: no two dimensions say the same.
#
# $$\mathcal{L} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} C_{ij}^2$$


# %%
class Network(nn.Module):
    """Images f32[B, H, W, 3] to a representation and an embedding."""

    backbone: nn.Module
    projector: nn.Module

    def __call__(self, images, train):
        y = self.backbone(images, train)
        return y, self.projector(y, train)


def correlations(z, other):
    """The matrix C f32[D, D] of two batches f32[B, D]."""
    z, other = ((x - x.mean(0)) / (x.std(0) + 1e-5) for x in (z, other))
    return z.T @ other / len(z)


def make(*, backbone, projector=(64, 64, 16), trade_off=0.1) -> Method:
    """The arguments are the fields of `config.method`; the backbone comes from its own config."""
    network = Network(backbone, Projector(tuple(projector)))

    def init(key, batch):
        variables = dict(network.init(key, batch["views"][:, 0], False))
        return variables.pop("params"), variables  # what learns, and what else there is

    def loss(params, extra, batch, key, progress):
        first, second = batch["views"][:, 0], batch["views"][:, 1]
        (y, z), moved = network.apply(
            {"params": params, **extra}, jnp.concatenate([first, second]), True, mutable=list(extra)
        )
        c = correlations(*jnp.split(z, 2))
        diagonal = jnp.diagonal(c)
        on = jnp.sum((1 - diagonal) ** 2)
        off = jnp.sum(c**2) - jnp.sum(diagonal**2)
        metrics = {"loss/diagonal": on, "loss/others": off}
        representation = jnp.stack(jnp.split(y, 2), axis=1)  # [B, 2 views, R], for heads beside
        return on + trade_off * off, Output(
            dict(moved), metrics, {"representation": representation}
        )

    def encode(params, extra, views):
        images = views.reshape(-1, *views.shape[2:])
        y, z = network.apply({"params": params, **collections(extra)}, images, False)
        features = {"representation": y, "embedding": z}
        return {name: x.reshape(*views.shape[:2], -1) for name, x in features.items()}

    return Method(init=init, loss=loss, encode=encode)


# %% [markdown]
# A config names a method by its module, and a notebook's cell is in none; so it gets one. In a
# project of your own the cell above is a file, `my_project/barlow_twins.py`, and this one is not
# needed.

# %%
module = types.ModuleType("notebook.barlow_twins")
module.make = make
sys.modules[module.__name__] = module

# %% [markdown]
# ## The config
#
# Two random crops of each of scikit-learn's digits, a small ResNet, and what is measured of it: the
# class by nearest neighbours, and the effective rank of the representation.

# %%
config = common.base()
config.method = {"name": "notebook.barlow_twins", "trade_off": 0.1}
common.small_ssl(config, "loss/*")
common.digits(config, views=2)
config.optimizer = {"name": "adam", "learning_rate": 6e-3, "schedule": "cosine"}
config.online.features = ()
config.evals = {"knn": common.knn(20), "rank": {}}
config.eval_every_steps = 44
if FAST:
    config.backbone.width, config.total_epochs = 8, 6
    config.mesh.data = 1  # device
    config.backbone.zero_init_residual = False  # a short run has no time to grow its branches
job = experiment.build(config)

augment = jax.jit(job.augment)
with job.batches(0, 8) as batches:
    drawn = [augment(jax.random.key(step), next(batches))["views"] for step in range(8)]
views = jnp.concatenate(drawn)  # f32[512, 2, 16, 16, 3], as the network sees them
figure = Figure(figsize=(7.2, 2.6), layout="constrained")
figure.suptitle("two views of each digit, as the network sees them")
for line, shown in zip(figure.subplots(2, 8), np.moveaxis(np.asarray(views[:8]), 1, 0)):
    for axis, image in zip(line, shown):
        axis.imshow(image[..., 0], cmap="Greys_r")
        axis.axis("off")
figure

# %% [markdown]
# ## The run
#
# `loop.run` is what `python -m jaxequi.main` runs. It tells a terminal much; here its lines are
# kept back, and what it measured is read from the folder of the run.

# %%
with contextlib.redirect_stdout(io.StringIO()):
    loop.run(job, runs / "barlow_twins")
rows = log.read_metrics(runs / "barlow_twins")

figure = Figure(figsize=(8, 3.2), layout="constrained")
figure.suptitle("Barlow Twins on digits")
left, right = figure.subplots(1, 2)
for name in ("loss/diagonal", "loss/others"):
    left.plot([row["step"] for row in rows], [row[name] for row in rows], "o-", ms=3, label=name)
left.set(xlabel="step", ylabel="sum of squares", yscale="log", title="the two parts of the loss")
left.legend(fontsize=8)
judged = [(row["step"], row["val/knn/top1"]) for row in rows if "val/knn/top1" in row]
right.plot(*zip(*judged), "o-", label="Barlow Twins")
right.axhline(0.1, color="grey", ls=":", label="chance")
right.set(xlabel="step", ylabel="top-1", ylim=(0, 1), title="held-out digits, by neighbours")
right.legend(fontsize=8)
for axis in (left, right):
    axis.grid(alpha=0.3)
figure

# %% [markdown]
# ## What it learned
#
# The checkpoint gives back the network, and with it the matrix over the 512 digits of above. It
# should be the identity; the diagonal is there, and beside it a minute of training has left much.

# %%
network = jaxequi.load(runs / "barlow_twins")
z = jax.jit(network.encode)(network.params, network.extra, views)["embedding"]
c = np.asarray(correlations(z[:, 0], z[:, 1]))
figure = Figure(figsize=(5.4, 4.4), layout="constrained")
figure.suptitle("correlations of the embeddings of two views")
axis = figure.subplots()
image = axis.imshow(c, cmap="RdBu_r", vmin=-1, vmax=1)
axis.set(xlabel="dimension of view 2", ylabel="dimension of view 1")
figure.colorbar(image, ax=axis, label="correlation")
figure

# %% [markdown]
# Is it a good representation? An evaluation is a function of arrays, so it can judge the pixels as
# well. Digits this small are told by their pixels better than by anything that learns for a minute.

# %%
pixels = {}
for name, split in {"train": "train", "val": "test"}.items():
    source = experiment.make_source({"name": "digits", "split": split})
    records = source.read(range(len(source)), np.zeros((len(source), 1), int))
    flat = np.stack([np.ravel(record["image"][0]) for record in records]).astype(np.float32)
    labels = np.array([record["label"] for record in records])
    pixels[name] = {"representation": flat[:, None], "label": labels}
print(f"top-1 by neighbours: Barlow Twins {judged[-1][1]:.3f}", end=", ")
print(f"pixels {knn.evaluate(pixels)['top1']:.3f}")

# %% [markdown]
# All else that runs can do, this one can: go on after an interruption, be the start of
# `configs/linear.py`, stand in a table with others (the notebook
# [`compare_runs`](compare_runs.ipynb)). A method with a queue, a target network and a refit between
# epochs is [`tests/proof/queue_method.py`](../tests/proof/queue_method.py); the page is
# [add a method](../jaxequi/methods/README.md).
