# %% [markdown]
# # Read and compare runs
#
# A run is a folder that says everything about itself. Three short ones are made here, and then
# read: their files, their curves, a table of them all, and a network that comes back from its
# checkpoint. Under a minute on a CPU.

# %%
import contextlib
import io
import json
import pathlib
import tempfile

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxequi
from configs import common, simsiam, supervised
from jaxequi import experiment
from jaxequi.data import transforms
from jaxequi.runs import report, table
from jaxequi.train import log, loop

runs = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Three runs
#
# SimSiam, and a classifier with two seeds, on scikit-learn's digits; 66 steps each.

# %%
for name, module, seed in (
    ("simsiam", simsiam, 0),
    ("supervised-0", supervised, 0),
    ("supervised-1", supervised, 1),
):
    config = module.get_config()
    config.seed, config.mesh.data = seed, 1
    config.backbone.width, config.backbone.zero_init_residual = 8, False
    config.total_steps, config.total_epochs = 66, None
    config.log_every_steps = config.eval_every_steps = 22
    config.evals = {"knn": common.knn(20), "rank": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        loop.run(experiment.build(config), runs / name)
folders = {folder.name: folder for folder in sorted(runs.iterdir())}

# %% [markdown]
# ## The folder
#
# `config.json` is the whole config as it ran, so that the same run can be started again;
# `about.json` says by which command, at which commit and on what; `metrics.jsonl` has one line a
# logged step. All of them are plain JSON, for whatever reads them.

# %%
for file in sorted(folders["simsiam"].iterdir()):
    size = "folder" if file.is_dir() else f"{file.stat().st_size:,} bytes"
    print(f"{file.name:<24}{size}")
config = json.loads((folders["simsiam"] / "config.json").read_text())
print("method:", config["method"])
rows = {name: log.read_metrics(folder) for name, folder in folders.items()}
print("metrics:", ", ".join(sorted(rows["simsiam"][-1])))

# %% [markdown]
# ## Curves
#
# The same metric has the same name in every run: `val/knn/top1` is measured by the evaluation `knn`
# on the set `val`.

# %%
figure = Figure(figsize=(8, 3.3), layout="constrained")
figure.suptitle("three runs on digits")
panels = {"loss": "loss, each method's own", "val/knn/top1": "top-1 by 20 neighbours, held out"}
for axis, (metric, title) in zip(figure.subplots(1, 2), panels.items()):
    for name, logged in rows.items():
        points = [(row["step"], row[metric]) for row in logged if metric in row]
        axis.plot(*zip(*points), "o-", ms=3, label=name)
    axis.set(title=title, xlabel="step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
figure

# %% [markdown]
# ## One table
#
# Runs that differ in nothing but their seed become one row, with mean and standard deviation. On
# the command line: `python -m jaxequi.report runs/NAME runs/NAME ...`, which writes a page with
# figures, Markdown and CSV; of one run it writes the report.

# %%
joined = table.join([table.read(folder) for folder in folders.values()])
cells = table.cells(table.rows(joined))
widths = [max(map(len, column)) + 2 for column in zip(*cells)]
for line in cells:
    print("".join(f"{cell:<{width}}" for cell, width in zip(line, widths)))
page = report.write(folders["supervised-0"])
print(f"\n{page.name}, with its figures in it: {page.stat().st_size:,} bytes")

# %% [markdown]
# ## The network
#
# `jaxequi.load` gives the network back with its values. Here it encodes held-out digits, as the run
# did at its end: the run kept those features, and they are the same to rounding.

# %%
network = jaxequi.load(folders["supervised-0"])
shown = experiment.make_set(network.config, "val")
transform, random = transforms.make(network.config.val.views), np.random.default_rng(0)
records = shown.source.read(range(64), np.zeros((64, 1), int))
images = np.stack([transform(record, random)["views"] for record in records])
views = shown.augment(jax.random.key(0), {"views": images})["views"]
encoded = jax.jit(network.encode)(network.params, network.extra, views)["representation"]

kept = dict(np.load(folders["supervised-0"] / "features_val.npz"))
gap = np.abs(np.asarray(encoded)[:, 0] - kept["representation"][:64, 0]).max()
print(f"step {network.step}, representation {encoded.shape}, largest difference {gap:.1e}")

# %%
figure = Figure(figsize=(8.6, 3.8), layout="constrained")
figure.suptitle("two principal components of the held-out digits, coloured by class")
for axis, name in zip(figure.subplots(1, 2), ("simsiam", "supervised-0")):
    features = dict(np.load(folders[name] / "features_val.npz"))
    points = features["representation"][:, 0]
    centred = points - points.mean(0)
    x, y = (centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T).T
    dots = axis.scatter(x, y, c=features["label"], cmap="tab10", s=10)
    axis.set(title=name, xlabel="first component", ylabel="second component")
    axis.set(xticks=[], yticks=[])
figure.colorbar(dots, ax=figure.axes, label="class", ticks=range(10))
figure
