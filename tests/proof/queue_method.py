"""A method of one's own: a queue, a target network, clusters that a refit makes, and no latents."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.nn.heads import Linear
from jaxequi.objectives import classification
from jaxequi.objectives.contrastive import l2_normalize
from jaxequi.types import OWN, Method, Output, Refit, collections


class Network(nn.Module):
    backbone: nn.Module
    clusters: int

    @nn.compact
    def __call__(self, images, train):
        y = self.backbone(images, train)
        return (
            y,
            l2_normalize(Linear(8, name="projector")(y)),
            Linear(self.clusters, name="head")(y),
        )


def make(*, backbone, examples, K=32, m=0.9, T=0.2, clusters=4) -> Method:
    network = Network(backbone, clusters)

    def init(key, batch):
        stats = dict(network.init(key, batch["views"][:, 0], True))
        params = stats.pop("params")
        queue = l2_normalize(jax.random.normal(key, (K, 8)))
        own = {"queue": queue, "cluster": jnp.zeros(examples, jnp.int32)}
        return params, {**stats, OWN: {**own, "target": {"params": params, **stats}}}

    def loss(params, extra, batch, key, progress):
        own, target = extra[OWN], extra[OWN]["target"]
        moving = list(collections(extra))
        online = {"params": params, **collections(extra)}
        (y, q, c), stats = network.apply(online, batch["views"][:, 0], True, mutable=moving)
        (_, k, _), moved = network.apply(target, batch["views"][:, 1], True, mutable=moving)
        k = jax.lax.stop_gradient(k)
        logits = jnp.concatenate([jnp.sum(q * k, 1, keepdims=True), q @ own["queue"].T], 1) / T
        contrast = classification.cross_entropy(logits, jnp.zeros(len(q), int))
        grouped = classification.cross_entropy(c, own["cluster"][batch["index"]])
        queue = jnp.concatenate([k, own["queue"]])[:K]
        own = {**own, "queue": queue, "target": {**target, **moved}}
        return contrast + grouped, Output({**stats, OWN: own}, {}, {"representation": y[:, None]})

    def update(params, extra, progress):
        target = extra[OWN]["target"]
        mean = jax.tree.map(lambda t, p: m * t + (1 - m) * p, target["params"], params)
        return {**extra, OWN: {**extra[OWN], "target": {**target, "params": mean}}}

    def encode(params, extra, views):
        variables = {"params": params, **collections(extra)}
        y, _, _ = network.apply(variables, views.reshape(-1, *views.shape[2:]), False)
        return {"representation": y.reshape(*views.shape[:2], -1)}

    def cluster(extra, features, key):
        rows = features["representation"][:, 0]
        chosen = jax.random.choice(key, len(rows), (clusters,), replace=False)
        near = np.square(rows[:, None] - rows[np.asarray(chosen)]).sum(-1).argmin(1)
        return {**extra, OWN: {**extra[OWN], "cluster": near.astype(np.int32)}}

    return Method(init, loss, encode, update, refit=Refit(every_epochs=1, fn=cluster))
