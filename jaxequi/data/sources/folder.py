"""A folder of classes, each a folder of images: the ImageFolder layout.

Classes are the sorted names of the folders, images are sorted by path inside a class, and the
suffix decides what an image is, all as in torchvision. EqInv's train, val and testgt are three
such folders. Links are followed, to files and to folders, but no folder is walked twice in a class.
Names that would break a line, or are no UTF-8, become class names as literals: `'a\\nb'`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources._files import read_file, walk
from jaxequi.errors import Refusal
from jaxequi.types import Record

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Folder:
    """Images in class folders; `paths` are relative to the root."""

    num_views = 1

    def __init__(self, root: epath.PathLike, fraction: float = 1.0):
        self.root = epath.Path(root).expanduser()
        try:
            entries = sorted(self.root.iterdir(), key=lambda entry: entry.name)
            folders = [entry.name for entry in entries if entry.is_dir()]
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            why = getattr(error, "strerror", None) or error
            raise DataError(f"cannot list {shown(self.root)}: {why}") from error
        lost = [entry for entry in entries if not entry.exists()]
        if lost:  # a class less would number all that follow anew
            raise DataError(f"{shown(lost[0])} is a link to nowhere; mend or remove it.")
        if not folders:
            raise DataError(
                f"{shown(self.root)} has no folder in it; it must hold one for each class."
            )
        self.class_names: Sequence[str] = tuple(shown(name) for name in folders)
        self.paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(folders):
            paths = [f"{name}/{path}" for path in walk(self.root / name, SUFFIXES)]
            if not paths:
                raise DataError(
                    f"{shown(self.root / name)} holds no image ({', '.join(SUFFIXES)})."
                )
            paths = paths[: int(fraction * len(paths))]
            self.paths += paths
            labels += [label] * len(paths)
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        return f"{len(self)} images under {self.root}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read examples: the encoded image, once for each asked-for view, and its label."""
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
      fraction: keep the first `int(fraction * count)` images of each class.

    Raises:
      ValueError: a folder that cannot be listed, or without classes or images; an image that
        is no file; a folder that links lead to twice.
    """
    if not 0 < fraction <= 1:
        raise Refusal(f"fraction is {fraction}; it must be above 0 and at most 1.")
    return Folder(root, fraction)
