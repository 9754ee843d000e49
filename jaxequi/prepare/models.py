"""The objects that 3DIEBench images can be made of: ShapeNet, a folder of meshes, or embedded.

A model is called `<class>/<object>`, which is also where its images go:

    <root>/<class>/<object>/models/model_normalized.obj    ShapeNetCore.v2, the class a synset
    <root>/<class>/<any path>.obj, .glb or .ply            meshes; a file that lies in <root>
                                                           itself belongs to the class `object`
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from jaxequi.data import objects
from jaxequi.data.errors import DataError, shown
from jaxequi.data.raycast import Parts
from jaxequi.data.sources._files import load_array, texts, walk
from jaxequi.errors import Refusal

MESH_SUFFIXES = (".obj", ".glb", ".ply")
SHAPENET_FILE = "models/model_normalized.obj"
NO_CLASS = "object"


class Model(NamedTuple):
    """One object.

    A mesh of ShapeNet is shown as large as it is (the diagonal of its bounding box is 1); any
    other is scaled to that size. The embedded objects keep theirs.
    """

    name: str  # <class>/<object>
    shape: pathlib.Path | Parts
    shapenet: bool = False


def embedded(count: int, seed: int) -> list[Model]:
    """Take the first objects of the embedded data set `scenes` with this seed.

    Raises:
      ValueError: fewer than one.
    """
    if count < 1:
        raise Refusal(f"{count} embedded objects were asked for; take 1 or more.")
    names = [f"{objects.CLASS_NAMES[objects.label(n)]}/{n:05d}" for n in range(count)]
    return [Model(name, objects.build(seed, n)) for n, name in enumerate(names)]


def find(root: epath.PathLike, wanted: Sequence[str] = ()) -> list[Model]:
    """Find the models of a folder, sorted by name.

    Args:
      root: a ShapeNetCore.v2 tree, or any folder of meshes.
      wanted: names to keep, in their order, `<class>/<object>`; all if empty.

    Raises:
      ValueError: a folder without meshes, two files that would have one name, a wanted name twice,
        or one that is not in the folder.
    """
    base = pathlib.Path(root).expanduser()
    if not base.is_dir():
        raise DataError(f"there is no folder {base}.")
    found = _shapenet(base) or _meshes(base)
    if not found:
        raise DataError(
            f"{base} holds neither <synset>/<object>/{SHAPENET_FILE} nor a mesh in "
            f"{', '.join(MESH_SUFFIXES)}."
        )
    if not wanted:
        return [found[name] for name in sorted(found)]
    twice = [name for name, count in collections.Counter(wanted).items() if count > 1]
    if twice:
        raise DataError(f"the list names {len(twice)} objects more than once: {_some(twice)}")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(wanted)} listed objects are not among the {len(found)} "
            f"of {base}: {_some(missing)}\nThe folder holds, for instance, {_some(sorted(found))}"
        )
    return [found[name] for name in wanted]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _shapenet(base: pathlib.Path) -> dict[str, Model]:
    files = sorted(base.glob(f"*/*/{SHAPENET_FILE}"))
    names = {file: "/".join(file.relative_to(base).parts[:2]) for file in files}
    for file in files:
        _check(base, file)
    return {name: Model(name, file, shapenet=True) for file, name in names.items()}


def _meshes(base: pathlib.Path) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for path in walk(base, MESH_SUFFIXES):
        file = base / path
        _check(base, file)
        *folders, stem = pathlib.Path(path).with_suffix("").parts
        kind, *inner = [*(folders or [NO_CLASS]), stem]
        name = f"{kind}/{'_'.join(inner)}"
        if name in found:
            raise DataError(f"{found[name].shape} and {file} would both be {name}; rename one.")
        found[name] = Model(name, file)
    return dict(sorted(found.items()))


def _check(base: pathlib.Path, file: pathlib.Path) -> None:
    """Refuse what is no file, and what cannot name a folder of images."""
    if not file.is_file():
        raise DataError(f"{shown(file)} is no regular file; only meshes in files are rendered.")
    if not str(file.relative_to(base)).isprintable():
        raise DataError(f"{shown(file)} has a name that is no printable text; rename it.")


def read_list(path: epath.PathLike) -> list[str]:
    """Read names `<class>/<object>` from an array of strings in a .npy file.

    Args:
      path: of strings [N, 2], synset and object, as the reference's generator takes them; or of
        strings [N], `/<synset>/<object>/`, as `train_images.npy` of the data set has them.

    Raises:
      ValueError: a file that cannot be read, another shape, or names of another form.
    """
    array = load_array(path)
    where = shown(path)
    if array.dtype.kind != "U" or array.ndim not in (1, 2) or array.shape[1:] not in ((), (2,)):
        raise DataError(
            f"{where} is {array.dtype} of shape {array.shape}; a list of objects holds strings, "
            "[N, 2] (synset, object) or [N] (/synset/object/)."
        )
    words = [word.strip("/") for word in texts(array.ravel(), where)]
    names = ["/".join(pair) for pair in zip(words[::2], words[1::2])] if array.ndim == 2 else words
    wrong = [
        name
        for name in names
        if len(parts := name.split("/")) != 2 or {"..", "."} & set(parts) or not name.isprintable()
    ]
    if wrong or not names:
        what = f"the name {wrong[0]!r}, which is not <synset>/<object>" if wrong else "no name"
        raise DataError(f"{where} holds {what}.")
    return names
