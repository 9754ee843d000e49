"""3DIEBench on disk: `<root>/<synset>/<object>/image_<v>.jpg` and `latent_<v>.npy`, v = 0 to 49.

The published lists `{train,val}_images.npy` (strings `/<synset>/<object>/`) and
`{train,val}_labels.npy` say which objects form a split. They are read where they lie in `<root>`,
or where they are named. Where there are none, lists are made from the folder, unless `published`
forbids it: labels by the rank of the synset, and a fifth of the objects, drawn with a fixed seed,
for validation. Such a split is another one: an imported checkpoint has trained on most of its
validation objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources._files import load_array, number_names, read_file, texts
from jaxequi.errors import Refusal
from jaxequi.types import Record

LATENTS = 7
VALIDATION_SHARE = 0.2


def list_objects(root: epath.Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """Make the lists of a split from the folder: objects, labels, and the synsets.

    A fifth of all objects, by a fixed shuffle of their sorted names, is "val".
    """
    try:
        synsets = sorted(d.name for d in root.iterdir() if d.is_dir())
        names = [(s, o.name) for s in synsets for o in (root / s).iterdir() if o.is_dir()]
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        why = getattr(error, "strerror", None) or error
        raise DataError(f"cannot list {shown(root)}: {why}") from error
    if not names:
        raise DataError(f"{shown(root)} holds no <synset>/<object> folder.")
    names.sort()
    order = np.random.default_rng(0).permutation(len(names))
    held_out = round(VALIDATION_SHARE * len(names))
    mine = order[:held_out] if split == "val" else order[held_out:]
    rank = {synset: label for label, synset in enumerate(synsets)}
    labels = np.asarray([rank[names[i][0]] for i in mine], np.int64)
    return ["/".join(names[i]) for i in mine], labels, synsets


def _has_lists(root: epath.Path) -> bool:
    """Whether any published list lies there: one that lacks its fellows is a fault, no choice."""
    files = (f"{split}_{what}.npy" for split in ("train", "val") for what in ("images", "labels"))
    try:
        return any((root / file).exists() for file in files)
    except OSError as error:
        raise DataError(f"cannot look into {root}: {error.strerror or error}") from error


class ThreeDIE:
    """Objects of 3DIEBench, `num_views` images of each with seven latents an image."""

    def __init__(
        self,
        root: epath.PathLike,
        objects: Sequence[str],
        labels: np.ndarray,
        class_names: Sequence[str],
        num_views: int = 50,
    ):
        self.root = epath.Path(root).expanduser()
        self.objects = [name.strip("/") for name in objects]
        self.labels = np.asarray(labels)
        self.class_names: Sequence[str] = tuple(map(shown, class_names))
        self.num_views = num_views
        if num_views < 1:
            raise DataError(f"num_views is {num_views}; each object has one image or more.")
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu":
            raise DataError(
                f"labels must be whole numbers i[N], not {self.labels.dtype}"
                f"{list(self.labels.shape)}."
            )
        if len(self.objects) != len(self.labels):
            raise DataError(f"{len(self.objects)} objects, but {len(self.labels)} labels.")
        outside = [n for n in self.objects if ".." in n.split("/") or "\0" in n]
        if outside:
            raise DataError(f"the object {outside[0]!r} points out of {self.root}.")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if len(wrong):
            raise DataError(
                f"label {self.labels[wrong[0]]} of object {wrong[0]} "
                f"({shown(self.objects[wrong[0]])}) is not in 0 to {len(self.class_names) - 1}."
            )

    def __len__(self) -> int:
        return len(self.objects)

    def __str__(self) -> str:
        return f"{len(self)} objects under {self.root}"

    def read(self, rows: Sequence[int], views: np.ndarray) -> list[Record]:
        """Read objects: of each the encoded images `views` and their latents f32[V, 7]."""
        return [self._read(int(row), mine) for row, mine in zip(rows, views)]

    def _read(self, row: int, views: np.ndarray) -> Record:
        folder = self.root / self.objects[row]
        where = shown(folder)
        latent = np.empty((len(views), LATENTS), np.float32)
        images = []
        for place, view in enumerate(views):
            stored = load_array(folder / f"latent_{view}.npy")
            if stored.shape != (LATENTS,) or stored.dtype.kind not in "fiu":
                raise DataError(
                    f"{where}/latent_{view}.npy has shape {stored.shape}, not ({LATENTS},), or is "
                    f"no numbers but {stored.dtype}."
                )
            if not np.isfinite(stored).all():
                raise DataError(f"{where}/latent_{view}.npy holds a number that is not finite.")
            latent[place] = stored
            images.append(read_file(folder / f"image_{view}.jpg"))
        return {"image": images, "label": int(self.labels[row]), "latent": latent}


def make(
    root: str,
    split: str = "train",
    images_file: str = "",
    labels_file: str = "",
    limit: int = 0,
    num_views: int = 50,
    published: bool = False,
) -> ThreeDIE:
    """Open 3DIEBench.

    Args:
      root: the folder of synsets.
      split: "train" or "val".
      images_file: list of the split's objects, an .npy of strings; by default
        `<root>/<split>_images.npy` if that is there, else made from the folder.
      labels_file: its labels; by default `<root>/<split>_labels.npy`.
      limit: keep the first so many objects; 0 keeps all.
      num_views: images of each object.
      published: refuse to make lists from the folder.

    Raises:
      ValueError: a folder or list that cannot be read, lists of unequal length, a list that
        names a missing object, a label out of range, no lists where they are `published`.
    """
    if split not in ("train", "val"):
        raise Refusal(f"split is {split!r}; 3DIEBench has train and val.")
    if limit < 0:
        raise Refusal(f"limit is {limit}; it is a number of objects, and 0 keeps all.")
    if bool(images_file) != bool(labels_file):
        raise Refusal("give both images_file and labels_file, or neither.")
    base = epath.Path(root).expanduser()
    if not images_file and _has_lists(base):
        images_file, labels_file = (f"{base}/{split}_{what}.npy" for what in ("images", "labels"))
    if published and not images_file:
        raise DataError(
            f"the published split of 3DIEBench is asked for, but {base} holds no "
            f"{split}_images.npy and {split}_labels.npy. Put the four lists of its authors there, "
            "name them (--config.train.source.images_file=..., labels_file, and the same of val), "
            "or allow another split, a fifth of all objects for validation, by published=False."
        )
    if images_file:
        listed, labels = load_array(images_file), load_array(labels_file)
        if not listed.size:
            raise DataError(f"{shown(images_file)} names no object.")
        objects = texts(listed, shown(images_file))
        if labels.dtype.kind not in "iu":
            raise DataError(f"{labels_file} holds {labels.dtype}, not whole numbers.")
        synsets = sorted({name.strip("/").split("/")[0] for name in objects})
        count = max(len(synsets), int(labels.max()) + 1 if len(labels) else 0)
        names = synsets if len(synsets) == count else list(number_names(count, labels_file))
    else:
        objects, labels, names = list_objects(base, split)
    source = ThreeDIE(base, objects, labels, names, num_views)
    if limit:
        source = ThreeDIE(base, objects[:limit], labels[:limit], names, num_views)
    if not len(source):
        raise DataError(f"{images_file or f'the {split} split of {base}'} names no object.")
    for name in (source.objects[0], source.objects[-1]):
        if not (base / name).is_dir():
            where = shown(images_file or base)
            raise DataError(f"the list {where} names {name!r}, which is not in {base}.")
    return source
