# %% [markdown]
# # One pixel decides
#
# A group-convolutional network is equivariant only if every strided layer lands symmetrically on
# its input (Edixhoven, Lengyel, van Gemert 2023). The same network, the same weights: at 33 pixels
# it is exact, at 32 it is not, and the program can say so before anything is computed. Under a
# minute on a CPU.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.data.sources import drawing
from jaxequi.groups.planar import cyclic
from jaxequi.models.gresnet import GResNet
from jaxequi.probes import equivariance, exactness, plots

group = cyclic(4)
network = GResNet(group, widths=(4, 4, 4), blocks=(1, 1, 1), head="coset_first")

# %% [markdown]
# ## The prediction
#
# Each layer slides windows over n pixels. A turn reverses an axis, and windows land on themselves
# only if (n + 2 padding - kernel) is a multiple of the stride.

# %%
for size in (32, 33):
    print(exactness.judge_network(network, (1, size, size, 3), group), end="\n\n")

# %% [markdown]
# ## The measurement
#
# One set of weights, an image at both sizes, and its three turns.


# %%
def image(size):
    grey = drawing.draw(size).astype(np.float32) / 43
    return np.repeat(grey[..., None], 3, -1)


draw = jax.jit(lambda key: network.init(key, jnp.zeros((1, 33, 33, 3)), False))
variables = draw(jax.random.key(0))


def encode(images):
    return network.apply(variables, images, False)


measured = {
    f"{size} pixels": equivariance.measure(encode, image(size)[None], group) for size in (32, 33)
}
for label, errors in measured.items():
    print(
        f"{label}: first broken layer {errors.first_above()}, "
        f"output changes by {errors.relative[-1].max():.1e}"
    )
figure = plots.error_curves(measured)
figure.suptitle("equivariance error of each layer, the worst of the turns")
figure

# %% [markdown]
# ## The maps
#
# Top: the map of the image, then turned. Middle: the map of the turned image. Bottom: their gap,
# which appears with the first stride that misses its grid.

# %%
blocks = ("layer1_0", "layer2_0", "layer3_0")
figure = plots.feature_maps(encode, image(32), group, keep=blocks.__contains__)
figure.suptitle("maps of a turned image, at 32 pixels")
figure

# %%
figure = plots.feature_maps(encode, image(33), group, keep=blocks.__contains__)
figure.suptitle("maps of a turned image, at 33 pixels")
figure

# %% [markdown]
# ## A broken symmetry can be used
#
# One strided convolution, trained to tell a drawing from its own rotation: impossible for an
# equivariant layer, easy for one that misses its grid by a pixel.

# %%
import optax

from jaxequi.methods.supervised import Classifier
from jaxequi.models import one_gconv
from jaxequi.objectives.classification import cross_entropy

layer = Classifier(one_gconv.make("c4"), num_classes=2)
optimizer = optax.sgd(1e-3, momentum=0.9)


@jax.jit
def train(images):
    def loss(variables):
        return cross_entropy(layer.apply(variables, images, True)[1], jnp.array([0, 1]))

    def step(carry, _):
        variables, state = carry
        value, gradient = jax.value_and_grad(loss)(variables)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(variables, updates), state), value

    variables = layer.init(jax.random.key(0), images, False)
    return jax.lax.scan(step, (variables, optimizer.init(variables)), length=800)[1]


losses = {}
for size in (31, 32, 33):
    drawn = drawing.draw(size).astype(np.float32)
    pair = jnp.asarray(np.stack([drawn, np.rot90(drawn)]))[..., None]
    losses[f"{size} pixels"] = np.asarray(train(pair))
    print(size, "pixels: final loss", losses[f"{size} pixels"][-1])
figure = plots.unlearning(losses)
figure.suptitle("telling a drawing from its quarter turn")
figure
