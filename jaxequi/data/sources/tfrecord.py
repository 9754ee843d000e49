"""ImageNet and its like as TFRecords, with random access and without TensorFlow.

Both layouts are read: `image/encoded` with `image/class/label` counted from 1, and TFDS's `image`
with `label`. A pass over the headers makes an index of (file, offset, length), which is kept in
one file beside the data (or in the cache directory where that is read-only) and mapped into
memory, so that a large data set costs no more memory than a small one.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from absl import logging
from etils import epath

from jaxequi.data import example, tfrecord_file
from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources._files import is_regular, number_names, read_text
from jaxequi.errors import Refusal
from jaxequi.types import Record

# layout -> (image, label, number of the first class)
LAYOUTS = {
    "imagenet": ("image/encoded", "image/class/label", 1),
    "tfds": ("image", "label", 0),
}
INDEX_NAME = ".jaxequi_index"
AT_ONCE = 4096  # rows of an index that are compared with the files


def cache_directory() -> epath.Path:
    """Return where indices go that cannot lie beside their data: `$JAXEQUI_CACHE` or ~/.cache."""
    return epath.Path(os.environ.get("JAXEQUI_CACHE", "~/.cache/jaxequi")).expanduser()


def _fingerprint(files: Sequence[epath.Path]) -> str:
    """Name the state of the files: an index of other files, or of changed ones, is not used."""
    stats = [(os.fspath(f), s.length, s.mtime) for f, s in ((f, f.stat()) for f in files)]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:20]


def build_index(files: Sequence[epath.Path], threads: int = 16) -> np.ndarray:
    """Scan files in parallel; return (file, offset, length) of every record, i64[n, 3]."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        places = list(pool.map(tfrecord_file.scan, files))
    number = np.repeat(np.arange(len(files)), [len(p) for p in places])
    return np.concatenate([number[:, None], np.concatenate(places)], axis=1)


def _fits(index: np.ndarray, files: Sequence[epath.Path]) -> bool:
    """Whether an index tiles the files with records, and the outermost ones of each are there."""
    if index.ndim != 2 or index.shape[1] != 3 or index.dtype != np.int64:
        return False
    at = 0
    for number, file in enumerate(files):
        size, end = file.stat().length, 0
        with file.open("rb") as opened:
            while at < len(index) and end < size:
                part = index[at : at + AT_ONCE]  # a copy of them all would cost memory
                mine = part[:, 0] == number
                part = part if mine.all() else part[: mine.argmin()]
                if not len(part) or not _tiles(part[:, 1], part[:, 2], end, opened):
                    return False
                at, end = at + len(part), int(part[-1, 1:].sum()) + tfrecord_file.FOOTER.size
        if end != size:
            return False
    return at == len(index)


def _tiles(offset: np.ndarray, length: np.ndarray, start: int, file: BinaryIO) -> bool:
    """Whether records follow on each other from byte `start` on, with headers at both ends."""
    heads = offset - tfrecord_file.HEADER.size
    tails = offset + length + tfrecord_file.FOOTER.size
    if heads[0] != start or (length < 0).any() or (heads[1:] != tails[:-1]).any():
        return False
    return all(tfrecord_file.is_header(file, int(offset[row]), int(length[row])) for row in (0, -1))


def _cached(path: epath.Path, files: Sequence[epath.Path]) -> np.ndarray | None:
    """Map a cached index into memory; None if there is none, or not of these files."""
    try:
        if not is_regular(path):
            return None
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many types on broken headers
        logging.warning("the index %s is damaged and is made again: %s", path, error)
        return None
    if isinstance(index, np.ndarray) and _fits(index, files):
        return index
    logging.warning("the index %s is not of these files and is made again", path)
    return None


def load_index(files: Sequence[epath.Path]) -> np.ndarray:
    """Return the index of files, mapped from its cache, or built and cached.

    A cached one is compared with the files: it must tile each to its last byte, and the first and
    the last header of each must be where it says; the others are compared when they are read.
    """
    name = f"{INDEX_NAME}_{_fingerprint(files)}.npy"
    homes = [h for h in (files[0].parent, cache_directory()) if "://" not in os.fspath(h)]
    for home in homes:
        index = _cached(home / name, files)
        if index is not None:
            return index
    index = build_index(files)
    for home in homes:
        partial = home / f"{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            home.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, index)
            partial.replace(home / name)
        except OSError as error:
            logging.info("no index in %s: %s", home, error)
            partial.unlink(missing_ok=True)
            continue
        return np.load(home / name, mmap_mode="r", allow_pickle=False)
    return index


