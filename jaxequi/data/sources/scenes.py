"""The embedded data set: images of procedural 3D objects with the seven latents of 3DIEBench.

Nothing is stored and nothing is downloaded. An object is a function of (seed, number), a view of
(seed, number, view), and an image is ray-cast when it is first read, on the first local device.
Unlike the released images of 3DIEBench, whose red and blue are swapped, these are plain RGB.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np

from jaxequi import names
from jaxequi.data import objects
from jaxequi.data.raycast import MIN_IMAGE_SIZE, Parts, render
from jaxequi.errors import Refusal
from jaxequi.types import Record

LATENT_NAMES = (
    "rotation x",
    "rotation y",
    "rotation z",
    "floor hue",
    "light theta",
    "light phi",
    "light hue",
)
HUES = [LATENT_NAMES.index(name) for name in ("floor hue", "light hue")]
LATENT_LOW = (-np.pi / 2, -np.pi / 2, -np.pi / 2, 0, 0, 0, 0)
LATENT_HIGH = (np.pi / 2, np.pi / 2, np.pi / 2, 1, np.pi / 4, 2 * np.pi, 1)

CONTEXT_SPREAD = 0.02  # standard deviation of a hue about its class's own

MEAN = (0.51, 0.50, 0.50)  # of the pixels / 255, for each channel
STD = (0.15, 0.15, 0.15)

SPLITS = ("train", "val")
MOST_OBJECTS = 1_000_000  # each takes a kilobyte and a millisecond before the first is shown


def make(
    split: str = "train",
    *,
    image_size: int = 48,
    num_objects: int = 300,
    num_views: int = 50,
    seed: int = 0,
    cache_mb: float = 256,
    context: float = 0.0,
) -> Scenes:
    """A split of the embedded data set.

    Args:
      split: "train", four fifths of the objects of each class, or "val", the rest.
      image_size: height and width of the images.
      num_objects: objects in both splits together; asking for more adds to the same objects.
      num_views: views of each object.
      seed: of the objects and of their latents.
      cache_mb: megabytes of images to keep. They are kept in the order in which they are read;
        those for which no room is left are computed at each reading.
      context: share of the views whose floor and light have the hues of the object's class, in
        place of any: a bias from which a class can be told without looking at the object.

    Raises:
      ValueError: unknown split, or a number out of range.
    """
    if split not in SPLITS:
        raise names.unknown("split", split, SPLITS)
    if image_size < MIN_IMAGE_SIZE:
        raise Refusal(f"image_size must be at least {MIN_IMAGE_SIZE}, got {image_size}")
    for name, value, least in (("num_views", num_views, 1), ("seed", seed, 0)):
        if value < least:
            raise Refusal(f"{name} must be at least {least}, got {value}")
    if num_objects > MOST_OBJECTS:
        raise Refusal(f"num_objects must be at most {MOST_OBJECTS}, got {num_objects}")
    if not 0 <= context <= 1:
        raise Refusal(f"context={context}: the share of views with their class's hues, from 0 to 1")
    if cache_mb < 0:
        raise Refusal(f"cache_mb must be at least 0 (0 keeps no image), got {cache_mb}")
    numbers = [n for n in range(num_objects) if _is_validation(n) == (split == "val")]
    if not numbers:
        raise Refusal(
            f"num_objects={num_objects} leaves the split {split!r} empty; at least 5 are needed"
        )
    return Scenes(numbers, image_size, num_views, seed, cache_mb, context)


def _is_validation(number: int) -> bool:
    """Every fifth object of each class, beginning at another one in each class."""
    return (number // len(objects.CLASS_NAMES) + objects.label(number)) % 5 == 4


def latents(seed: int, number: int, num_views: int) -> np.ndarray:
    """Latents of the views of an object, uniform in their ranges: f64[num_views, 7]."""
    rng = np.random.default_rng((seed, number, 1))
    return rng.uniform(LATENT_LOW, LATENT_HIGH, (num_views, len(LATENT_NAMES)))


def hues(label: int) -> tuple[float, float]:
    """The hues of floor and light that `context` gives the views of a class."""
    classes = len(objects.CLASS_NAMES)
    return label / classes, (0.5 + 5 * label / classes) % 1


def in_context(seed: int, number: int, latents: np.ndarray, context: float) -> np.ndarray:
    """Latents f64[num_views, 7] of an object, the share `context` of them with its class's hues."""
    rng = np.random.default_rng((seed, number, 2))
    biased = rng.uniform(size=len(latents)) < context
    own = rng.normal(hues(objects.label(number)), CONTEXT_SPREAD, (len(latents), 2)) % 1
    latents[:, HUES] = np.where(biased[:, None], own, latents[:, HUES])
    return latents


