"""Look at the data: `python -m jaxequi.look SOURCE --recipe RECIPE --out look.png`.

Writes an image of what the network will see, a row an example and a column a view, each with the
parameters that were drawn for it, and prints class counts, channel statistics and the speed:

    python -m jaxequi.look "arrays(path='/usr/share/datasets/fashion-mnist')" \\
        --recipe "moco_v2(size=64)"

SOURCE is written as in a config: a file of data/sources/, or a module of one's own by its dots,
"my_project.my_source(root='images')".
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from PIL import Image, ImageDraw

from jaxequi import augment, cli, pipes
from jaxequi.data import loader, order, transforms
from jaxequi.data.recipes import RECIPES, Recipe
from jaxequi.data.sources._open import open_source
from jaxequi.errors import Refusal
from jaxequi.types import Source

FLAGS = flags.FlagValues()
_RECIPE = flags.DEFINE_string("recipe", "imagenet", ", ".join(RECIPES), flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", "look.png", "The image.", flag_values=FLAGS)
_ROWS = flags.DEFINE_integer("rows", 8, "Examples in it.", 1, flag_values=FLAGS)
_EXAMPLES = flags.DEFINE_integer("examples", 256, "Examples to measure.", 1, flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of order and draws.", 0, flag_values=FLAGS)

LINE = 11  # pixels of a line of text
LETTER = 6  # pixels of a letter


def levels(recipe: Recipe, views: np.ndarray) -> np.ndarray:
    """Return normalised views f32[B, V, H, W, 3] as levels u8, by undoing `normalise`."""
    chains = [augment.parse(pipe) for pipe in recipe.augment]
    out = np.empty(views.shape, np.uint8)
    for view in range(views.shape[1]):
        [op] = [op for op in chains[view % len(chains)] if op.name == "normalise"]
        black = np.asarray(op.apply(jnp.zeros((3, 1, 1)), jnp.zeros(0)))[:, 0, 0]
        white = np.asarray(op.apply(jnp.full((3, 1, 1), 255.0), jnp.zeros(0)))[:, 0, 0]
        part = (views[:, view] - black) / (white - black)
        out[:, view] = np.clip(np.round(part * 255), 0, 255)
    return out


def caption(aug: Mapping[str, np.ndarray], example: int, view: int) -> list[str]:
    """Write what was drawn for one view, a line an op."""
    return [
        f"{name} " + " ".join(f"{number:.3g}" for number in drawn[example, view])
        for name, drawn in aug.items()
    ]


def grid(
    images: np.ndarray, titles: Sequence[str], captions: Sequence[Sequence[Sequence[str]]]
) -> Image.Image:
    """Draw images u8[N, V, H, W, 3] in a grid, with a title a row and a caption an image."""
    count, views, height, width = images.shape[:4]
    lines = max((len(text) for row in captions for text in row), default=0)
    letters = max((len(line) for row in captions for text in row for line in text), default=0)
    wide = max(width, LETTER * letters) + 8
    tall = height + LINE * (lines + 1) + 8
    sheet = Image.new("RGB", (wide * views, tall * count), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(count):
        pen.text((2, i * tall), titles[i], fill="black")
        for v in range(views):
            sheet.paste(Image.fromarray(images[i, v]), (v * wide + 2, i * tall + LINE + 2))
            text = "\n".join(captions[i][v])
            pen.multiline_text(
                (v * wide + 2, i * tall + LINE + height + 4), text, "gray", spacing=0
            )
    return sheet


def _counts(source: Source, seen: np.ndarray) -> str:
    labels = getattr(source, "labels", None)
    where = "all examples" if labels is not None else f"{len(seen)} examples"
    counts = collections.Counter(np.asarray(seen if labels is None else labels).tolist())
    listed = [f"{source.class_names[label]} {count}" for label, count in sorted(counts.items())]
    more = f", ... ({len(listed)} classes)" if len(listed) > 20 else ""
    return f"classes of {where}: {', '.join(listed[:20])}{more}"


def look(
    source: Source, recipe: Recipe, *, rows: int = 8, examples: int = 256, seed: int = 0
) -> tuple[Image.Image, dict[str, Any]]:
    """Read some batches; return the grid and what was measured.

    The numbers: `examples_per_second` of the host, and of the views as the network sees them the
    `mean` and `std` of each channel, f64[V, 3] each.
    """
    size = max(1, min(examples, 64, len(source)))
    steps = max(1, examples // size)
    stored = len(recipe.views) if source.num_views >= len(recipe.views) > 1 else 1
    stored = min(source.num_views, max(stored, 2)) if source.num_views > 1 else 1
    run = jax.jit(augment.make(recipe.augment, recipe.mix, len(source.class_names)))
    rows_of = functools.partial(order.stream, seed, batch_size=size, n=len(source))
    sums = squares = 0.0
    labels = []
    start = time.perf_counter()
    with loader.batches(
        source,
        transforms.make(recipe.views),
        rows_of,
        seed=seed,
        start=0,
        stop=steps,
        num_views=stored,
    ) as batches:
        host = list(batches)
    seconds = time.perf_counter() - start
    for step, batch in enumerate(host):
        out = jax.device_get(run(jax.random.fold_in(jax.random.key(seed), step), batch))
        views = out["views"].astype(np.float64)
        sums = sums + views.mean(axis=(0, 2, 3))
        squares = squares + np.square(views).mean(axis=(0, 2, 3))
        labels.append(batch["label"])
        if step == 0:
            first = out
    mean = np.asarray(sums) / steps
    rows = min(rows, size)
    aug = first.get("aug", {})
    names = [f"{i}: {source.class_names[c]}" for i, c in zip(first["index"], first["label"])]
    texts = [[caption(aug, i, v) for v in range(first["views"].shape[1])] for i in range(rows)]
    sheet = grid(levels(recipe, first["views"][:rows]), names[:rows], texts)
    return sheet, {
        "examples_per_second": steps * size / seconds,
        "mean": mean,
        "std": np.sqrt(np.asarray(squares) / steps - mean**2),
        "classes": _counts(source, np.concatenate(labels)),
    }


@cli.program
def main(argv: list[str]) -> int:
    """Run the program; return its exit code."""
    try:
        [text] = cli.arguments(argv, FLAGS, ["SOURCE"], __doc__)
        [recipe] = pipes.parse(_RECIPE.value, RECIPES, "recipe")
        source = open_source(text)
        sheet, found = look(
            source, recipe, rows=_ROWS.value, examples=_EXAMPLES.value, seed=_SEED.value
        )
        with epath.Path(_OUT.value).open("wb") as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise Refusal(str(error)) from error
    print(f"{source}: {len(source)} examples, {source.num_views} stored views of each")
    print(found["classes"])
    for view, (mean, std) in enumerate(zip(found["mean"], found["std"])):
        print(f"view {view}: channel mean {np.round(mean, 3)}, deviation {np.round(std, 3)}")
    print(f"{found['examples_per_second']:.0f} examples/s on the host")
    print(f"{_OUT.value} shows {_ROWS.value} of them")
    return 0


if __name__ == "__main__":
    cli.run(main)
