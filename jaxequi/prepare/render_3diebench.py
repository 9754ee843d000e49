"""Render 3DIEBench with Blender: `python -m jaxequi.prepare.render_3diebench OUT --models DIR`.

    ... OUT --models ShapeNetCore.v2 --objects train_images.npy --shard 3/64
    ... OUT --models DIR                a folder of .obj, .glb or .ply files
    ... OUT --embedded 60               procedural objects, those of the source `scenes`

writes `OUT/<class>/<object>/image_<v>.jpg` and `latent_<v>.npy`, which the source `threedie`
reads. Two things differ from the reference's generator (facebookresearch/SIE, `data/main.py`). Its
latents come from one stream, so that shards need seeds of their own and a run that was resumed
gives other pictures; here they are drawn from (seed, object), so that neither shards nor
interruptions change anything. And what cannot be read is skipped, listed and counted. Like there,
pictures have red and blue swapped, unless `--rgb` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from PIL import Image
from rich import console, progress

from jaxequi.data.errors import DataError
from jaxequi.data.sources import scenes
from jaxequi.prepare import models
from jaxequi.prepare.models import Model
from jaxequi.prepare.scene import DEVICES, ENGINES, Scene

# Columns of a stored latent in the order in which the reference draws them: the floor and the
# light come before the rotation.
DRAW_ORDER = (3, 4, 5, 6, 0, 1, 2)
JPEG_QUALITY = 95  # OpenCV's default, with which the released pictures were written
SETTINGS = "render.json"


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
        raise ValueError(f"--shard is {shard!r}; write I/N with I from 0 to N - 1, such as 0/64.")
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
                picture = renderer.render(latents[view])
                _write_view(here, view, picture if rgb else picture[..., ::-1], latents[view])
                bar.advance(task)
    if objects and len(skipped) == len(objects):
        raise DataError("none of the objects can be read:\n" + "\n".join(skipped))
    return skipped


def _files(folder: epath.Path, view: int) -> tuple[epath.Path, epath.Path]:
    return folder / f"image_{view}.jpg", folder / f"latent_{view}.npy"


def _is_complete(folder: epath.Path, view: int) -> bool:
    return all(file.exists() for file in _files(folder, view))


def _write_view(folder: epath.Path, view: int, picture: np.ndarray, latent: np.ndarray) -> None:
    image_file, latent_file = _files(folder, view)
    image, array = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(
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
    before = json.loads(file.read_text())
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise DataError(
            f"{file.parent} was rendered with "
            + ", ".join(f"{key} {before.get(key)!r}, not {settings[key]!r}" for key in changed)
            + "; go on as it was begun, or take another folder."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxequi.prepare.render_3diebench",
        description="Render 3DIEBench in its published layout, with Blender.",
        epilog="The same command goes on where it was stopped, with the same result.",
    )
    parser.add_argument("out", help="folder of the data set")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--models", help="ShapeNetCore.v2, or a folder of .obj, .glb, .ply files")
    source.add_argument("--embedded", type=int, metavar="N", help="N procedural objects")
    parser.add_argument("--objects", help="of --models: list of objects to render, a .npy file")
    parser.add_argument("--views", type=int, default=50, help="of each object; 50")
    parser.add_argument("--image-size", type=int, default=256, help="height and width; 256")
    parser.add_argument("--seed", type=int, default=0, help="of the latents; 0")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="part I of N, from 0; 0/1")
    parser.add_argument("--engine", choices=ENGINES, default="cycles")
    parser.add_argument("--samples", type=int, default=100, help="of a pixel, at most; 100")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="of Cycles; cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0 takes all")
    parser.add_argument("--rgb", action="store_true", help="do not swap red and blue")
    return parser


def _objects(options: argparse.Namespace) -> list[Model]:
    limits = {"views": 1, "image_size": 8, "samples": 1, "seed": 0, "threads": 0}
    for name, least in limits.items():
        given = getattr(options, name)
        if given < least:
            raise ValueError(f"--{name.replace('_', '-')} is {given}; take {least} or more.")
    if options.models is None:
        if options.objects:
            raise ValueError("--objects lists objects of --models; --embedded counts its own.")
        found = models.embedded(options.embedded, options.seed)
    else:
        wanted = models.read_list(options.objects) if options.objects else ()
        found = models.find(options.models, wanted)
    return shard_of(found, options.shard)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        objects = _objects(options)
        scene = Scene(
            options.image_size,
            engine=options.engine,
            samples=options.samples,
            device=options.device,
            threads=options.threads,
        )
        settings = {
            "blender": scene.version,
            "seed": options.seed,
            "image_size": options.image_size,
            "engine": options.engine,
            "samples": options.samples,
            "rgb": options.rgb,
        }
        keep_settings(options.out, settings)
        skipped = render(
            objects,
            scene,
            options.out,
            views=options.views,
            seed=options.seed,
            rgb=options.rgb,
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(objects) - len(skipped)} objects are in {options.out}")
    if skipped:
        print(f"{len(skipped)} were skipped:", *skipped, sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
