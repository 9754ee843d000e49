"""Data sets that fit in memory: arrays, or .npz, .npy and IDX files of them."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError
from jaxequi.data.sources._files import load_array, read_file
from jaxequi.types import Record

# split -> stems of the files of MNIST and its like
IDX = {"train": "train", "test": "t10k"}


class Arrays:
    """Pictures u8[N, H, W] or u8[N, H, W, C] with labels i[N]."""

    num_views = 1

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] = ()):
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise DataError(f"pictures must be u8[N, H, W(, C)], not {images.dtype}{images.shape}.")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DataError(
                f"labels must be i[{len(images)}], as there are so many pictures, not "
                f"{labels.dtype}{labels.shape}."
            )
        count = len(class_names) or (int(labels.max()) + 1 if len(labels) else 0)
        wrong = np.flatnonzero((labels < 0) | (labels >= count))
        if len(wrong):
            raise DataError(
                f"label {labels[wrong[0]]} of row {wrong[0]} is not in 0 to {count - 1}."
            )
        self.images, self.labels = images, labels
        self.class_names: Sequence[str] = tuple(class_names) or tuple(
            str(label) for label in range(count)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return f"{len(self)} arrays u8{list(self.images.shape[1:])}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: the picture, once for each asked-for view, and its label."""
        return [
            {"image": [self.images[row]] * views.shape[1], "label": int(self.labels[row])}
            for row in rows
        ]


def load_idx(path: epath.PathLike) -> np.ndarray:
    """Load an IDX file of bytes, u8[...], as MNIST has them, gzipped or not."""
    data = read_file(path)
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: broken gzip: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{path} is no IDX file of bytes; it starts with {data[:4]!r}.")
    shape = tuple(np.frombuffer(data, ">i4", data[3], 4).tolist())
    start = 4 + 4 * len(shape)
    if len(data) - start != np.prod(shape):
        raise DataError(f"{path} holds {len(data) - start} bytes, not the {shape} it promises.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _load_npz(path: epath.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as stored:
            for images, labels in (("images", "labels"), (f"x_{split}", f"y_{split}")):
                if images in stored and labels in stored:
                    return stored[images], stored[labels]
            names = sorted(stored.files)
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no .npz of plain arrays: {error}") from error
    raise DataError(f"{path} has {names}, not images and labels, or x_{split} and y_{split}.")


def _beside(folder: epath.Path, *names: str) -> epath.Path:
    """Return the first of the names that exists in a folder."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"{folder} holds none of {', '.join(names)}.")


def make(path: str, split: str = "train", class_names: Sequence[str] = ()) -> Arrays:
    """Load a data set into memory.

    Args:
      path: a .npz file with `images` and `labels` (or `x_train`, `y_train`, ...), or a folder with
        `<split>_images.npy` and `<split>_labels.npy`, or with MNIST's four IDX files.
      split: "train" or "test".
      class_names: names in the order of the labels; their numbers by default.

    Raises:
      ValueError: files that are missing, broken or pickled, or arrays that do not fit together.
    """
    place = epath.Path(path).expanduser()
    if place.suffix == ".npz":
        images, labels = _load_npz(place, split)
    elif (place / f"{split}_images.npy").exists():
        images = load_array(place / f"{split}_images.npy")
        labels = load_array(_beside(place, f"{split}_labels.npy"))
    else:
        stem = IDX.get(split, split)
        images = load_idx(
            _beside(place, f"{stem}-images-idx3-ubyte", f"{stem}-images-idx3-ubyte.gz")
        )
        labels = load_idx(
            _beside(place, f"{stem}-labels-idx1-ubyte", f"{stem}-labels-idx1-ubyte.gz")
        )
    return Arrays(images, labels, class_names)
