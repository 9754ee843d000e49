"""Render 3DIEBench with Blender: `python -m jaxequi.prepare.render_3diebench OUT --models DIR`.

    ... OUT --models ShapeNetCore.v2 --objects train_images.npy --shard 3/64
    ... OUT --models DIR                a folder of .obj, .glb or .ply files
    ... OUT --embedded 60               procedural objects, those of the source `scenes`

writes `OUT/<class>/<object>/image_<v>.jpg` and `latent_<v>.npy`, which the source `threedie`
reads. Two things differ from the reference's generator (facebookresearch/SIE, `data/main.py`). Its
latents come from one stream, so that shards need seeds of their own and a run that was resumed
gives other images; here they are drawn from (seed, object), so that neither shards nor
interruptions change anything. And what cannot be read is skipped, listed and counted. Like there,
images have red and blue swapped, unless `--rgb` is given.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import flags
from etils import epath
from PIL import Image
from rich import console, progress

from jaxequi import cli
from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources import scenes
from jaxequi.data.sources._files import read_file
from jaxequi.errors import Refusal
from jaxequi.prepare import models
from jaxequi.prepare.models import Model
from jaxequi.prepare.scene import DEVICES, ENGINES, Scene

# Columns of a stored latent in the order in which the reference draws them: the floor and the
# light come before the rotation.
DRAW_ORDER = (3, 4, 5, 6, 0, 1, 2)
JPEG_QUALITY = 95  # OpenCV's default, with which the released images were written
SETTINGS = "render.json"

FLAGS = flags.FlagValues()
_MODELS = flags.DEFINE_string(
    "models", None, "ShapeNetCore.v2, or a folder of .obj, .glb, .ply files.", flag_values=FLAGS
)
_EMBEDDED = flags.DEFINE_integer(
    "embedded", None, "Render so many procedural objects.", flag_values=FLAGS
)
_OBJECTS = flags.DEFINE_string(
    "objects", None, "Of --models: list of objects to render, a .npy file.", flag_values=FLAGS
)
_VIEWS = flags.DEFINE_integer("views", 50, "Of each object.", 1, flag_values=FLAGS)
_IMAGE_SIZE = flags.DEFINE_integer("image-size", 256, "Height and width.", 8, flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of the latents.", 0, flag_values=FLAGS)
_SHARD = flags.DEFINE_string("shard", "0/1", "Part I of N, from 0: I/N.", flag_values=FLAGS)
_ENGINE = flags.DEFINE_enum("engine", "cycles", ENGINES, "Of Blender.", flag_values=FLAGS)
_SAMPLES = flags.DEFINE_integer("samples", 100, "Of a pixel, at most.", 1, flag_values=FLAGS)
_DEVICE = flags.DEFINE_enum("device", "cpu", DEVICES, "Of Cycles.", flag_values=FLAGS)
_THREADS = flags.DEFINE_integer(
    "threads", 0, "Of the processor; 0 takes all.", 0, flag_values=FLAGS
)
_RGB = flags.DEFINE_bool("rgb", False, "Do not swap red and blue.", flag_values=FLAGS)


class Renderer(Protocol):
    """What `render` asks of a scene."""

    def load(self, model: Model) -> None:
        """Take another object; ValueError if it cannot be read."""

    def render(self, latent: np.ndarray) -> np.ndarray:
        """Render u8[H, W, 3] under seven latents."""


def draw_latents(seed: int, name: str, views: int) -> np.ndarray:
    """Draw the latents f64[views, 7] of an object, in the order in which they are stored.

    The first views are the same however many are drawn.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    order = list(DRAW_ORDER)
    low, high = np.array(scenes.LATENT_LOW)[order], np.array(scenes.LATENT_HIGH)[order]
    drawn = np.random.default_rng((seed, key)).uniform(low, high, (views, len(order)))
    stored = np.empty_like(drawn)
    stored[:, order] = drawn
    return stored


def shard_of(objects: Sequence[Model], shard: str) -> list[Model]:
    """Take every N-th object, beginning with number I, of a shard written `I/N`.

    Raises:
      ValueError: not of that form, or I not in 0 to N - 1.
    """
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise Refusal(f"--shard is {shard!r}; write I/N with I from 0 to N - 1, such as 0/64.")
    return list(objects[int(number) :: int(count)])


