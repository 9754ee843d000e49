# %% [markdown]
# # A checkpoint of torch, imported and evaluated
#
# Weights travel by their names: a state dict of torchvision, timm, MoCo, SIE and others becomes a
# run here, and a run is what every evaluation starts with. Under a minute on a CPU.
#
# With a file that you have, two commands do what this notebook does
# (`pip install torch`, which reads it):
#
# ```
# python -m jaxequi.interop.import_torch --file=resnet18-f37072fd.pth --workdir=runs/resnet18
# python -m jaxequi.main --config=configs/linear.py --config.init_from=runs/resnet18 \
#     --config.train.source="folder(root='DIR/train')" --config.val.source="folder(root='DIR/val')"
# ```
#
# Here there is no internet and no torch, so the file is made first.

# %%
import contextlib
import io
import pathlib
import tempfile

import jax
import numpy as np
from matplotlib.figure import Figure

from configs import linear
from jaxequi import experiment
from jaxequi.data.sources import digits
from jaxequi.interop import files, formats, networks
from jaxequi.interop.formats import torchvision
from jaxequi.train import log, loop

runs = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## The file
#
# A ResNet-18 with the names, shapes and layout of torchvision, and random weights; as safetensors,
# which needs no torch. (`.pth` goes the same way behind `files.read_pth`.)

# %%
described = torchvision.described("resnet18", num_classes=10)
random = np.random.default_rng(0)


def drawn(shape):
    """Filters as He et al. draw them; norms that do nothing yet."""
    if len(shape.shape) > 1:
        fan_in = np.prod(shape.shape[:-1])
        return random.normal(0, (2 / fan_in) ** 0.5, shape.shape).astype(np.float32)
    return np.ones(shape.shape, np.float32)


weights = jax.tree.map(drawn, networks.shapes(described, num_classes=10))
content = torchvision.write(described, weights, epoch=0).content
file = runs / "resnet18.safetensors"
files.write_safetensors(file, content, about={"format": "pt"})

state, about = files.read_safetensors(file)
print(f"{len(state)} arrays, {file.stat().st_size / 2**20:.0f} MiB")
for name in ("conv1.weight", "bn1.weight", "layer2.0.downsample.0.weight", "fc.weight"):
    print(f"  {name:<30}{list(state[name].shape)}")

# %% [markdown]
# ## The import
#
# The format is told by the names, the network by its blocks. Every key must find its place and
# every leaf its key, otherwise nothing is written.

# %%
form = formats.of_file(state)
network = formats.find(form).read(state, None)
networks.save(runs / "resnet18", network.config, network.variables, step=0)
print(f"format {form}, network {network.config.backbone.architecture}")
for line in network.left_out:
    print("left out:", line)

wrong = {name.replace("layer3.0.conv1", "layer3.0.convolution"): a for name, a in state.items()}
try:
    formats.find(form).read(wrong, None)
except ValueError as error:
    print(f"\na file with another name in it is refused:\n{error}")

# %% [markdown]
# The way back gives the same bits, so that torch can go on with what was imported (or trained)
# here: `python -m jaxequi.interop.export_torch RUN --file=model.pth`.

# %%
step, config, variables = networks.load(runs / "resnet18")
back = formats.find(form).write(config, variables, epoch=0)
same = all(np.array_equal(back.content[name], array) for name, array in state.items())
print(f"{len(back.content)} arrays, equal to the file: {same}; loads in {back.loads}")

# %% [markdown]
# ## What is it good for?
#
# `configs/linear.py` takes any run: its features once over the data, then a linear layer on them,
# nearest neighbours and the effective rank. The data are scikit-learn's digits at 32 pixels.

# %%
config = linear.get_config("linear")
config.init_from = str(runs / "resnet18")
config.train.source, config.val.source = "digits(split='train')", "digits(split='test')"
for part in (config.train, config.val):
    part.views, part.augment = ("decode|resize((32, 32))",), ("normalise('imagenet')",)
config.total_epochs, config.mesh.data = 30, 1
with contextlib.redirect_stdout(io.StringIO()):
    loop.run(experiment.build(config), runs / "linear")
judged = log.read_metrics(runs / "linear")[-1]
for name, metric in {
    "linear layer, top-1": "val/heads/top1/classification-all-linear",
    "20 nearest neighbours, top-1": "val/knn/top1",
    "effective rank of 512": "val/rank/effective_rank",
}.items():
    print(f"{name:<30}{judged[metric]:.3f}")

# %% [markdown]
# These are random weights: the digits are easy, and this is the floor above which a trained file
# should be; chance is 0.1. The run has kept the held-out features, so one can look at what lies
# near a digit in the representation.

# %%
source = digits.make("test")
kept = np.load(runs / "linear" / "features_val.npz")
rows = kept["representation"][:, 0]
rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
asked = (0, 3, 8, 17)
nearest = np.argsort(-rows[asked,] @ rows.T, axis=1)[:, :7]  # the first is the digit itself

figure = Figure(figsize=(7.2, 4.6), layout="constrained")
figure.suptitle("held-out digits, and their nearest neighbours (red: of another class)")
for line, near in zip(figure.subplots(len(asked), nearest.shape[1]), nearest):
    records = source.read(near, np.zeros((len(near), 1), int))
    for place, (axis, record) in enumerate(zip(line, records)):
        axis.imshow(np.asarray(record["image"][0]), cmap="Greys_r")
        wrong = record["label"] != records[0]["label"]
        title = f"{place}: a {record['label']}" if place else f"a {record['label']}"
        axis.set_title(title, fontsize=9, color="C3" if wrong else "black")
        axis.axis("off")
figure

# %% [markdown]
# Formats that are read, and which of the originals' commands go with them, are on the page
# [weights of torch](../docs/systems/weights.md).
