"""A backbone of one convolution, for runs in which the network does not matter."""

import flax.linen as nn

from jaxequi.nn.norm import BatchNorm


class Tiny(nn.Module):
    """Images f32[B, H, W, 3] to f32[B, features]."""

    features: int = 8

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.features, (3, 3), (2, 2))(images)
        return nn.relu(BatchNorm()(x, use_running_average=not train)).mean((1, 2))


def make(features: int = 8):
    return Tiny(features)
