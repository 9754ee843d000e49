"""Data sets that fit in memory: arrays, or .npz, .npy and IDX files of them."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from typing import BinaryIO, cast

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources import _files
from jaxequi.types import Record

# split -> stems of the files of MNIST and its like
IDX = {"train": "train", "test": "t10k"}


class Arrays:
    """Images u8[N, H, W] or u8[N, H, W, C] with labels i[N]."""

    num_views = 1

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] = ()):
        channels = images.shape[3:] or (1,)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels[0] not in (1, 3, 4):
            raise DataError(
                f"images must be u8[N, H, W] or u8[N, H, W, C] with C of 1, 3 or 4, not "
                f"{images.dtype}{list(images.shape)}."
            )
        if not all(images.shape[1:]):
            raise DataError(f"images of {list(images.shape[1:])} have no pixel.")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DataError(
                f"labels must be i[{len(images)}], as there are so many images, not "
                f"{labels.dtype}{list(labels.shape)}."
            )
        names = tuple(class_names)
        if len(labels) and labels.min() < 0:
            row = int(labels.argmin())
            raise DataError(f"label {labels[row]} of row {row} is negative; classes count from 0.")
        if not names:
            largest = int(labels.max()) if len(labels) else -1
            names = _files.number_names(largest + 1, f"label {largest}")
        wrong = np.flatnonzero(labels >= len(names))
        if len(wrong):
            raise DataError(
                f"label {labels[wrong[0]]} of row {wrong[0]} is not in 0 to {len(names) - 1}."
            )
        self.images, self.labels = images, labels
        self.class_names: Sequence[str] = names

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return f"{len(self)} arrays u8{list(self.images.shape[1:])}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: the image, once for each asked-for view, and its label."""
        return [
            {"image": [self.images[row]] * views.shape[1], "label": int(self.labels[row])}
            for row in rows
        ]


def _read_idx(file: BinaryIO, where: str, limit: int) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:3] != b"\0\0\x08":
        raise DataError(f"{where} is no IDX file of bytes; it starts with {head!r}.")
    lengths = file.read(4 * head[3])
    if len(lengths) < 4 * head[3] or not 0 < head[3] <= 4:
        raise DataError(f"{where} is no IDX file of images or labels; it ends in its header.")
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    size = math.prod(shape)
    _files.check_size(size, limit, where)
    data = _files.fill(file, size, f"{where}, which promises {list(shape)},")
    if file.read(1):
        raise DataError(f"{where} holds more bytes than the {list(shape)} that it promises.")
    return data.reshape(shape)


def load_idx(path: epath.PathLike, limit: int = _files.MAX_ARRAY) -> np.ndarray:
    """Load an IDX file of bytes, u8[...], as MNIST has them, gzipped or not.

    Raises:
      DataError: it cannot be read, is none, or claims more than `limit` or than it holds.
    """
    where = shown(path)
    with _files.open_file(path) as (file, _):
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            return _read_idx(file, where, limit)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_idx(cast(BinaryIO, unpacked), where, limit)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{where}: broken gzip: {error}") from error


def _load_npz(path: epath.Path, split: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    where = shown(path)
    with _files.open_file(path) as (file, _):
        try:
            with zipfile.ZipFile(file) as archive:
                stored = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                for pair in (("images", "labels"), (f"x_{split}", f"y_{split}")):
                    if all(name in stored for name in pair):
                        images, labels = (
                            _member(archive, stored[name], f"{name} in {where}", limit)
                            for name in pair
                        )
                        return images, labels
        except DataError:
            raise
        except Exception as error:  # zipfile raises many types; so do the four decompressors
            raise DataError(f"{where} is no .npz of plain arrays: {shown(error)}") from error
    raise DataError(
        f"{where} has {shown(sorted(stored))}, not images and labels, or x_{split} and y_{split}."
    )


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, limit: int) -> np.ndarray:
    if info.flag_bits & 1:
        raise DataError(f"{where} is encrypted; save it without a password.")
    with archive.open(info) as member:
        array = _files.read_npy(cast(BinaryIO, member), info.file_size, where, limit)
        member.read(1)  # past the end: now the checksum is compared
    return array


def _beside(folder: epath.Path, *names: str) -> epath.Path:
    """Return the first of the names that exists in a folder."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"{shown(folder)} holds none of {', '.join(names)}.")


def make(
    path: str, split: str = "train", class_names: Sequence[str] = (), max_gigabytes: float = 4
) -> Arrays:
    """Load a data set into memory.

    Args:
      path: a .npz file with `images` and `labels` (or `x_train`, `y_train`, ...), or a folder with
        `<split>_images.npy` and `<split>_labels.npy`, or with MNIST's four IDX files.
      split: "train" or "test".
      class_names: names in the order of the labels; their numbers by default, up to a million.
      max_gigabytes: 2**30 bytes that an array may take; one that claims more is not read.

    Raises:
      ValueError: files that are missing, broken, pickled, encrypted or too large, or arrays that
        do not fit together.
    """
    limit = int(max_gigabytes * (1 << 30))
    place = epath.Path(path).expanduser()
    if place.suffix == ".npz":
        images, labels = _load_npz(place, split, limit)
    elif (place / f"{split}_images.npy").exists():
        images = _files.load_array(place / f"{split}_images.npy", limit)
        labels = _files.load_array(_beside(place, f"{split}_labels.npy"), limit)
    else:
        stem = IDX.get(split, split)
        images, labels = (
            load_idx(_beside(place, f"{stem}-{kind}-ubyte", f"{stem}-{kind}-ubyte.gz"), limit)
            for kind in ("images-idx3", "labels-idx1")
        )
    return Arrays(images, labels, class_names)