def render(
    objects: Sequence[Model],
    renderer: Renderer,
    out: epath.PathLike,
    *,
    views: int = 50,
    seed: int = 0,
    rgb: bool = False,
) -> list[str]:
    """Render what is missing of the views of some objects.

    Args:
      objects: to render.
      renderer: the scene, or what stands for it.
      out: folder of the data set.
      views: of each object.
      seed: of the latents.
      rgb: write red and blue in their places.

    Returns:
      A line for each object that could not be read.

    Raises:
      ValueError: no object at all could be read.
    """
    folder = epath.Path(out).expanduser()
    skipped: list[str] = []
    columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
    with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task("views", total=len(objects) * views)
        for model in objects:
            here = folder / model.name
            missing = [view for view in range(views) if not _is_complete(here, view)]
            bar.advance(task, views - len(missing))
            if not missing:
                continue
            try:
                renderer.load(model)
            except DataError as error:
                skipped.append(f"{model.name}: {error}")
                bar.advance(task, len(missing))
                continue
            latents = draw_latents(seed, model.name, views)
            here.mkdir(parents=True, exist_ok=True)
            for view in missing:
                image = renderer.render(latents[view])
                _write_view(here, view, image if rgb else image[..., ::-1], latents[view])
                bar.advance(task)
    if objects and len(skipped) == len(objects):
        raise DataError("none of the objects can be read:\n" + "\n".join(skipped))
    return skipped


def _files(folder: epath.Path, view: int) -> tuple[epath.Path, epath.Path]:
    return folder / f"image_{view}.jpg", folder / f"latent_{view}.npy"


def _is_complete(folder: epath.Path, view: int) -> bool:
    return all(file.exists() for file in _files(folder, view))


def _write_view(folder: epath.Path, view: int, pixels: np.ndarray, latent: np.ndarray) -> None:
    image_file, latent_file = _files(folder, view)
    image, array = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        image, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0"
    )
    np.save(array, latent)
    _write(image_file, image.getvalue())
    _write(latent_file, array.getvalue())


def _write(path: epath.Path, data: bytes, writer: str = "") -> None:
    """Write a file that is there in full or not at all; `writer` tells apart who may write it."""
    partial = path.with_name(f"{path.name}{writer}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def keep_settings(out: epath.PathLike, settings: dict[str, Any]) -> None:
    """Note in a data set how it is rendered.

    Raises:
      ValueError: it holds views that were rendered in another way.
    """
    file = epath.Path(out).expanduser() / SETTINGS
    file.parent.mkdir(parents=True, exist_ok=True)
    begun = any(entry.is_dir() for entry in file.parent.iterdir())  # before the other shards begin
    if not file.exists():
        if begun:
            raise DataError(f"{file.parent} holds folders, but no {SETTINGS}; take another one.")
        _write(file, json.dumps(settings, indent=1).encode(), f".{os.getpid()}")
        return
    try:
        before = dict(json.loads(read_file(file)))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file} is damaged ({shown(error)}); take another folder.") from error
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise DataError(
            f"{file.parent} was rendered with "
            + ", ".join(f"{key} {before.get(key)!r}, not {settings[key]!r}" for key in changed)
            + "; go on as it was begun, or take another folder."
        )


def _objects() -> list[Model]:
    if _MODELS.value and _EMBEDDED.value is None:
        wanted = models.read_list(_OBJECTS.value) if _OBJECTS.value else ()
        found = models.find(_MODELS.value, wanted)
    elif _EMBEDDED.value is not None and not _MODELS.value:
        if _OBJECTS.value:
            raise Refusal("--objects lists objects of --models; --embedded counts its own.")
        found = models.embedded(_EMBEDDED.value, _SEED.value)
    else:
        raise Refusal("give --models=DIR or --embedded=N, one of them; --help says more")
    return shard_of(found, _SHARD.value)


@cli.program
def main(argv: list[str]) -> int:
    """Run the program; return its exit code."""
    try:
        [out] = cli.arguments(argv, FLAGS, ["OUT"], __doc__)
        objects = _objects()
        scene = Scene(
            _IMAGE_SIZE.value,
            engine=_ENGINE.value,
            samples=_SAMPLES.value,
            device=_DEVICE.value,
            threads=_THREADS.value,
        )
        settings = {
            "blender": scene.version,
            "seed": _SEED.value,
            "image_size": _IMAGE_SIZE.value,
            "engine": _ENGINE.value,
            "samples": _SAMPLES.value,
            "rgb": _RGB.value,
        }
        keep_settings(out, settings)
        skipped = render(objects, scene, out, views=_VIEWS.value, seed=_SEED.value, rgb=_RGB.value)
    except OSError as error:
        raise Refusal(str(error)) from error
    print(f"{len(objects) - len(skipped)} objects are in {out}")
    if skipped:
        print(f"{len(skipped)} were skipped:", *skipped, sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
