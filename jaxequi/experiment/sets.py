"""The sets of a config: what is trained on, and what is evaluated.

A set is a field with a `source`: `train`, `val`, and any other. It says everything about itself:

    source         name and arguments of `data/sources`, or a text such as "folder(root='train')"
    views          host pipes, one a view
    num_views      stored views drawn of an example; -1 is all of them, in storage order
    augment        device pipes, one a view or one for all; ends by normalising
    batch_size     of an evaluation pass
    eval_examples  evaluations read at most so many examples, drawn once; None reads all

The training set has `order`, "epochs" or "stream", `mix`, which mixes examples, and `share`, a part
of its examples between 0 and 1 that is drawn once, equally many of each class, besides, and no
batch size of its own.
Evaluations see its examples as `val` shows its own, in evaluation batches: nothing is drawn there
that the training draws.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxequi import arguments, augment, names
from jaxequi.data import loader, order, transforms
from jaxequi.data.sources import subset
from jaxequi.data.sources._open import make_source as make_source
from jaxequi.data.sources._views import AllViews
from jaxequi.errors import Refusal
from jaxequi.train import mesh as meshes
from jaxequi.train.job import Pass
from jaxequi.train.step import Augment
from jaxequi.types import Batch, Source

ORDERS = {"epochs": order.epochs, "stream": order.stream}
ALL = -1  # num_views: every stored view, in storage order


@dataclasses.dataclass(frozen=True)
class Set:
    """A set, ready to be read.

    Attributes:
      source: its examples.
      transform: what the host does to one.
      num_views: stored views drawn of each; of `AllViews` all, in storage order.
      augment: what the device does to a batch.
      batch_size: of a pass over it.
      seed: of what is drawn.
      options: of the loader.
    """

    source: Source
    transform: transforms.Transform
    num_views: int
    augment: Augment
    batch_size: int
    seed: int
    options: Mapping[str, Any]

    def batches(
        self,
        rows: Callable[[int], np.ndarray],
        mesh: Mesh,
        batch_size: int,
        start: int,
        stop: int,
    ) -> loader.Batches:
        """Open the host batches of steps start .. stop - 1."""
        return loader.batches(
            self.source,
            self.transform,
            rows,
            seed=self.seed,
            start=start,
            stop=stop,
            num_views=self.num_views,
            positions=meshes.local_rows(mesh, batch_size),
            **self.options,
        )

    def shapes(self, batch_size: int) -> Batch:
        """Shapes and dtypes of a global batch."""
        if isinstance(self.source, KnowsShapes):
            return self.source.batch_shapes(batch_size, self.num_views)
        with loader.batches(
            self.source,
            self.transform,
            lambda step: np.zeros(1, np.int64),
            seed=self.seed,
            start=0,
            stop=1,
            num_views=self.num_views,
            **{**self.options, "threads": 0},
        ) as batches:
            example = next(batches)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype), example
        )

    def once(self, mesh: Mesh, what: str) -> Pass:
        """A pass over the set: each example once.

        Raises:
          ValueError: its batch does not divide over the devices.
        """
        meshes.check_batch_size(mesh, self.batch_size, f"{what}.batch_size")
        size, count = self.batch_size, len(self.source)

        def batches(number: int = 0, rows: np.ndarray | None = None) -> loader.Batches:
            first = number * order.once_steps(size, count)
            rows = np.arange(count) if rows is None else rows

            def at(step: int) -> np.ndarray:
                places = order.once(step - first, size, len(rows))
                return np.where(places == order.PADDING, places, rows[places])

            stop = first + order.once_steps(size, len(rows))
            return self.batches(at, mesh, size, first, stop)

        return Pass(
            batches=batches,
            batch_size=self.batch_size,
            examples=count,
            shapes=functools.cache(functools.partial(self.shapes, self.batch_size)),
            augment=self.augment,
        )


@runtime_checkable
class KnowsShapes(Protocol):
    """A source that knows the shapes of its batches without reading."""

    def batch_shapes(self, batch_size: int, num_views: int) -> Batch:
        """Shapes and dtypes of a global batch."""


FIELDS: dict[str, Any] = {
    "source": Mapping | str,
    "views": Sequence[str],
    "num_views": int,
    "augment": Sequence[str],
    "batch_size": int,
    "eval_examples": int | None,
    "mix": str,
    "order": str,
}
NEEDED = ("source", "views", "num_views", "augment")


def described(config: Mapping[str, Any]) -> dict[str, ml_collections.ConfigDict]:
    """The sets of a config by name: its fields that have a `source`."""
    return {
        name: field
        for name, field in config.items()
        if isinstance(field, ml_collections.ConfigDict) and "source" in field
    }


def resolved(
    config: ml_collections.ConfigDict, there: ml_collections.ConfigDict | None, origin: str
) -> None:
    """Fill in what sets leave open (None): it is as in the checkpoint that the run starts with.

    Of the training set the checkpoint's own augmentations stay behind: its examples are shown as
    the checkpoint's `val` shows them.

    Raises:
      ValueError: it is open, and there is no checkpoint, or the checkpoint does not say it.
    """
    with config.unlocked():
        for name, one in described(config).items():
            known = described(there) if there is not None else {}
            for field in ("source", "views", "augment", "num_views", "batch_size"):
                if field not in one or one[field] is not None:
                    continue
                shown = "val" if "val" in known and field != "source" else name
                theirs = known.get(name if name != "train" else shown)
                if theirs is None or theirs.get(field) is None:
                    raise Refusal(
                        f"{name}.{field} is not set, and {origin} does not say it either; set "
                        f"--config.{name}.{field}"
                    )
                value = theirs[field]
                one[field] = value.to_dict() if hasattr(value, "to_dict") else value
            move_root(name, one)
            if one.get("share") is not None:
                arguments.check(f"{name}.share", one.share, float)
                if not 0 < one.share <= 1:
                    raise Refusal(f"{name}.share={one.share}: a part above 0 and at most 1")
                whole = one.source
                if isinstance(whole, ml_collections.ConfigDict):
                    whole = whole.to_dict()
                part = {"name": "subset", "stop": one.share, "balanced": True}
                with one.ignore_type():  # a dict in place of a text
                    one.source = {**part, "source": whole}
            if "share" in one:
                del one["share"]


def move_root(name: str, one: ml_collections.ConfigDict) -> None:
    """Give a set's source the `root` that the set may say in its place.

    Raises:
      ValueError: the source is a text.
    """
    if one.get("root") is not None:
        if not isinstance(one.source, ml_collections.ConfigDict):
            raise Refusal(f"{name}.root={one.root!r} moves a source given as a dict only")
        one.source.root = one.root
    if "root" in one:
        del one["root"]


def make_set(
    config: ml_collections.ConfigDict, name: str, shown_as: str | None = None, capped: bool = False
) -> Set:
    """Make a set of a config.

    Args:
      shown_as: the set whose views and photometry its examples get in place of their own.
      capped: read at most `eval_examples`.

    Raises:
      ValueError: something in its description that does not exist or does not fit.
    """
    for which in dict.fromkeys((name, shown_as or name)):
        _check(which, config[which])
    own, shown = config[name], config[shown_as or name]
    source = make_source(own.source)
    limit = own.get("eval_examples")
    if capped and limit is not None:
        if limit < 1:
            raise Refusal(f"{name}.eval_examples={limit}: it must be at least 1")
        if limit < len(source):
            rows = np.random.default_rng(config.seed).permutation(len(source))[:limit]
            source = subset.Subset(source, np.sort(rows))
    num_views = shown.num_views
    if num_views == ALL:
        source, num_views = AllViews(source), source.num_views
    mix = own.get("mix", "") if shown_as is None else ""
    return Set(
        source=source,
        transform=transforms.make(shown.views),
        num_views=num_views,
        augment=_photometry(tuple(shown.augment), mix, len(source.class_names)),
        batch_size=shown.get("batch_size", config.batch_size),
        seed=config.seed,
        options=dict(config.loader),
    )


def _check(name: str, given: Mapping[str, Any]) -> None:
    arguments.check(name, given, Mapping)
    missing = [field for field in NEEDED if field not in given]
    if missing:
        raise Refusal(f"the set {name} lacks {', '.join(missing)}; see {__name__}")
    for field, value in given.items():
        if field not in FIELDS:
            raise names.unknown(f"field of the set {name}", field, FIELDS)
        arguments.check(f"{name}.{field}", value, FIELDS[field])


@functools.cache  # one photometry is one program, however many sets it shows
def _photometry(pipes: tuple[str, ...], mix: str, classes: int) -> Augment:
    return augment.make(pipes, mix, classes)


def make_order(config: ml_collections.ConfigDict, examples: int) -> Callable[[int], np.ndarray]:
    """The rows of training batch t."""
    name = config.train.get("order", "epochs")
    if name not in ORDERS:
        raise names.unknown("train.order", name, ORDERS)
    return functools.partial(ORDERS[name], config.seed, batch_size=config.batch_size, n=examples)
