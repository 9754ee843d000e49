"""Geometry that the references apply to normalised arrays, and so belongs on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxequi.augment.op import Array, Op, check_probability, check_range, fixed
from jaxequi.errors import Refusal
from jaxequi.groups import rotation


def resize(size: int, antialias: bool = True) -> Op:
    """Resize to a square, bilinear in floats, as torchvision resizes tensors.

    Without `antialias`, as its older releases did; the two differ where an image shrinks.
    """
    if size < 1:
        raise Refusal(f"size is 1 or more pixels, not {size}")

    def apply(planes: Array) -> Array:
        shape = (planes.shape[0], size, size)
        return jax.image.resize(planes, shape, "linear", antialias=antialias)

    return fixed("resize", apply)


def rotate_batch(mean: float = 45.0, std: float = 20.0) -> Op:
    """Turn a whole batch by one angle, normal in degrees, zeros outside; draws (degrees,).

    The biased regime of the rotated-MNIST experiments: after `normalise`, so that the corners
    are the mean grey.
    """
    if std < 0:
        raise Refusal(f"std is 0 or more degrees, not {std}")

    def sample(key: Array, n: int) -> Array:
        return jnp.broadcast_to(mean + std * jax.random.normal(key), (n, 1))

    def apply(planes: Array, drawn: Array) -> Array:
        return rotation.rotate(planes[..., None], drawn[0])[..., 0]

    return Op("rotate_batch", 1, sample, apply)


def circle_crop() -> Op:
    """Set to 0 what lies outside the largest circle around the middle; put it after `normalise`."""

    def apply(planes: Array) -> Array:
        height, width = planes.shape[1:]
        middle = (width - 1) / 2
        y, x = jnp.arange(height)[:, None] - middle, jnp.arange(width)[None] - middle
        return jnp.where(x * x + y * y > middle * middle, 0, planes)

    return fixed("circle_crop", apply)


def shift(padding: int = 1) -> Op:
    """Pad by repeating the edge and cut the old size out at random; draws (down, right)."""
    if padding < 1:
        raise Refusal(f"padding is 1 or more pixels, not {padding}")

    def sample(key: Array, n: int) -> Array:
        return jax.random.randint(key, (n, 2), 0, 2 * padding + 1).astype(jnp.float32)

    def apply(planes: Array, drawn: Array) -> Array:
        padded = jnp.pad(planes, ((0, 0), (padding, padding), (padding, padding)), mode="edge")
        down, right = drawn.astype(jnp.int32)
        return jax.lax.dynamic_slice(padded, (0, down, right), planes.shape)

    return Op("shift", 2, sample, apply)


def random_erasing(
    p: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 10,
) -> Op:
    """Fill a random box with normal noise, as timm's `pixel` mode; put it after `normalise`.

    The box's part of a square image is uniform in `area`, the logarithm of height over width
    in `aspect`; of `tries` draws the first that fits is taken, none if none does. Draws (applied,
    place down, place across, height, width, seed of the noise): the sides as parts of the
    image, the places as parts of the room that is left.
    """
    check_probability(p)
    area, aspect = check_range("area", area), check_range("aspect", aspect)

    def sample(key: Array, n: int) -> Array:
        chance, *keys = jax.random.split(key, 6)
        applied = jax.random.bernoulli(chance, p, (n,)).astype(jnp.float32)
        part = jax.random.uniform(keys[0], (n, tries), minval=area[0], maxval=area[1])
        low, high = jnp.log(aspect[0]), jnp.log(aspect[1])
        root = jnp.exp(0.5 * jax.random.uniform(keys[1], (n, tries), minval=low, maxval=high))
        tall, wide = jnp.sqrt(part) * root, jnp.sqrt(part) / root
        fits = (tall < 1) & (wide < 1)
        first = jnp.argmax(fits, axis=1)[:, None]
        tall = jnp.take_along_axis(tall, first, axis=1)[:, 0]
        wide = jnp.take_along_axis(wide, first, axis=1)[:, 0]
        place = jax.random.uniform(keys[2], (n, 2))
        seed = jax.random.randint(keys[3], (n,), 0, 2**24).astype(jnp.float32)
        applied = applied * fits.any(axis=1)
        return jnp.stack([applied, place[:, 0], place[:, 1], tall, wide, seed], axis=1)

    def erase(planes: Array, drawn: Array) -> Array:
        height, width = planes.shape[1:]
        if height != width:
            raise Refusal(f"random_erasing is for square images, not {height} x {width}.")
        _, down, right, tall, wide, seed = drawn
        h = jnp.clip(jnp.round(tall * height), 1, height - 1)
        w = jnp.clip(jnp.round(wide * width), 1, width - 1)
        top = jnp.floor(down * (height - h + 1))
        left = jnp.floor(right * (width - w + 1))
        y, x = jnp.arange(height)[:, None], jnp.arange(width)[None]
        inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        noise = jax.random.normal(jax.random.key(seed.astype(jnp.uint32)), planes.shape)
        return jnp.where(inside, noise, planes)

    def apply(planes: Array, drawn: Array) -> Array:
        return jax.lax.cond(drawn[0] > 0, erase, lambda same, _: same, planes, drawn)

    return Op("random_erasing", 6, sample, apply)