class TFRecords:
    """Examples of TFRecord files, in the order of the files and of the records in them."""

    num_views = 1

    def __init__(self, files: Sequence[epath.PathLike], layout: str, class_names: Sequence[str]):
        self._files = [epath.Path(file) for file in files]
        try:
            self._index = load_index(self._files)
        except OSError as error:
            raise DataError(f"cannot read {files[0]} and those beside it: {error}") from error
        if not len(self._index):
            raise DataError(f"the {len(files)} files from {files[0]} on hold no record.")
        self._checked = np.zeros(len(self._index), bool)
        self._keys = LAYOUTS[layout if layout != "auto" else self._guess()]
        self.class_names: Sequence[str] = tuple(class_names)

    def _features(self, row: int, *wanted: str) -> dict[str, example.Value]:
        file, offset, length = (int(x) for x in self._index[row])
        with self._files[file].open("rb") as handle:
            data = tfrecord_file.read(handle, offset, length, not self._checked[row])
        self._checked[row] = True  # a record that was whole once is not checked again
        return example.parse(data, wanted)

    def _guess(self) -> str:
        try:
            found = self._features(0)
        except (OSError, DataError) as error:
            raise DataError(f"{shown(self._files[0])}, record 0: {error}") from error
        for layout, (image, label, _) in LAYOUTS.items():
            if image in found and label in found:
                return layout
        wanted = " or ".join(f"({image}, {label})" for image, label, _ in LAYOUTS.values())
        has = shown(sorted(found))
        raise DataError(f"{shown(self._files[0])}: a record has {has}, not {wanted}.")

    def __len__(self) -> int:
        return len(self._index)

    def __str__(self) -> str:
        return f"{len(self)} records in {len(self._files)} files from {self._files[0]} on"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: the encoded image, once for each asked-for view, and its label."""
        return [self._read(int(row), views.shape[1]) for row in rows]

    def _read(self, row: int, copies: int) -> Record:
        image_key, label_key, first = self._keys
        try:
            features = self._features(row, image_key, label_key)
            image = example.image(features, image_key)
            label = example.integer(features, label_key) - first
            if not 0 <= label < len(self.class_names):
                raise DataError(
                    f"label {label + first} is not in {first} to "
                    f"{first + len(self.class_names) - 1}."
                )
        except (OSError, DataError) as error:
            where = f"{shown(self._files[int(self._index[row, 0])])}, record {row}"
            raise DataError(f"{where}: {error}") from error
        return {"image": [image] * copies, "label": label}


def find(pattern: str) -> list[epath.Path]:
    """Return the files that a pattern or a directory names, sorted; complete if they are shards.

    Raises:
      DataError: there is none, one is no regular file, or a shard `...-00003-of-01024` is missing.
    """
    path = epath.Path(pattern).expanduser()
    try:
        if path.is_dir():
            files = [f for f in path.iterdir() if not f.name.startswith(".") and not f.is_dir()]
            files = [f for f in files if f.suffix not in (".json", ".txt", ".npy", ".idx")]
        else:
            files = list(path.parent.glob(path.name)) if path.parent.is_dir() else []
    except (OSError, ValueError) as error:  # ValueError: a pattern that is none
        raise DataError(f"cannot list {pattern!r}: {error}") from error
    if not files:
        raise DataError(f"no TFRecord file is at {pattern!r}.")
    files = sorted(files, key=lambda file: file.name)
    for file in files:
        if not is_regular(file):
            raise DataError(f"{shown(file)} is no regular file; narrow the pattern {pattern!r}.")
    counts = {f.name.rpartition("-of-")[2].split(".")[0] for f in files if "-of-" in f.name}
    for count in (c for c in counts if c.isdecimal() and c.isascii()):
        names = (f.name.partition("-of-")[0][-5:] for f in files if f"-of-{count}" in f.name)
        have = {name for name in names if name.isdecimal() and int(name) < int(count)}
        missing = int(count) - len(have)
        if missing > 0:
            first = next(i for i in itertools.count() if f"{i:05d}" not in have)
            raise DataError(
                f"{shown(files[0].parent)}: {missing} of {count} shards are missing, first number "
                f"{first} (...-{first:05d}-of-{count})."
            )
    return files


def make(
    files: str,
    classes: int | None = None,
    class_names: str | Sequence[str] = (),
    layout: str = "auto",
) -> TFRecords:
    """Open TFRecord files.

    Args:
      files: a directory, or a pattern such as `/data/imagenet/train-*-of-01024`.
      classes: number of classes, if they have no names.
      class_names: names in the order of the labels, or a text file with one a line.
      layout: "imagenet", "tfds", or "auto", by the features of the first record.

    Raises:
      ValueError: no file, a missing shard, a broken header, an unknown layout, or no classes.
    """
    if layout not in ("auto", *LAYOUTS):
        raise Refusal(f"layout is {layout!r}; there is auto, {', '.join(LAYOUTS)}.")
    if isinstance(class_names, str):
        text = read_text(epath.Path(class_names).expanduser()) if class_names else ""
        class_names = [shown(name) for name in text.splitlines() if name]
    if not class_names and not classes:
        raise Refusal(f"how many classes have the TFRecords {files}? Give classes=1000.")
    names = class_names or number_names(classes or 0, f"classes={classes}")
    return TFRecords(find(files), layout, names)
