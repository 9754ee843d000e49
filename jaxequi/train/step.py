"""The only two programs of a run: one update, and one batch of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxequi.errors import Refusal
from jaxequi.nn.spread import over_devices
from jaxequi.train.optim import FROZEN, Optimizer
from jaxequi.train.state import TrainState
from jaxequi.types import Array, Batch, Features, Method, Metrics, Output, Progress, PyTree

Augment = Callable[[Array, Batch], Batch]


def progress(step: Array, steps_per_epoch: int, total_steps: int) -> Progress:
    """Where a run stands after `step` updates; the epoch is whole exactly where one begins."""
    whole, within = jnp.divmod(step, steps_per_epoch)
    epoch = whole.astype(jnp.float32) + within.astype(jnp.float32) / steps_per_epoch
    return Progress(step, epoch, step.astype(jnp.float32) / max(total_steps, 1))


def make_train_step(
    method: Method,
    optimizer: Optimizer,
    augment: Augment,
    *,
    total_steps: int,
    steps_per_epoch: int,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Build `(state, batch) -> (state, metrics)`.

    Args:
      accumulate: parts in which a batch's gradient is summed up, to save memory. Exact only for
        objectives that are means over examples.

    Raises:
      ValueError: `accumulate` does not suit the method.
    """
    if accumulate < 1:
        raise Refusal(f"accumulate={accumulate}: use 1 (the whole batch at once) or more")
    if accumulate > 1 and not method.mean_over_examples:
        raise Refusal(
            f"accumulate={accumulate}: this method's objective compares the examples of a batch, "
            "so the mean over parts of a batch is another objective. Set accumulate=1; to save "
            "memory use remat=True, dtype='bfloat16' or more devices."
        )

    def gradient(state: TrainState, batch: Batch, key: Array, now: Progress):
        frozen = jax.tree.map(FROZEN.__eq__, optimizer.groups(state.params))

        def loss(params: PyTree) -> tuple[Array, Output]:
            # Not only kept as they are: their part of the backward pass is not computed either.
            params = jax.tree.map(
                lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen
            )
            return method.loss(params, state.extra, batch, key, now)

        return jax.value_and_grad(loss, has_aux=True)(state.params)

    def accumulated(state: TrainState, batch: Batch, key: Array, now: Progress):
        # Part i takes rows i, i + accumulate, ...: each device keeps a share of every part.
        parts = jax.tree.map(
            lambda a: a.reshape(a.shape[0] // accumulate, accumulate, *a.shape[1:]).swapaxes(0, 1),
            dict(batch),
        )

        def body(carry, part):
            extra, grads, index = carry
            (loss, out), grad = gradient(
                state.replace(extra=extra), part, jax.random.fold_in(key, index), now
            )
            grads = jax.tree.map(lambda a, b: a + b / accumulate, grads, grad)
            return (out.extra, grads, index + 1), (loss, out.metrics)

        start = (state.extra, jax.tree.map(jnp.zeros_like, state.params), 0)
        (extra, grads, _), (losses, metrics) = jax.lax.scan(body, start, parts)
        mean = jax.tree.map(lambda m: m.mean(0), metrics)
        return (losses.mean(), Output(extra=extra, metrics=mean, features={})), grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        now, after = (progress(state.step + i, steps_per_epoch, total_steps) for i in (0, 1))
        with jax.named_scope("augment"):
            batch = jax.tree.map(over_devices, augment(augment_key, batch))
        take = accumulated if accumulate > 1 else gradient
        (loss, output), grads = take(state, batch, loss_key, now)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            extra = method.update(params, output.extra, after)
        # A method that reports a "loss" of its own keeps it: online heads' share is not part of it.
        metrics = {"loss": loss, **output.metrics, "gradient_norm": optax.tree.norm(grads)}
        metrics |= {name: jnp.asarray(rate(state.step)) for name, rate in optimizer.rates.items()}
        state = state.replace(step=state.step + 1, params=params, extra=extra, opt_state=opt_state)
        return state, metrics

    return train_step


def make_eval_step(
    method: Method, augment: Augment, keep: Sequence[str]
) -> Callable[[PyTree, PyTree, Batch, Array], Features]:
    """Build `(params, extra, batch, key) -> features` in evaluation mode.

    Args:
      augment: what is done to the images; it may draw from the key.
      keep: names of features of `Method.encode`, or of what the batch holds beside its views; what
        nobody keeps is not computed. `mask` is kept where the batch has one.

    Raises:
      ValueError: while it is traced, a feature that is in neither.
    """

    def eval_step(params: PyTree, extra: PyTree, batch: Batch, key: Array) -> Features:
        seen = jax.tree.map(over_devices, augment(key, batch))
        found = {name: value for name, value in seen.items() if name not in ("views", "aug")}
        found |= method.encode(params, extra, seen["views"])
        missing = [name for name in keep if name not in found]
        if missing:
            raise Refusal(
                f"an evaluation reads {', '.join(missing)}, which neither the method's `encode` "
                f"nor the set has; there is {', '.join(found)}. Leave that evaluation out, or "
                "give it a method or a set that has it"
            )
        return {name: found[name] for name in (*keep, *({"mask"} & found.keys()))}

    return eval_step
