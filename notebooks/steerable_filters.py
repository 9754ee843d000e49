# %% [markdown]
# # Groups and steerable filters one can see
#
# A group is a table, a field is a rule by which channels move, and a steerable filter is one that
# keeps the rule. Each of them is a figure here. Half a minute on a CPU.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxequi.data.sources import drawing
from jaxequi.groups import kernels, planar, representations
from jaxequi.groups.representations import FieldType
from jaxequi.nn.steerable import FilterSpace, RegularConv, steerable_conv
from jaxequi.probes import check, plots

flag = drawing.draw(65).astype(np.float32)
flag = (flag - flag.min()) / np.ptp(flag)


def bare(axes):
    for axis in np.asarray(axes).flat:
        axis.set(xticks=[], yticks=[])


# %% [markdown]
# ## A group
#
# D4 are the quarter turns of the plane and their mirror images. An element is *mirror first, then
# turn*; its index counts the turns, and the mirrored ones come second.

# %%
d4 = planar.named("d4")
figure = Figure(figsize=(7.2, 4.1), layout="constrained")
figure.suptitle("the eight elements of D4")
axes = figure.subplots(2, 4)
for element, axis in enumerate(axes.flat):
    axis.imshow(planar.act(d4, element, flag, (0, 1)), cmap="Greys")
    axis.set_title(f"{element}: {d4.labels[element]}", fontsize=9)
bare(axes)
figure

# %% [markdown]
# The whole group is one table of integers: row g, column h says which element is g after h. It is
# not symmetric: a mirror after a turn is not the turn after the mirror.

# %%
figure = Figure(figsize=(6.6, 4.9), layout="constrained")
axis = figure.subplots()
axis.imshow(d4.product, cmap="tab20")
for (g, h), value in np.ndenumerate(d4.product):
    axis.text(h, g, str(value), ha="center", va="center")
axis.set(title="product of D4: g after h", xlabel="h, done first", ylabel="g, done second")
axis.set_xticks(range(d4.order))
axis.set_yticks(range(d4.order), [f"{name}: {g}" for g, name in enumerate(d4.labels)])
figure

# %% [markdown]
# ## Filters that turn
#
# A filter from a grey image to a *regular field* of C8 is eight filters, each the one before it
# turned by 45 degrees. All such filters together have a basis: waves around rings, a frequency m
# each. Whatever a network learns of them, it cannot leave the symmetry.

# %%
c8 = planar.named("c8")
image, field = representations.trivial(c8), representations.regular(c8)
basis = kernels.basis(image, field, 7)
rows = [np.flatnonzero(basis.frequency == m)[-1] for m in range(4)]
figure = Figure(figsize=(8.6, 4.8), layout="constrained")
figure.suptitle("four of the basis filters from an image to a regular field of C8, 7 x 7 pixels")
axes = figure.subplots(len(rows), c8.order)
for line, row in zip(axes, rows):
    filters = basis.filters[row, :, 0].reshape(-1, 7, 7)
    top = np.abs(filters).max()
    for axis, values in zip(line, filters):
        axis.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top)
    line[0].set_ylabel(f"frequency {basis.frequency[row]}", fontsize=9)
for axis, label in zip(axes[0], c8.labels):
    axis.set_title(label, fontsize=9)
bare(axes)
figure

# %% [markdown]
# ## A vector field
#
# Fields need not be regular. An arrow at each pixel has two channels that turn into each other: the
# irrep of frequency 1. Filters of frequency 1 from an image to such a field of D8 are
# gradients, of one ring each, and nothing else. (C8, which has no mirrors, would allow the same
# arrows turned by any fixed angle.) Turn the image, and the arrows turn with it.

# %%
d8 = planar.named("d8")
scalar, arrow = representations.trivial(d8), representations.irrep(d8, 1, 1)
gradient = FilterSpace(FieldType(((scalar, 1),)), FieldType(((arrow, 1),)), size=7)
found = kernels.basis(scalar, arrow, 7)
[ring] = np.flatnonzero((found.frequency == 1) & (found.ring == 2))
weights = {"weights": jnp.zeros((len(found.frequency), 1, 1)).at[ring].set(1)}


