"""Features of a set, computed once and kept on disk: read like any other source.

A folder holds `.npy` files, examples first, then the stored views, and `features.json`, which says
what they are of and how much of them is there:

    representation.npy  f32[n, V, R]     label.npy   i32[n]
    predictable.npy     f32[n, V, E]     latent.npy  f32[n, V, L]      where there are such

The files are mapped into memory, not loaded: they may be larger than it. They are written in
chunks, each with its checksum: a folder that was interrupted goes on where it stopped, and one of
which a byte was changed, cut off or swapped is not read.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxequi.data.errors import shown
from jaxequi.data.sources._files import is_regular, read_file
from jaxequi.errors import Refusal
from jaxequi.types import Record

STATE = "features.json"
IMAGE = "representation"  # what stands in the place of the image
OF_EXAMPLE = ("label",)  # arrays [n], not [n, V, ...]


class Features:
    """Examples whose images are stored features."""

    def __init__(self, folder: pathlib.Path, arrays: Mapping[str, np.ndarray], names: list[str]):
        self.folder, self.arrays, self.class_names = folder, dict(arrays), names
        self.num_views = arrays[IMAGE].shape[1]

    def __len__(self) -> int:
        return len(self.arrays[IMAGE])

    def __str__(self) -> str:
        return f"features({self.folder})"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples; `image` is a list of f32[R]."""
        at = np.asarray(rows)
        found = {
            name: array[at] if name in OF_EXAMPLE else array[at[:, None], views]
            for name, array in self.arrays.items()
        }
        return [
            {
                "image": list(found[IMAGE][i]),
                **{name: values[i] for name, values in found.items() if name != IMAGE},
            }
            for i in range(len(at))
        ]


def make(folder: str) -> Features:
    """Open a folder of features.

    Raises:
      ValueError: it is not there, is not complete, or was changed since it was written.
    """
    path = pathlib.Path(folder)
    writer = Writer(path, None)
    if not writer.complete:
        raise Refusal(
            f"{path} holds no finished features: {writer.done} of {writer.total or 'unknown'} "
            "examples; run again what was computing them"
        )
    return writer.open()


class Writer:
    """A folder of features in the making.

    Attributes:
      done: how many examples are written, checksums and all.
      total: how many there will be; None before the first chunk.
      what_was: that the features of the folder are of.
    """

    def __init__(self, folder: pathlib.Path, what: Mapping[str, Any] | None):
        """Take up a folder, or begin one.

        Args:
          what: that the features are of, as JSON; a folder of something else, or one that was
            changed, is emptied. None only reads, and refuses those.

        Raises:
          ValueError: with `what` None, a folder that cannot be trusted.
        """
        self.folder, self.what = folder, json.loads(json.dumps(what))
        self.what_was: dict[str, Any] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.chunks: list[dict[str, Any]] = []
        self.total: int | None = None
        self.class_names: list[str] = []
        problem = self._take_up()
        if problem and what is None:
            raise Refusal(f"the features in {folder} cannot be used: {problem}")
        if problem:
            self.arrays, self.chunks, self.total = {}, [], None
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def done(self) -> int:
        """Examples written."""
        return self.chunks[-1]["stop"] if self.chunks else 0

    @property
    def complete(self) -> bool:
        """Whether all are."""
        return self.total is not None and self.done == self.total

    def open(self) -> Features:
        """The features, once they are complete."""
        assert self.complete
        return Features(self.folder, self.arrays, self.class_names)

    def add(self, values: Mapping[str, np.ndarray], total: int, class_names: Sequence[str]) -> None:
        """Write the next examples: of every array the same number of rows.

        Raises:
          ValueError: the folder cannot be written.
        """
        try:
            if not self.arrays:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.total, self.class_names = total, list(class_names)
                self.arrays = {
                    name: np.lib.format.open_memmap(
                        self.folder / f"{name}.npy", "w+", array.dtype, (total, *array.shape[1:])
                    )
                    for name, array in values.items()
                }
                self._reserve()
            start, stop = self.done, self.done + len(next(iter(values.values())))
            for name, array in self.arrays.items():
                array[start:stop] = values[name]
                array.flush()  # type: ignore[attr-defined]
            sums = {name: _checksum(array[start:stop]) for name, array in self.arrays.items()}
            self.chunks.append({"stop": stop, "crc32": sums})
            part = self.folder / f"{STATE}.part"
            part.write_text(
                json.dumps(
                    {
                        "what": self.what,
                        "examples": self.total,
                        "class_names": self.class_names,
                        "chunks": self.chunks,
                    }
                )
            )
            part.replace(self.folder / STATE)
        except OSError as error:
            needed = sum(array.nbytes for array in self.arrays.values())
            if not self.chunks:  # half a file would hold the room that it lacked
                self.arrays = {}
                shutil.rmtree(self.folder, ignore_errors=True)
            raise Refusal(
                f"the features cannot be written to {self.folder}: {error.strerror}; they are "
                f"{needed} bytes. Make room, or say with --config.cache.folder=DIR where there is"
            ) from error

    def _reserve(self) -> None:
        """Take the room of all features now: a mapped file that grows on a full disk is a crash."""
        for name in self.arrays:
            with (self.folder / f"{name}.npy").open("r+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))

    def _take_up(self) -> str:
        """Open what is there; say what is wrong with it."""
        if not (self.folder / STATE).exists():
            return f"there is no {STATE}"
        try:
            state = json.loads(read_file(self.folder / STATE))
            self.what_was = dict(state["what"])
            if self.what is not None and self.what_was != self.what:
                return "they are of something else"
            self.total, self.class_names = state["examples"], state["class_names"]
            names = list(state["chunks"][0]["crc32"])
            files = {name: self.folder / f"{name}.npy" for name in names}
            if not {IMAGE, *OF_EXAMPLE} <= set(names) or any("/" in name for name in names):
                return f"it names {shown(names)}, not {IMAGE} and {', '.join(OF_EXAMPLE)}"
            if not all(is_regular(file) for file in files.values()):
                return "a file is missing, or is none"
            self.arrays = {
                name: np.lib.format.open_memmap(file, mode="r+") for name, file in files.items()
            }
            if any(array.ndim < 2 for name, array in self.arrays.items() if name not in OF_EXAMPLE):
                return "a file has no axis of views"
            if any(len(array) != self.total for array in self.arrays.values()):
                return "a file has another number of examples"
            start = 0
            for chunk in state["chunks"]:
                for name, array in self.arrays.items():
                    if _checksum(array[start : chunk["stop"]]) != chunk["crc32"][name]:
                        return f"{name}.npy is not what was written"
                start = chunk["stop"]
            self.chunks = state["chunks"]
            if any(name != shown(name) for name in self.class_names):
                return "a class name is no printable text"
        except Exception as error:  # of a damaged state, or of numpy's headers: many types
            return f"{type(error).__name__}: {shown(error)}"
        return ""


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
