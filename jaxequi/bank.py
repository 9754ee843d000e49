"""Features of every stored view of a set: computed once, kept on disk, read by every evaluation.

A bank is a folder of `.npy` files, objects first, then views:

    representation.npy  f32[n, V, R]       label.npy   i32[n]
    embedding.npy       f32[n, V, E]       latent.npy  f32[n, V, L]
    done.json           how many of the n objects are there

`embedding` is the equivariant part, and only there for methods with a predictor. The files are
mapped into memory, not loaded: a bank may be larger than memory. One that was interrupted goes on
where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxequi.data import loader, order
from jaxequi.train import log
from jaxequi.train import mesh as meshes
from jaxequi.types import Features, PyTree, Record, Source

PICTURES = 512  # encoded at once, about
SECONDS = 10  # between two notes of what is done


class Bank(NamedTuple):
    """Features of n objects in V views each; memory-mapped."""

    representation: np.ndarray  # f32[n, V, R]
    embedding: np.ndarray | None  # f32[n, V, E]
    label: np.ndarray  # i32[n]
    latent: np.ndarray | None  # f32[n, V, L]


class _AllViews:
    """A source whose examples come with all their views, in storage order."""

    def __init__(self, source: Source):
        self.source = source
        self.class_names, self.num_views = source.class_names, source.num_views

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        return self.source.read(rows, np.sort(views, axis=1))


def name(split: str, what: Any) -> str:
    """A folder's name for features that depend on `what` (JSON): `val-3f9a1c02`."""
    told = json.dumps(what, sort_keys=True, default=str).encode()
    return f"{split}-{hashlib.sha256(told).hexdigest()[:8]}"


def compute(
    folder: pathlib.Path,
    source: Source,
    transform: Callable[[Record, np.random.Generator], Record],
    encode: Callable[[PyTree, Mapping[str, Any]], Features],
    values: PyTree,
    mesh: Mesh,
    options: Mapping[str, Any],
) -> Bank:
    """Open a bank, and compute of it what is not there yet.

    Args:
      folder: of the bank.
      source: the set.
      transform: record -> record with `views`, as of the loader.
      encode: (values, global batch) -> features f32[B, V, ...] of its views; is compiled.
      values: the network's; replicated over the mesh.
      mesh: where to compute.
      options: of the loader: threads, buffer.

    Raises:
      ValueError: the folder cannot be written.
    """
    objects, views = len(source), source.num_views
    at_once = mesh.size * max(1, PICTURES // (views * mesh.size))
    done, files = _resume(folder)
    if done == objects:
        return _bank(files)
    values = jax.device_put(values, meshes.replicated(mesh))
    encode = jax.jit(encode, out_shardings=meshes.replicated(mesh))
    first = done // at_once
    batches = loader.batches(
        _AllViews(source),
        transform,
        lambda step: order.once(step, at_once, objects),
        seed=0,
        start=first,
        stop=order.once_steps(at_once, objects),
        num_views=views,
        positions=meshes.local_rows(mesh, at_once),
        **options,
    )
    writer = jax.process_index() == 0
    began = told = time.monotonic()
    with batches:
        for step, batch in enumerate(batches, start=first):
            rows = slice(step * at_once, min(objects, (step + 1) * at_once))
            placed = meshes.to_global(mesh, batch, at_once)
            found = dict(jax.device_get(encode(values, placed)))
            if not writer:
                continue
            if not files:
                files = _create(folder, objects, found)
            for key, array in files.items():
                array[rows] = found[key][: rows.stop - rows.start]
            if time.monotonic() - told > SECONDS or rows.stop == objects:
                told = time.monotonic()
                _note(folder, rows.stop, files)
                left = (told - began) / (rows.stop - done) * (objects - rows.stop)
                line = f"features {folder}: {rows.stop}/{objects}  ETA {log.duration(left)}"
                print(line, file=sys.stderr)  # progress: what a command prints may be parsed
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(str(folder))
    return _bank(_resume(folder)[1])


def open_kept(folder: pathlib.Path, split: str) -> Bank | None:
    """Open a finished bank of a split, the newest below a folder; None if there is none."""
    for found in sorted(folder.glob(f"{split}-*"), key=lambda f: f.stat().st_mtime, reverse=True):
        done, files = _resume(found)
        if files and done == len(files["label"]):
            return _bank(files)
    return None


def _resume(folder: pathlib.Path) -> tuple[int, dict[str, np.ndarray]]:
    """How many objects are done, and the files, open to be written."""
    try:
        done = json.loads((folder / "done.json").read_text())["objects"]
        return done, {
            file.stem: np.lib.format.open_memmap(file, mode="r+") for file in folder.glob("*.npy")
        }
    except FileNotFoundError:
        return 0, {}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"the features in {folder} cannot be read ({error}); remove that folder to compute "
            "them again"
        ) from error


def _create(
    folder: pathlib.Path, objects: int, example: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {
            key: np.lib.format.open_memmap(
                folder / f"{key}.npy", "w+", array.dtype, (objects, *array.shape[1:])
            )
            for key, array in example.items()
        }
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror}; say with features=DIR where the "
            "features may be kept"
        ) from error


def _note(folder: pathlib.Path, done: int, files: Mapping[str, np.ndarray]) -> None:
    """Write down what is done, after it is on disk."""
    for array in files.values():
        array.flush()  # type: ignore[attr-defined]
    part = folder / "done.part"
    part.write_text(json.dumps({"objects": done}))
    part.replace(folder / "done.json")


def _bank(files: Mapping[str, np.ndarray]) -> Bank:
    return Bank(
        files["representation"], files.get("embedding"), files["label"], files.get("latent")
    )
