"""Augmentation on the device: photometry of whole batches inside the train step.

`make(["color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)|grayscale(0.2)|normalise('imagenet')"])` is a pure
function `(key, batch) -> batch`, to be called inside `jit`: u8 views in, normalised f32 views out,
and what was drawn in `aug`. Geometry is the host's business (`data/transforms.py`), save what the
references do to normalised arrays.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxequi import pipes
from jaxequi.augment.blur import gaussian_blur, gaussian_blur_3x3
from jaxequi.augment.colour import color_jitter, grayscale, solarize
from jaxequi.augment.geometry import circle_crop, random_erasing, resize, rotate_batch, shift
from jaxequi.augment.mixture import Mixing, mixing
from jaxequi.augment.op import Array, Op, each
from jaxequi.augment.statistics import normalise
from jaxequi.augment.turned import turned_pairs as turned_pairs
from jaxequi.errors import Refusal
from jaxequi.types import Batch

Augment = Callable[[Array, Batch], dict]

OPS: dict[str, Callable[..., Op]] = {
    function.__name__: function
    for function in (
        color_jitter,
        grayscale,
        solarize,
        gaussian_blur,
        gaussian_blur_3x3,
        normalise,
        rotate_batch,
        circle_crop,
        shift,
        resize,
        random_erasing,
    )
}
MIXING: dict[str, Callable[..., Mixing]] = {"mixing": mixing}


def parse(pipe: str) -> list[Op]:
    """Read a pipe of device ops; `normalise` must be in it, once.

    Raises:
      ValueError: an op that does not exist, or arguments that are no literals or not its own.
    """
    ops = pipes.parse(pipe, OPS, "device augmentation")
    if [op.name for op in ops].count("normalise") != 1:
        raise Refusal(f"the pipe {pipe!r} must hold `normalise` once, which makes views floats.")
    return ops


def _run(ops: Sequence[Op], key: Array, views: Array) -> tuple[Array, dict[str, Array]]:
    """Augment views u8[N, H, W, 3]; return f32[N, H, W, 3] and what each op drew, f32[N, k]."""
    drawn = [op.sample(jax.random.fold_in(key, place), len(views)) for place, op in enumerate(ops)]

    def one(view: Array, *numbers: Array) -> Array:
        planes = jnp.moveaxis(view, -1, 0).astype(jnp.float32)
        for op, mine in zip(ops, numbers):
            planes = op.apply(planes, mine)
        return jnp.moveaxis(planes, 0, -1)

    seen: collections.Counter[str] = collections.Counter()
    aug = {}
    for op, numbers in zip(ops, drawn):
        seen[op.name] += 1
        if op.draws:
            aug[op.name if seen[op.name] == 1 else f"{op.name}_{seen[op.name]}"] = numbers
    return each(one, views, *drawn), aug


def nothing(key: Array, batch: Batch) -> dict:
    """Leave a batch as it is: one of stored features."""
    del key
    return dict(batch)


def make(pipes_of_views: Sequence[str], mix: str = "", classes: int | None = None) -> Augment:
    """Compose one pipe a view, or one for all views, into `augment(key, batch) -> batch`.

    Of the batch, `views` u8[B, V, H, W, 3] become f32, normalised, and `aug` gains what each op
    drew, f32[B, V, k] (zeros for a view whose pipe has no such op); all else is kept. Everything
    is drawn in the global shape, so that it does not depend on the number of devices.

    `mix`, such as `"mixing(mixup=0.8, cutmix=1.0, smoothing=0.1)"`, mixes the examples at the end,
    and gives the batch `target` f32[B, C] and `aug["mixing"]`, the share f32[B, V, 1]; C is
    `classes`, those of the data, unless the text says it.

    Raises:
      ValueError: a pipe that cannot be read; while tracing, pipes that do not pair with views, or
        another number of classes than that of the data.
    """
    if not pipes_of_views:
        raise Refusal("there must be a pipe for at least one view.")
    chains = [parse(pipe) for pipe in pipes_of_views]
    mixings = pipes.parse(mix, MIXING, "mixing")
    if len(mixings) > 1:
        raise Refusal(f"a batch is mixed once, not by {mix!r}.")

    def augment(key: Array, batch: Batch) -> dict:
        key, mix_key = jax.random.split(key)
        views = batch["views"]
        count = views.shape[1]
        if len(chains) not in (1, count):
            raise Refusal(f"{count} views and {len(chains)} pipes do not pair up.")
        if len(chains) == 1:
            flat, drawn = _run(chains[0], key, views.reshape(-1, *views.shape[2:]))
            views = flat.reshape(-1, count, *flat.shape[1:])  # an op may resize
            new = {name: x.reshape(-1, count, x.shape[-1]) for name, x in drawn.items()}
        else:
            keys = jax.random.split(key, count)
            each = [_run(ops, keys[i], views[:, i]) for i, ops in enumerate(chains)]
            views = jnp.stack([view for view, _ in each], axis=1)
            new = {}
            for name in dict.fromkeys(name for _, drawn in each for name in drawn):
                blank = jnp.zeros_like(next(drawn[name] for _, drawn in each if name in drawn))
                new[name] = jnp.stack([drawn.get(name, blank) for _, drawn in each], axis=1)
        out = {**batch, "views": views}
        for mixed in mixings:
            out["views"], out["target"], share = mixed(mix_key, views, batch["label"], classes)
            new["mixing"] = jnp.broadcast_to(share, (*views.shape[:2], 1))
        aug = {**batch.get("aug", {}), **new}
        return {**out, "aug": aug} if aug else out

    return augment
