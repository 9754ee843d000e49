"""IP-IRM on mixtures, and their baseline: a mixture of view 1 names view 2 of both its examples.

Wang et al., NeurIPS 2021; Wangt-CN/IP-IRM, `main_mixup.py`: `train`,
`train_env_mixup_full_retaingp`, `train_env_mixup_full_noretaingp`; `utils_mixup.py`: `mixup`. As
`methods.ipirm`, but that inside the environments examples are mixed anew, with others of theirs,
and pass the network for it: their BatchNorm sees an environment alone (`nn.norm.by_segment`). Of
several retained partitions view 2 passes anew for each, and their losses are added, not averaged.
An environment with less than two examples of a batch has no part in it.

Logged: as `methods.ipirm`.
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
from jaxequi.objectives import irm, partition
from jaxequi.objectives.contrastive import l2_normalize
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


def draw(key: Array, environment: Array, alpha: float) -> tuple[Array, Array]:
    """Draw mixtures inside environments: shares f32[B], at least a half, and partners i32[B].

    Shares are Beta(alpha, alpha), and the larger side; partners are a permutation of each
    environment.
    """
    share_key, order_key = jax.random.split(key)
    size = len(environment)
    share = jax.random.beta(share_key, alpha, alpha, (size,))
    order = jax.random.permutation(order_key, size)
    drawn = order[jnp.argsort(environment[order], stable=True)]
    partner = jnp.zeros_like(drawn).at[jnp.argsort(environment, stable=True)].set(drawn)
    return jnp.maximum(share, 1 - share), partner


def mix(images: Array, share: Array, partner: Array) -> Array:
    """share of each image f32[B, ...], the rest of its partner."""
    share = share.reshape(-1, *(1,) * (images.ndim - 1))
    return share * images + (1 - share) * images[partner]


def make(
    *,
    backbone: nn.Module,
    examples: int | None = None,
    projector: str = "512-128",
    alpha: float = 1.0,
    per_example: bool = False,
    temperature: float = 0.2,
    partitions: int = 8,
    environments: int = 2,
    keep_cont: bool = True,
    penalty_weight: float = 0.2,
    penalty_from: int = 0,
    penalty_schedule: str = "constant",
    irm_temperature: float = 0.5,
    every_epochs: int = 50,
    one_by_one: bool = True,
    search: Mapping[str, Any] = MappingProxyType({}),
    norm: heads.Norm = norms.BatchNorm,
    dtype: Any = jnp.float32,
) -> Method:
    """Make IP-IRM on mixtures; with `partitions` = 0 the baseline on mixtures.

    Args:
      backbone, examples, projector, environments, keep_cont, every_epochs, search, norm, dtype: as
        of `ipirm.make`.
      alpha: of the Beta distribution of the shares.
      per_example: see `irm.mixed_by_environment`.
      temperature: divides the cosines, in the penalty too.
      partitions: as of `ipirm.make`; of a single one (no `--retain_group`) view 2 passes once, and
        `penalty_weight` above 1 divides the loss of the whole batch, too.
      penalty_weight, penalty_from, penalty_schedule: as of `ipirm.make`.
      irm_temperature: divides the cosines in the penalty of a search without mixtures.
      one_by_one: partitions pass in a loop, which takes the memory of one and leaves out those not
        yet found. On a CPU XLA is slow in loops, five times here; without it, all pass always.

    Raises:
      ValueError: as `ipirm.make`.
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
    if not alpha > 0:
        raise Refusal(f"alpha={alpha}: of a Beta distribution, above 0")
    options = _ipirm.read_search(search)
    head = _siamese.projector(projector, norm=norm, dtype=dtype, bias=False, last_bias=True)
    network = _siamese.Siamese(backbone, head)
    init = _ipirm.start(network, partitions, examples, environments)
    plain = _ipirm.plain_losses(temperature, irm_temperature, options.normalize)

    def loss(
        params: PyTree, extra: PyTree, batch: Batch, key: Array, progress: Progress
    ) -> tuple[Array, Output]:
        views = _siamese.two_views(batch)
        first, second = views[:, 0], views[:, 1]
        whole_key, inner_key = jax.random.split(key)
        everywhere = jnp.zeros(len(views), jnp.int32)
        share, partner = draw(whole_key, everywhere, alpha)
        given = [mix(first, share, partner), second]
        seen, after = network.see(params, collections(extra), given, jax.random.fold_in(key, 2))
        whole = irm.mixed_by_environment(
            seen[0].embedding,
            seen[1].embedding,
            share,
            partner,
            everywhere,
            1,
            temperature,
            per_example,
        )[0][0]
        metrics = {"loss/global": whole}
        if not partitions:
            return whole, finished(after, metrics, seen)

        held = extra[OWN]
        environment = _ipirm.environments_of(held, batch)
        weight = _ipirm.penalty_weight(progress, penalty_weight, penalty_from, penalty_schedule)

        def inside(stats: PyTree, environment: Array, key: Array, b: Array) -> Any:
            """Means over the environments of the loss and of the penalty."""
            share, partner = draw(key, environment, alpha)
            with norms.by_segment(environment, environments):
                given, drop_key = [mix(first, share, partner)], jax.random.fold_in(key, 2)
                [x], stats = network.see(params, stats, given, drop_key)
            losses, penalties, members = irm.mixed_by_environment(
                x.embedding, b, share, partner, environment, environments, temperature, per_example
            )
            counts = members > 1
            of_mean = counts / jnp.maximum(jnp.sum(counts), 1)
            return stats, jnp.stack([jnp.sum(of_mean * losses), jnp.sum(of_mean * penalties)])

        def anew(stats: PyTree, environment: Array, key: Array) -> Any:
            [y], stats = network.see(params, stats, [second], jax.random.fold_in(key, 3))
            return inside(stats, environment, key, y.embedding)

        def idle(stats: PyTree, environment: Array, key: Array) -> Any:
            return stats, jnp.zeros(2, whole.dtype)

        def one(stats: PyTree, given: tuple[Array, Array, Array]) -> Any:
            used, *rest = given
            if one_by_one:
                return jax.lax.cond(used, jax.checkpoint(anew), idle, stats, *rest)
            found = anew(stats, *rest)
            kept = idle(stats, *rest)
            return jax.tree.map(lambda new, old: jnp.where(used, new, old), found, kept)

        used = jnp.arange(partitions) < held["count"]
        keys = jax.random.split(inner_key, partitions)
        if partitions == 1:
            after, terms = inside(after, environment[0], keys[0], seen[1].embedding)
            scalar = terms[0] + weight * terms[1] + (whole if keep_cont else 0)
            scalar /= jnp.maximum(weight, 1)
        else:
            after, of_each = jax.lax.scan(
                one, after, (used, environment, keys), unroll=not one_by_one
            )
            terms = jnp.sum(of_each, axis=0)
            scalar = (terms[0] + weight * terms[1]) / jnp.maximum(weight, 1)
            scalar += whole if keep_cont else 0
            terms /= jnp.maximum(held["count"], 1)
        metrics |= {"loss/contrastive": terms[0], "loss/penalty": terms[1]}
        metrics |= {"penalty_weight": weight, **_ipirm.told(held, environment)}
        return scalar, finished({**after, OWN: held}, metrics, seen)

    def finished(extra: PyTree, metrics: dict[str, Array], seen: Any) -> Output:
        # Heads beside the method read the view that is of one example alone.
        return Output(extra, metrics | _siamese.signs(seen), _siamese.stack(seen[1:]))

    def encode(params: PyTree, extra: PyTree, views: Array) -> Features:
        return network.evaluate(params, collections(extra), views)

    def change(key: Array, batch: Batch) -> Batch:
        padding = jnp.where(batch["mask"], 0, 1)  # which is mixed into no example
        share, partner = draw(key, padding, alpha)
        views = _siamese.two_views(batch)
        mixed = jnp.stack([mix(views[:, 0], share, partner), views[:, 1]], axis=1)
        return {**batch, "views": mixed, "share": share, "partner": partner}

    def losses_of(seen: Mapping[str, Array]) -> partition.Losses:
        a, b = seen["embedding"][:, 0], seen["embedding"][:, 1]
        logits = jnp.matmul(l2_normalize(a), l2_normalize(b).T, precision="highest") / temperature
        return partition.mixed_infonce(
            logits, seen["share"], seen.get("partner"), normalize=options.normalize
        )

    refit = None
    if partitions and options.mixup:
        # Offline, theirs leaves the partners' errors out.
        more = ("share", "partner") if options.online else ("share",)
        refit = _ipirm.refit(every_epochs, options, losses_of, change, more)
    elif partitions:
        refit = _ipirm.refit(every_epochs, options, plain)
    return Method(init=init, loss=loss, encode=encode, refit=refit)
