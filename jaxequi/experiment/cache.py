"""Sets as a frozen network sees them, computed once: images in, stored features out.

The folder of a set's features is named after all that they depend on: the network's weights, the
data, the views, the photometry, the dtype. Another network, or other data, is another folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxequi import augment
from jaxequi.data import order, transforms
from jaxequi.data.sources._views import AllViews
from jaxequi.data.sources.features import Features, Writer
from jaxequi.experiment import sets
from jaxequi.experiment.trained import Trained
from jaxequi.train import log
from jaxequi.train import mesh as meshes
from jaxequi.types import Array, Batch, PyTree, Record, Source

FOLDER = "features"  # below that of the checkpoint's run
IMAGES = 512  # encoded at once, about
SECONDS = 10  # between two notes of what is done
SAMPLED = 16  # examples that tell one data set from another
_LOCK = threading.Lock()  # of whoever writes features
KEPT = ("predictable", "label", "latent")  # beside the representation, where there are such


class Cached:
    """A source whose images are features of a frozen network; computed when first read."""

    def __init__(self, network: Trained, config: ml_collections.ConfigDict, name: str, mesh: Mesh):
        """Describe the features of a set of a config, as `val` shows its examples."""
        self.network, self.name, self.mesh = network, name, mesh
        self.under = sets.make_set(config, name, "val" if "val" in config else None, capped=True)
        source = self.under.source
        self.source = source if isinstance(source, AllViews) else AllViews(source)
        self.class_names, self.num_views = self.source.class_names, self.source.num_views
        self.said = {
            "set": sets_of(config, name),
            "augment": list(config["val" if "val" in config else name].augment),
            "dtype": config.dtype,
        }
        self.parent = pathlib.Path(config.cache.folder or network.run / FOLDER)
        self._found: Features | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __str__(self) -> str:
        return f"features of {self.source}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples; `image` is a list of f32[R]."""
        return self.features.read(rows, views)

    def batch_shapes(self, batch_size: int, num_views: int) -> Batch:
        """Shapes and dtypes of a global batch."""
        images = self._images(1).shapes(batch_size)
        found = dict(jax.eval_shape(self._encode, self._values(), images))
        shape = {name: (batch_size, num_views, *s.shape[2:]) for name, s in found.items()}
        shape["label"] = (batch_size,)
        given = {
            "views": (shape.pop("representation"), np.float32),
            "index": ((batch_size,), np.int32),
            "mask": ((batch_size,), np.bool_),
            **{name: (shape[name], found[name].dtype) for name in shape},
        }
        return {n: jax.ShapeDtypeStruct(size, dtype) for n, (size, dtype) in given.items()}

    @functools.cached_property
    def folder(self) -> pathlib.Path:
        """Where the features are kept."""
        return self.parent / f"{self.name}-{_digest(self._what)[:16]}"

    @property
    def features(self) -> Features:
        """The features; computed, as far as they are not there yet.

        Raises:
          ValueError: the folder cannot be written.
        """
        with _LOCK:  # the threads of a loader ask at once, and only Python 3.11 had them wait
            if self._found is None:
                self._found = self._find()
            return self._found

    def _find(self) -> Features:
        writer = Writer(self.folder, self._what)
        count, views = len(self), self.num_views
        if not writer.complete:
            self._compute(writer, self.mesh.size * max(1, IMAGES // (views * self.mesh.size)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(str(self.folder))
            writer = Writer(self.folder, self._what)
        assert len(writer.open()) == count
        return writer.open()

    @functools.cached_property
    def _what(self) -> dict[str, Any]:
        """All that the features depend on."""
        return {
            **self.said,
            "weights": digest_of_values(self._values()),
            "examples": len(self),
            "views": self.num_views,
            "sampled": digest_of_examples(self.source),
        }

    def _values(self) -> PyTree:
        return self.network.params, self.network.extra

    def _images(self, at_once: int) -> sets.Set:
        return sets.Set(
            self.source,
            self.under.transform,
            self.num_views,
            self.under.augment,
            at_once,
            self.under.seed,
            self.under.options,
        )

    def _encode(self, values: PyTree, batch: Batch) -> dict[str, Array]:
        params, extra = values
        images = self.under.augment(jax.random.key(0), batch)["views"]
        found = self.network.encode(params, extra, images)
        found = {**batch, **found}
        return {name: found[name] for name in ("representation", *KEPT) if name in found}

    def _compute(self, writer: Writer, at_once: int) -> None:
        """Encode what is missing, batch by batch."""
        count, done = len(self), writer.done
        missing = count - done
        values = jax.device_put(self._values(), meshes.replicated(self.mesh))
        encode = jax.jit(self._encode, out_shardings=meshes.replicated(self.mesh))

        def rows(step: int) -> np.ndarray:
            at = order.once(step, at_once, missing)
            return np.where(at == order.PADDING, at, done + at)

        began = told = time.monotonic()
        stop = order.once_steps(at_once, missing)
        waiting: list[Mapping[str, np.ndarray]] = []
        with self._images(at_once).batches(rows, self.mesh, at_once, 0, stop) as batches:
            for step, batch in enumerate(batches, start=1):
                fresh = min(missing, step * at_once)
                placed = meshes.to_global(self.mesh, batch, at_once)
                found = dict(jax.device_get(encode(values, placed)))
                size = fresh - (step - 1) * at_once
                waiting.append({name: np.asarray(a)[:size] for name, a in found.items()})
                if time.monotonic() - told < SECONDS and fresh < missing:
                    continue
                told = time.monotonic()
                if jax.process_index() == 0:
                    chunk = {n: np.concatenate([w[n] for w in waiting]) for n in waiting[0]}
                    writer.add(chunk, count, list(self.class_names))
                    left = log.duration((told - began) / fresh * (missing - fresh))
                    line = f"features {self.folder}: {done + fresh}/{count}  ETA {left}"
                    print(line, file=sys.stderr)  # progress: what a command prints may be parsed
                waiting = []


def sets_of(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
    """What a config says of a set's data, as JSON can hold it."""
    own, shown = config[name], config["val" if "val" in config else name]
    source = own.source.to_dict() if hasattr(own.source, "to_dict") else own.source
    told = {"source": source, "views": list(shown.views), "limit": own.get("eval_examples")}
    return json.loads(json.dumps(told, default=str))


def cached(
    network: Trained, config: ml_collections.ConfigDict, name: str, mesh: Mesh, all_views: bool
) -> sets.Set:
    """A set whose images are stored features; see `sets.make_set`.

    Args:
      all_views: give every stored view, in storage order, whatever the config draws.
    """
    source: Any = Cached(network, config, name, mesh)
    own = config[name]
    num_views = own.num_views
    if all_views or num_views == sets.ALL:
        source, num_views = _InOrder(source), source.num_views
    return sets.Set(
        source=source,
        transform=transforms.stored,
        num_views=num_views,
        augment=augment.nothing,
        batch_size=own.get("batch_size", config.batch_size),
        seed=config.seed,
        options=dict(config.loader),
    )


class _InOrder(AllViews):
    def batch_shapes(self, batch_size: int, num_views: int) -> Batch:
        return self._source.batch_shapes(batch_size, num_views)  # type: ignore[attr-defined]


def find(network: Trained, name: str) -> Features | None:
    """The newest finished features of a set that an evaluation kept beside a run, if any.

    Raises:
      ValueError: they were changed since they were written.
    """
    folders = [f for f in (network.run / FOLDER).glob(f"{name}-*") if f.is_dir()]
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True):
        writer = Writer(folder, None)
        if writer.complete and writer.what_was["weights"] == digest_of_values(
            (network.params, network.extra)
        ):
            return writer.open()
    return None


def digest_of_values(values: PyTree) -> str:
    """A digest of a network's arrays and their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def digest_of_examples(source: Source) -> str:
    """A digest of a data set: of some of its examples, spread over all."""
    rows = np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int))
    records = source.read(rows.tolist(), np.zeros((len(rows), 1), int))
    return _digest([_told(record) for record in records])


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _told(record: Record) -> list[Any]:
    """A record's label, latents and image, in short."""
    images = [hashlib.sha256(_bytes(image)).hexdigest() for image in record["image"]]
    latent = np.asarray(record.get("latent", ())).tolist()
    return [int(record["label"]), latent, images]


def _bytes(image: Any) -> bytes:
    return image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
