# %% [markdown]
# # EqInv in small
#
# Few images of each class, and in four of five the floor and the light have the hues of the class:
# who looks at the floor is right in training and wrong in the world. EqInv (Wang, Sun, Pranata,
# Jayashree, Zhang, ECCV 2022) splits the images of *other* classes into those that look like a
# class and those that do not, and a mask over the features learns that this should make no
# difference. A minute on a CPU; `FAST = False` is the pipeline of `configs/eqinv.py`, five minutes.

# %%
import contextlib
import io
import itertools
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from configs import eqinv
from jaxequi import experiment
from jaxequi.evals import context
from jaxequi.experiment import before
from jaxequi.nn import mask as masks
from jaxequi.runs import environments as plots
from jaxequi.runs import table
from jaxequi.train import checkpoint, loop
from jaxequi.train.workdir import CHECKPOINTS
from jaxequi.types import OWN

FAST = True
runs = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## A context that misleads
#
# Four classes in training, and the same held out: there the floor may have any hue.

# %%
config = eqinv.get_config("eqinv")
figure = Figure(figsize=(8.4, 4.6), layout="constrained")
figure.suptitle("one view of each object; its floor, too, tells its class in training")
parts = figure.subfigures(1, 2)
for part, (title, given) in zip(
    parts, {"training": config.train.source.source, "held out": config.testgt.source}.items()
):
    source = experiment.make_source({**given, "image_size": 64})
    part.suptitle(title)
    for line, k in zip(part.subplots(4, 4), (0, 3, 6, 9)):
        rows = np.flatnonzero(source.labels == k)[:4]
        for axis, record in zip(line, source.read(rows, np.zeros((4, 1), int))):
            axis.imshow(record["image"][0])
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(source.class_names[k])
figure

# %% [markdown]
# ## Three runs
#
# SimCLR learns from the images without their labels; two runs start with it: fine-tuning as usual,
# and EqInv. The config says so (`config.before`), and the plan has them in order.

# %%
if FAST:
    config = eqinv.get_config("eqinv,smoke")
    for one in (config, *config.before.values()):
        one.train.source.shots, one.train.source.source.num_objects = 20, 12 * 20 * 2
        for part in (one.val, one.testgt):
            part.source.num_objects, part.batch_size = 12 * 20 * 5, 80
        one.backbone.width, one.batch_size, one.total_steps, one.mesh.data = 8, 64, 120, 1
        one.eval_every_steps, one.log_every_steps, one.save_every_steps = 0, 20, 120
    for one in (config, config.before.finetune):
        one.eval_every_steps = 120
    config.method.projector, config.method.inv_start = "64-32", 10
config.compare = ("finetune",)
planned = before.plan(config, [], runs / "eqinv")
with contextlib.redirect_stdout(io.StringIO()):
    for run in planned:
        loop.run(experiment.build(run.config), run.folder)
folders = {run.folder.name: run.folder for run in planned}
print(" -> ".join(folders))

# %% [markdown]
# ## The environments
#
# Before its first step EqInv asks the network that it starts with: of all images of other classes,
# which half looks more like class k? That half is environment 0. A good split goes by the context.

# %%
_, _, params, extra = checkpoint.read_network(folders["eqinv"] / CHECKPOINTS)
assigned = extra[OWN]["environments"]
given = config.train.source.to_dict()
given["source"]["image_size"] = 64  # the same objects, for the eye
source = experiment.make_source(given)
figure = plots.images(assigned, source, ("decode",))
figure.suptitle("images of a class, and of its two environments")
figure

# %% [markdown]
# How much of it is context? Of the images whose floor has a hue of its own class, the share that is
# in environment 0 of class k, by how far that hue is from the hue of k.

# %%
records = source.read(range(len(source)), np.zeros((len(source), 1), int))
hue = context.hue_of_floor(np.concatenate([record["latent"] for record in records]))
away = context.shifts(hue).T  # f[12 classes, images], parts of the circle
edges = np.linspace(0, 0.5, 7)
others = assigned >= 0
near = [
    (assigned[others & (away >= low) & (away < high)] == 0).mean()
    for low, high in itertools.pairwise(edges)
]
figure = Figure(figsize=(6, 3.4), layout="constrained")
figure.suptitle("environments follow the floor")
axis = figure.subplots()
axis.plot((edges[1:] + edges[:-1]) / 2, near, "o-")
axis.axhline(0.5, color="grey", ls=":")
axis.set(
    ylim=(0, 1), xlabel="distance of the floor's hue from that of class k, parts of the circle"
)
axis.set(ylabel="share in environment 0")
axis.grid(alpha=0.3)
figure

# %% [markdown]
# ## The mask
#
# It is multiplied with the features. The penalty should make it small where a feature tells the
# floor, and leave alone what tells the class.

# %%
held_out = dict(np.load(folders["eqinv"] / "features_testgt.npz"))
values = np.asarray(masks.activate(jnp.asarray(params["mask"]["values"]), "sigmoid"))
figure = plots.kept(values, held_out)
figure.suptitle("each dot is a feature")
figure

# %% [markdown]
# ## What it is worth
#
# Held-out accuracy by how far the floor is from where training had it; then the numbers: `misled`
# is how often an image is taken for the class of its floor (8 % without bias).

# %%
judged = {
    name: dict(np.load(folders[name] / "features_testgt.npz")) for name in ("finetune", "eqinv")
}
figure = plots.by_shift(judged)
figure.axes[0].set_title("held-out accuracy by the shift of the context")
figure

# %%
cells = table.beside({name: table.read(folders[name]) for name in judged})
for line in cells:
    print("".join(f"{cell:<20}" for cell in line))

# %% [markdown]
# A run this short shows the parts at work, and settles nothing. What was measured with the whole
# pipeline, and what does *not* come of the penalty there, is on
# [the page of EqInv](../docs/methods/eqinv.md).