def arrows(pixels):
    return np.asarray(steerable_conv(jnp.asarray(pixels)[None, ..., None], weights, gradient)[0])


def show(axis, pixels, title, every=3):
    vectors = arrows(pixels)[::every, ::every]
    at = 3 + every * np.arange(len(vectors))  # the convolution has cut 3 pixels off
    axis.imshow(pixels, cmap="Greys", alpha=0.35)
    up, left = vectors[..., 0], vectors[..., 1]  # the left-right mirror keeps the first channel
    axis.quiver(at, at, -left, up, scale=25, width=0.005, color="C3")
    axis.set_title(title, fontsize=9)


figure = Figure(figsize=(7.6, 4.1), layout="constrained")
left, right = figure.subplots(1, 2)
show(left, flag, "an image, and its vector field")
turn = d8.labels.index("turn 45")  # the same element in c8
show(right, planar.transform(d8, turn, flag, (0, 1)), "the image turned by 45 degrees")
bare([left, right])
figure

# %% [markdown]
# The law says that the arrows of the turned image are the turned arrows: their places move, and
# each of them turns. So it is, up to what the interpolation between pixels costs.

# %%
fields = gradient.type_out
before = representations.act(fields, turn, arrows(flag))
after = arrows(planar.transform(d8, turn, flag, (0, 1)))
side = np.linspace(-1, 1, len(after))
disc = np.hypot(*np.meshgrid(side, side)) < 0.9
gap = np.abs(before - after)[disc].mean() / np.abs(after)[disc].mean()
print(f"turn, then arrows, and arrows, then turn, differ by {gap:.1%}")

# %% [markdown]
# ## Turn the input, turn the output
#
# A layer of random steerable weights over C8, on the image and on the image turned by 45 degrees.
# Of the map one channel is shown; under a turn the channels change places, too.

# %%
layer = RegularConv(features=2, kernel_size=7, padding=3, group=c8, lifting=True)
variables = layer.init(jax.random.key(1), jnp.zeros((1, 65, 65, 1)))
side = np.linspace(-1, 1, 65)
inside = flag * (np.hypot(*np.meshgrid(side, side)) < 0.95)
figure = plots.feature_maps(lambda x: layer.apply(variables, x), inside[..., None], c8, turn)
figure.set_size_inches(5.4, 6.4)
figure.suptitle("a steerable layer over C8, and a turn by 45 degrees")
figure

# %% [markdown]
# Quarter turns move pixels to pixels, and the layer follows them to the last bits. Other turns
# interpolate; what is measured there is the interpolation as much as the layer. D4 has none.

# %%
names = {"c8": c8, "d4": d4}
figure = Figure(figsize=(8, 3.4), layout="constrained")
figure.suptitle("how far a layer is from following each element (blue: no interpolation)")
worst = {}
for axis, (name, group) in zip(figure.subplots(1, 2, sharey=True), names.items()):
    one = RegularConv(features=2, kernel_size=7, padding=3, group=group, lifting=True)
    values = one.init(jax.random.key(0), jnp.zeros((1, 65, 65, 1)))
    errors = check(
        lambda x, one=one, values=values: one.apply(values, x),
        inside[None, ..., None],
        group,
    )
    worst[name] = errors.relative[-1]
    colours = ["C0" if exact else "C1" for exact in errors.exact]
    axis.bar(range(group.order), np.maximum(worst[name], 1e-9), color=colours)
    axis.set_xticks(range(group.order), group.labels, rotation=90, fontsize=8)
    axis.set(title=name.upper(), yscale="log", ylim=(1e-9, 1))
    axis.grid(axis="y", alpha=0.3)
figure.axes[0].set_ylabel("relative error")
figure

# %% [markdown]
# Networks of such layers are `steerable_resnet` (any C_N, D_N) and `gresnet` (C4, D4). Where
# strides break their symmetry, and how to see it coming, is the notebook
# [`equivariance_breaking`](equivariance_breaking.ipynb).