class Scenes:
    """Source of the images of some objects; row i of the source is object `numbers[i]`.

    Attributes:
      class_names, num_views: see `types.Source`.
      image_size: height and width of the images.
      labels: i64[N], classes of the rows.
      latents: f64[N, num_views, 7], of all images.
      parts: `Parts` of f32[N, P, ...], the objects themselves.
    """

    class_names: Sequence[str] = objects.CLASS_NAMES

    def __init__(
        self,
        numbers: Iterable[int],
        image_size: int,
        num_views: int,
        seed: int,
        cache_mb: float,
        context: float = 0.0,
    ):
        numbers = list(numbers)
        self.image_size = image_size
        self.num_views = num_views
        self.labels = np.array([objects.label(n) for n in numbers])
        self.latents = np.stack(
            [in_context(seed, n, latents(seed, n, num_views), context) for n in numbers]
        )
        self.parts = Parts(*map(np.stack, zip(*(objects.build(seed, n) for n in numbers))))
        self._cache: dict[int, np.ndarray] = {}
        self._cache_room = int(cache_mb * 2**20 / (3 * image_size**2))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return f"{len(self)} embedded objects at {self.image_size} pixels"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Images `views` (i64[N, V]) of the objects `rows` (N of them).

        Returns:
          N records: `image`, a list of V read-only u8[H, W, 3]; `label`; `latent` f32[V, 7].

        Raises:
          ValueError: a row or a view that does not exist, or shapes that do not fit.
        """
        at, views = np.asarray(rows, np.int64), np.asarray(views)
        if at.ndim != 1 or views.ndim != 2 or len(at) != len(views):
            raise Refusal(
                f"rows must be [N] and views [N, V], got shapes {at.shape} and {views.shape}"
            )
        for name, given, end in (("row", at, len(self)), ("view", views, self.num_views)):
            if given.size and (given.min() < 0 or given.max() >= end):
                raise Refusal(f"{name}s must lie in 0..{end - 1}, got {given.min()}..{given.max()}")
        keys = (at[:, None] * self.num_views + views).tolist()
        images = self._images({key for row in keys for key in row})
        return [
            {
                "image": [images[key] for key in keys[i]],
                "label": int(self.labels[row]),
                "latent": self.latents[row, views[i]].astype(np.float32),
            }
            for i, row in enumerate(at)
        ]

    def _images(self, keys: set[int]) -> dict[int, np.ndarray]:
        """Images by row * num_views + view, from the cache or computed.

        Reading is uniform, so that an image in the cache is as good as any other: none is ever
        given up for a newer one. Two threads may compute the same image; they get the same.
        """
        with self._lock:
            found = {key: self._cache[key] for key in keys if key in self._cache}
        missing = np.array(sorted(keys - found.keys()), np.int64)
        if not missing.size:
            return found
        rows, views = np.divmod(missing, self.num_views)
        parts = Parts(*(array[rows] for array in self.parts))
        rendered = render(parts, self.latents[rows, views], self.image_size)
        # Copies: a slice would keep the whole array of this reading alive.
        new = {key: image.copy() for key, image in zip(missing.tolist(), rendered)}
        for image in new.values():
            image.flags.writeable = False
        with self._lock:
            for key, image in new.items():
                if len(self._cache) >= self._cache_room:
                    break
                self._cache[key] = image
        return found | new
