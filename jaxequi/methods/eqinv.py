"""EqInv: fine-tuning of a self-supervised network, with a mask that class environments train.

Wang, Sun, Pranata, Jayashree, Zhang, ECCV 2022, arXiv 2207.12258; Wangt-CN/EqInv,
`vipriors_eqinv.py` and `utils.py` (`ResNet_ft_eqinv`). The backbone of the start is frozen once, to
say which examples of other classes resemble a class (`objectives.environments`); then everything
learns:

    x = backbone(view), m = activation(mask)
    cross-entropy of classifier(10 m x / |m x|)
    + contrast of the classes (`objectives.contrastive.supcon`) behind a projector
    + inv_weight * penalty, from epoch inv_start on: the mask alone learns from it

The penalty compares, of each class in the batch, the contrastive loss against the examples of one
environment with that against those of the other.

Logged: `loss/erm`, `loss/contrastive`, `loss/penalty` (without its weight), `accuracy` (over the
simple views), `mask/mean` and `mask/spread` (standard deviation of m over the features).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.nn import heads
from jaxequi.nn import mask as masks
from jaxequi.nn import norm as norms
from jaxequi.nn.norm import at_least_f32
from jaxequi.objectives import classification, environments
from jaxequi.objectives.contrastive import l2_normalize, supcon
from jaxequi.types import (
    OWN,
    Array,
    Batch,
    Features,
    Method,
    Output,
    Progress,
    PyTree,
    Refit,
    collections,
)

SCALE = 10  # of the masked directions


class Seen(NamedTuple):
    """A batch of images in the network."""

    representation: Array  # f32[B, R]
    embedding: Array  # f32[B, D], the projection of the masked direction
    masked: Array  # f32[B, R], the masked direction, through which no gradient goes to the backbone
    logits: Array  # f32[B, C]


class Network(nn.Module):
    """Images f32[B, H, W, 3] to `Seen`."""

    backbone: nn.Module
    mask: masks.Mask
    projector: nn.Module
    classifier: nn.Module

    def __call__(self, images: Array, train: bool, project: bool = True) -> Seen:
        """Compute; without `project` the statistics of the projector stay as they are."""
        x = at_least_f32(self.backbone(images, train))
        m = self.mask(train)
        masked = SCALE * l2_normalize(m * x)
        held = SCALE * l2_normalize(m * jax.lax.stop_gradient(x))
        embedding = at_least_f32(self.projector(masked, train)) if project else masked[:, :0]
        return Seen(x, embedding, held, at_least_f32(self.classifier(masked)))


def make(
    *,
    backbone: nn.Module,
    num_classes: int,
    examples: int,
    inv: str = "rex",
    inv_weight: float = 10.0,
    inv_start: float = 10,
    cont_weight: float = 1.0,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    activation: str = "sigmoid",
    projector: str = "512-128",
    environments_from: str = "",
    epochs: float | None = None,
    start_digest: str | None = None,
    data_digest: str | None = None,
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make EqInv.

    A batch has two views of each example; with four, the last two are the hard ones of
    RandAugment, and the cross-entropy is theirs. `encode` gives `representation` (the backbone's,
    without the mask), `embedding` and `logits`. `extra["own"]["environments"]` is the table
    int8[C, N], made before the first step.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      num_classes: C.
      examples: N, of the training set; a batch's `index` says which they are.
      inv: "rex", the published penalty, or "irm" (see `objectives.environments`).
      inv_weight: of the penalty; 0 leaves it out.
      inv_start: epoch, counted from 0, in which the penalty begins.
      cont_weight: of the contrastive losses, that of the penalty included.
      temperature, base_temperature: of `supcon`.
      activation: of the mask, see `nn.mask`.
      projector: widths.
      environments_from: a file of `prepare.environments` in place of what the run would make.
      epochs: of the run.
      start_digest, data_digest: of the network that the run starts with, and of its training set;
        what a table of environments is a table of.
      norm: of the projector.
      dtype: of the computations above the backbone.

    Raises:
      ValueError: an unknown penalty or activation, a projector of no width, weights or
        temperatures out of range, a penalty that would begin after the end; and when it meets a
        batch, one without two or four views, or a table of another network or other data.
    """
    environments.check_penalty(inv)
    masks.check_activation(activation)
    widths = heads.widths(projector)
    if not widths:
        raise Refusal(
            "projector='': the contrastive loss reads a projection, and the reference stops "
            "without one (--mlp); give widths, such as '512-128'"
        )
    if min(inv_weight, cont_weight) < 0 or min(temperature, base_temperature) <= 0:
        raise Refusal(
            f"inv_weight={inv_weight}, cont_weight={cont_weight}, temperature={temperature}, "
            f"base_temperature={base_temperature}: weights are not below 0, temperatures above 0"
        )
    if inv_start < 0 or (epochs and inv_weight and inv_start >= epochs):
        raise Refusal(
            f"inv_start={inv_start}: the penalty begins in an epoch from 0 on and before the end "
            f"of the run, {'?' if epochs is None else f'{epochs:.4g}'} epochs; to leave it out set "
            "inv_weight=0"
        )
    network = Network(
        backbone,
        masks.Mask(backbone.features, activation),
        heads.Projector(widths, norm, dtype, bias=False, last_bias=True),
        heads.Linear(num_classes, dtype=dtype),
    )
    penalise = environments.PENALTIES[inv]

    @functools.cache
    def stored() -> np.ndarray:
        return _read(environments_from, (num_classes, examples), start_digest, data_digest)

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        if environments_from:
            stored()  # while shapes are traced: before anything is compiled
        extra = dict(network.init(key, _views(batch)[:, 0], False))
        params = extra.pop("params")
        table = jnp.zeros((num_classes, examples), jnp.int8)
        return params, {**extra, OWN: {"environments": table}}

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        views = _views(batch)
        state, keys = collections(extra), jax.random.split(key, 3)

        def see(images: Array, key: Array, project: bool = True) -> Seen:
            nonlocal state
            rngs = dict(zip(("mask", "dropout"), jax.random.split(key), strict=True))
            found: Any = network.apply(
                {"params": params, **state}, images, True, project, mutable=list(state), rngs=rngs
            )
            seen, state = found
            return seen

        seen = [see(views[:, view], keys[view]) for view in (0, 1)]
        labels, index = jnp.tile(batch["label"], 2), jnp.tile(batch["index"], 2)
        logits = jnp.concatenate([one.logits for one in seen])
        told = logits
        if views.shape[1] == 4:
            hard = jnp.concatenate([views[:, 2], views[:, 3]])
            told = see(hard, keys[2], project=False).logits
        erm = classification.cross_entropy(told, labels)
        embedding = l2_normalize(jnp.stack([one.embedding for one in seen], axis=1))
        contrastive = cont_weight * supcon(embedding, batch["label"], temperature, base_temperature)
        total = erm + contrastive
        metrics = {"loss/erm": erm, "loss/contrastive": contrastive}
        if inv_weight:
            environment = environments.look_up(extra[OWN]["environments"], labels, index)
            masked = jnp.concatenate([one.masked for one in seen])
            found = environments.risks(masked, labels, environment, temperature, base_temperature)
            penalty = cont_weight**2 * penalise(found)  # both are of second order in the loss
            total += jnp.where(progress.epoch >= inv_start, inv_weight, 0.0) * penalty
            metrics["loss/penalty"] = penalty
        m = masks.activate(params["mask"]["values"], activation)
        metrics |= {"mask/mean": jnp.mean(m), "mask/spread": jnp.std(m)}
        metrics["accuracy"] = classification.top_k(logits, labels, 1)
        features = {
            name: jnp.stack([getattr(one, name) for one in seen], axis=1)
            for name in ("representation", "embedding", "logits")
        }
        return total, Output({**state, OWN: extra[OWN]}, metrics, features)

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        images = views.reshape(-1, *views.shape[2:])
        seen: Any = network.apply({"params": params, **collections(extra)}, images, False)
        return {
            name: getattr(seen, name).reshape(*views.shape[:2], -1)
            for name in ("representation", "embedding", "logits")
        }

    def build(extra: PyTree, features: Any, key: Array) -> PyTree:
        del key
        labels = np.asarray(features["label"])
        if environments_from:
            table = stored()
        else:
            table = np.full((num_classes, examples), environments.OWN_CLASS, np.int8)
            rows = np.asarray(features["representation"])[:, 0]
            table[:, features["index"]] = environments.assign(rows, labels, num_classes)
        environments.check(table, labels)
        return {**extra, OWN: {**extra[OWN], "environments": table}}

    return Method(init=init, loss=loss, encode=encode, refit=Refit(0, build))


def _views(batch: Batch) -> Array:
    views = batch["views"]
    if views.ndim != 5 or views.shape[1] not in (2, 4):
        raise Refusal(
            "EqInv compares two views of each example, batch['views'] [B, 2, H, W, 3], and takes "
            f"two hard ones behind them ([B, 4, ...]), not {views.shape}; give the data set so "
            "many pipes of `views`"
        )
    return views


def _read(
    file: str, shape: tuple[int, int], start_digest: str | None, data_digest: str | None
) -> np.ndarray:
    """Read a table of environments that is of this network and these data."""
    saved = environments.read(file)
    remedy = "; leave environments_from empty, and the run makes its own"
    if saved.table.shape != shape or saved.data != data_digest:
        raise Refusal(
            f"the environments in {file} are of {saved.table.shape[1]} examples of "
            f"{saved.table.shape[0]} classes (data {saved.data[:12]}), this training set has "
            f"{shape[1]} of {shape[0]} (data {str(data_digest)[:12]}){remedy}"
        )
    if saved.start and saved.start != start_digest:
        raise Refusal(
            f"the environments in {file} were made by another network ({saved.start[:12]}) than "
            f"this run starts with ({str(start_digest)[:12]}){remedy}"
        )
    return saved.table
