"""ImageNet and its like as TFRecords, with random access and without TensorFlow.

Both layouts are read: `image/encoded` with `image/class/label` counted from 1, and TFDS's `image`
with `label`. A pass over the headers makes an index of (file, offset, length), which is kept in
one file beside the data (or in the cache directory where that is read-only) and mapped into
memory, so that a large data set costs no more memory than a small one.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import threading
from collections.abc import Sequence

import numpy as np
from absl import logging
from etils import epath

from jaxequi.data import example, tfrecord_file
from jaxequi.data.errors import DataError
from jaxequi.types import Record

# layout -> (picture, label, number of the first class)
LAYOUTS = {
    "imagenet": ("image/encoded", "image/class/label", 1),
    "tfds": ("image", "label", 0),
}
INDEX_NAME = ".jaxequi_index"


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


def load_index(files: Sequence[epath.Path]) -> np.ndarray:
    """Return the index of files, mapped from its cache, or built and cached."""
    name = f"{INDEX_NAME}_{_fingerprint(files)}.npy"
    homes = [h for h in (files[0].parent, cache_directory()) if "://" not in os.fspath(h)]
    for home in homes:
        if (home / name).exists():
            return np.load(home / name, mmap_mode="r", allow_pickle=False)
    index = build_index(files)
    for home in homes:
        partial = home / f"{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            home.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, index)
            partial.rename(home / name)
        except OSError as error:
            logging.info("no index in %s: %s", home, error)
            continue
        return np.load(home / name, mmap_mode="r", allow_pickle=False)
    return index


class TFRecords:
    """Examples of TFRecord files, in the order of the files and of the records in them."""

    num_views = 1

    def __init__(self, files: Sequence[epath.PathLike], layout: str, class_names: Sequence[str]):
        self._files = [epath.Path(file) for file in files]
        self._index = load_index(self._files)
        if not len(self._index):
            raise DataError(f"the {len(files)} files from {files[0]} on hold no record.")
        self._checked = np.zeros(len(self._index), bool)
        self._keys = LAYOUTS[layout if layout != "auto" else self._guess()]
        self.class_names: Sequence[str] = tuple(class_names)

    def _payload(self, row: int) -> bytes:
        file, offset, length = (int(x) for x in self._index[row])
        try:
            with self._files[file].open("rb") as handle:
                data = tfrecord_file.read(handle, offset, length, not self._checked[row])
        except (OSError, DataError) as error:
            raise DataError(f"{self._files[file]}, record {row}: {error}") from error
        self._checked[row] = True  # a record that was whole once is not checked again
        return data

    def _guess(self) -> str:
        found = example.parse(self._payload(0))
        for layout, (image, label, _) in LAYOUTS.items():
            if image in found and label in found:
                return layout
        wanted = " or ".join(f"({image}, {label})" for image, label, _ in LAYOUTS.values())
        raise DataError(f"{self._files[0]}: a record has {sorted(found)}, not {wanted}.")

    def __len__(self) -> int:
        return len(self._index)

    def __str__(self) -> str:
        return f"{len(self)} records in {len(self._files)} files from {self._files[0]} on"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: the encoded picture, once for each asked-for view, and its label."""
        return [self._read(int(row), views.shape[1]) for row in rows]

    def _read(self, row: int, copies: int) -> Record:
        image_key, label_key, first = self._keys
        features = example.parse(self._payload(row), (image_key, label_key))
        images, labels = features.get(image_key, []), features.get(label_key, [])
        where = f"{self._files[int(self._index[row, 0])]}, record {row}"
        if len(images) != 1 or len(labels) != 1:
            raise DataError(
                f"{where}: {len(images)} values of {image_key} and {len(labels)} of {label_key}, "
                "not one of each."
            )
        label = int(labels[0]) - first
        if not 0 <= label < len(self.class_names):
            raise DataError(
                f"{where}: label {label + first} is not in {first} to "
                f"{first + len(self.class_names) - 1}."
            )
        return {"image": [images[0]] * copies, "label": label}


def find(pattern: str) -> list[epath.Path]:
    """Return the files that a pattern or a directory names, sorted; complete if they are shards.

    Raises:
      DataError: there is none, or a shard `...-00003-of-01024` is missing.
    """
    path = epath.Path(pattern).expanduser()
    if path.is_dir():
        files = [f for f in path.iterdir() if not f.name.startswith(".") and f.is_file()]
        files = [f for f in files if f.suffix not in (".json", ".txt", ".npy", ".idx")]
    else:
        files = list(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not files:
        raise DataError(f"no TFRecord file is at {pattern!r}.")
    files = sorted(files, key=lambda file: file.name)
    counts = {f.name.rpartition("-of-")[2].split(".")[0] for f in files if "-of-" in f.name}
    for count in (c for c in counts if c.isdigit()):
        have = {f.name.partition("-of-")[0][-5:] for f in files if f"-of-{count}" in f.name}
        lost = [i for i in range(int(count)) if f"{i:05d}" not in have]
        if lost:
            raise DataError(
                f"{files[0].parent}: {len(lost)} of {count} shards are missing, first number "
                f"{lost[0]} (...-{lost[0]:05d}-of-{count})."
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
        raise ValueError(f"layout is {layout!r}; there is auto, {', '.join(LAYOUTS)}.")
    if isinstance(class_names, str):
        class_names = epath.Path(class_names).expanduser().read_text().split("\n")
        class_names = [name for name in class_names if name]
    if not class_names and not classes:
        raise ValueError(f"how many classes have the TFRecords {files}? Give classes=1000.")
    names = class_names or [str(label) for label in range(classes or 0)]
    return TFRecords(find(files), layout, names)
