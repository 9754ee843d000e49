"""A folder of classes, each a folder of pictures: the ImageFolder layout.

Classes are the sorted names of the folders, pictures are sorted by path inside a class, and the
suffix decides what a picture is, all as in torchvision. EqInv's train, val and testgt are three
such folders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError
from jaxequi.data.sources._files import read_file
from jaxequi.types import Record

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def _list(root: epath.Path, name: str) -> list[str]:
    """Return the pictures of a class, relative to the root, sorted."""
    found = []

    def fail(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}")

    for directory, inner, files in os.walk(root / name, onerror=fail, followlinks=True):
        inner.sort()
        found += [
            os.path.join(os.path.relpath(directory, root), file)
            for file in sorted(files)
            if file.lower().endswith(SUFFIXES)
        ]
    return found


class Folder:
    """Pictures in class folders; `paths` are relative to the root."""

    num_views = 1

    def __init__(self, root: epath.PathLike, fraction: float = 1.0):
        self.root = epath.Path(root).expanduser()
        try:
            self.class_names: Sequence[str] = tuple(
                sorted(d.name for d in self.root.iterdir() if d.is_dir())
            )
        except OSError as error:
            raise DataError(f"cannot list {self.root}: {error.strerror or error}") from error
        if not self.class_names:
            raise DataError(f"{self.root} has no folder in it; it must hold one for each class.")
        self.paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            paths = _list(self.root, name)
            if not paths:
                raise DataError(f"{self.root / name} holds no picture ({', '.join(SUFFIXES)}).")
            paths = paths[: int(fraction * len(paths))]
            self.paths += paths
            labels += [label] * len(paths)
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        return f"{len(self)} pictures under {self.root}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: the encoded picture, once for each asked-for view, and its label."""
        return [
            {
                "image": [read_file(self.root / self.paths[row])] * views.shape[1],
                "label": int(self.labels[row]),
            }
            for row in rows
        ]


def make(root: str, fraction: float = 1.0) -> Folder:
    """Open a folder of class folders.

    Args:
      root: the folder, such as `data/imagenet_10/train`.
      fraction: keep the first `int(fraction * count)` pictures of each class.

    Raises:
      ValueError: a folder that cannot be listed, or without classes or pictures.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be above 0 and at most 1.")
    return Folder(root, fraction)
