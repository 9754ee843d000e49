"""IP-IRM, and the SimCLR and debiased baselines that it is compared with.

Wang, Yue, Huang, Sun, Zhang, "Self-supervised learning disentangled group representation as
feature", NeurIPS 2021, eqs. 3 and 4; Wangt-CN/IP-IRM, `main.py`: `train`, `train_env`,
`train_update_split`.

Minimisation: InfoNCE inside the environments of every retained partition, with a penalty that asks
one scale of each column of the logits to be right in all of them (`objectives.irm`). Maximisation,
before epochs 0, k, 2 k, ...: a search for the partition in which this is most wrong
(`_partition_search`), which joins the retained ones; the oldest leaves when there is no room.

Logged: `loss/contrastive` and `loss/penalty`, means over the environments that have examples;
`loss/global`, of the whole batch; `penalty_weight`; `partition/...` of the newest partition: its
number, the risk where its search ended, the epochs that this took, and the share of the batch in
its first environment; and what shows a collapse (`_siamese.signs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxequi.errors import Refusal
from jaxequi.methods import _ipirm, _siamese
from jaxequi.nn import heads
from jaxequi.nn import norm as norms
from jaxequi.objectives import contrastive, irm
from jaxequi.types import (
    OWN,
    Array,
    Batch,
    Features,
    Method,
    Output,
    Progress,
    PyTree,
    collections,
)


def make(
    *,
    backbone: nn.Module,
    examples: int | None = None,
    projector: str = "512-128",
    temperature: float = 0.5,
    prior: float = 0.0,
    partitions: int = 8,
    environments: int = 2,
    keep_cont: bool = True,
    penalty_weight: float = 0.2,
    penalty_from: int = 0,
    penalty_schedule: str = "constant",
    irm_temperature: float = 0.5,
    every_epochs: int = 50,
    search: Mapping[str, Any] = MappingProxyType({}),
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make IP-IRM; with `partitions` = 0 its baseline.

    Args:
      backbone: (images f32[B, H, W, 3], train) -> f32[B, R]; R is its `features`.
      examples: N, of the training set.
      projector: widths; hidden layers without a bias, the last one with.
      temperature: divides the cosines.
      prior: of the baseline: probability of a negative's being of the same class; 0 is SimCLR,
        0.1 the published debiased loss.
      partitions: P, how many are retained (`--retain_group`, `--retain_group_set`); 1 forgets each
        for the next.
      environments: K, of each partition.
      keep_cont: add the loss of the whole batch.
      penalty_weight: of the penalty; above 1 the whole loss is divided by it.
      penalty_from, penalty_schedule: see `_ipirm.penalty_weight`.
      irm_temperature: divides the cosines in the penalty.
      every_epochs: k, between two searches; 0 searches once.
      search: see `_partition_search.Search`.
      norm: of the projector.
      dtype: of the projector's computations.

    Raises:
      ValueError: numbers that are no experiment; and when it meets a batch, one without two views.
    """
    _ipirm.check(
        examples,
        environments,
        partitions,
        penalty_weight,
        penalty_schedule,
        temperature=temperature,
        irm_temperature=irm_temperature,
    )
    if not 0 <= prior < 1 or (prior and partitions):
        raise Refusal(f"prior={prior}, partitions={partitions}: from 0 to below 1, of the baseline")
    options = _ipirm.read_search(search)
    if options.mixup:
        raise Refusal("method.search.mixup=True: mixtures are the method 'ipirm_mixup'")
    head = _siamese.projector(projector, norm=norm, dtype=dtype, bias=False, last_bias=True)
    network = _siamese.Siamese(backbone, head)
    init = _ipirm.start(network, partitions, examples, environments)
    plain = _ipirm.plain_losses(temperature, irm_temperature, options.normalize)

    def baseline(a: Array, b: Array) -> Array:
        if prior:
            return contrastive.debiased_ntxent(a, b, temperature, prior)
        return contrastive.ntxent(a, b, temperature)

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        views = _siamese.two_views(batch)
        seen, after = network.see(params, collections(extra), [views[:, 0], views[:, 1]], key)
        a, b = (one.embedding for one in seen)
        metrics, scalar = {}, jnp.zeros((), a.dtype)
        if keep_cont or not partitions:
            scalar = metrics["loss/global"] = baseline(a, b)
        if partitions:
            held = after[OWN] = extra[OWN]
            environment = _ipirm.environments_of(held, batch)
            inside = jax.checkpoint(
                lambda e: irm.by_environment(a, b, e, environments, temperature, irm_temperature)
            )
            losses, penalties, members = jax.lax.map(inside, environment)  # [P, K]
            counts = (members > 0) & (jnp.arange(partitions) < held["count"])[:, None]
            share = counts / jnp.maximum(jnp.sum(counts), 1)
            metrics["loss/contrastive"] = jnp.sum(share * losses)
            metrics["loss/penalty"] = jnp.sum(share * penalties)
            weight = _ipirm.penalty_weight(progress, penalty_weight, penalty_from, penalty_schedule)
            metrics["penalty_weight"] = weight
            scalar += metrics["loss/contrastive"] + weight * metrics["loss/penalty"]
            scalar /= jnp.maximum(weight, 1)
            metrics |= _ipirm.told(held, environment)
        return scalar, Output(after, metrics | _siamese.signs(seen), _siamese.stack(seen))

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        return network.evaluate(params, collections(extra), views)

    refit = _ipirm.refit(every_epochs, options, plain) if partitions else None
    return Method(init=init, loss=loss, encode=encode, refit=refit)
