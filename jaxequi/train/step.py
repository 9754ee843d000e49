"""The only jit of the training program: one update, and one evaluation batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxequi.train.state import TrainState
from jaxequi.types import Array, Batch, Features, Method, Metrics, Output, Progress, PyTree

Augment = Callable[[Array, Batch], Batch]


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
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
        raise ValueError(f"accumulate={accumulate}: use 1 (the whole batch at once) or more")
    if accumulate > 1 and not method.mean_over_examples:
        raise ValueError(
            f"accumulate={accumulate}: this method's objective compares the examples of a batch, "
            "so the mean over parts of a batch is another objective. Set accumulate=1; to save "
            "memory use remat=True, dtype='bfloat16' or more devices."
        )

    def gradient(state: TrainState, batch: Batch, key: Array, progress: Progress):
        return jax.value_and_grad(method.loss, has_aux=True)(
            state.params, state.extra, batch, key, progress
        )

    def accumulated(state: TrainState, batch: Batch, key: Array, progress: Progress):
        # Part i takes rows i, i + accumulate, ...: each device keeps a share of every part.
        parts = jax.tree.map(
            lambda a: a.reshape(a.shape[0] // accumulate, accumulate, *a.shape[1:]).swapaxes(0, 1),
            dict(batch),
        )

        def body(carry, part):
            extra, grads, index = carry
            (loss, out), grad = gradient(
                state.replace(extra=extra), part, jax.random.fold_in(key, index), progress
            )
            grads = jax.tree.map(lambda a, b: a + b / accumulate, grads, grad)
            return (out.extra, grads, index + 1), (loss, out.metrics)

        start = (state.extra, jax.tree.map(jnp.zeros_like, state.params), 0)
        (extra, grads, _), (losses, metrics) = jax.lax.scan(body, start, parts)
        mean = jax.tree.map(lambda m: m.mean(0), metrics)
        return (losses.mean(), Output(extra=extra, metrics=mean, features={})), grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        step = state.step.astype(jnp.float32)
        progress = Progress(state.step, step / steps_per_epoch, step / total_steps)
        with jax.named_scope("augment"):
            batch = augment(augment_key, batch)
        take = accumulated if accumulate > 1 else gradient
        (loss, output), grads = take(state, batch, loss_key, progress)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            extra = method.update(params, output.extra, progress)
        # A method that reports a "loss" of its own keeps it: a probe's share is not part of it.
        metrics = {"loss": loss, **output.metrics, "gradient_norm": optax.tree.norm(grads)}
        state = state.replace(step=state.step + 1, params=params, extra=extra, opt_state=opt_state)
        return state, metrics

    return train_step


def make_eval_step(method: Method, augment: Augment) -> Callable[[PyTree, PyTree, Batch], Features]:
    """Build `(params, extra, batch) -> features` in evaluation mode; nothing is random.

    The targets of the batch (everything but its pictures) stand beside the features.
    """

    def eval_step(params: PyTree, extra: PyTree, batch: Batch) -> Features:
        views = augment(jax.random.key(0), batch)["views"]
        targets = {name: value for name, value in batch.items() if name != "views"}
        return targets | method.encode(params, extra, views)

    return eval_step
