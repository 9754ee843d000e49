"""Host transforms: geometry in uint8, one image at a time, on Pillow's images.

An op is made by a function of this module, from numbers that a config can spell, and is a value
`Op`: `op.apply(RGB image, rng) -> (image, drawn)`. A pipe is a sequence of ops and is written
as a string, `"decode|random_resized_crop(224, scale=(0.08, 1))|flip"`. `make` composes one pipe
for each view into the transform that the loader calls on every record; only there the images
become arrays, since each way to numpy and back costs as much as a crop.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxequi import pipes
from jaxequi.data import decoding
from jaxequi.data.op import Drawn, Op
from jaxequi.data.randaugment import rand_augment_eqinv, rand_augment_mae
from jaxequi.errors import Refusal
from jaxequi.types import Record

try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

PILImage = Image.Image
Resize = Callable[[PILImage, tuple[int, int]], PILImage]
Transform = Callable[[Record, np.random.Generator], Record]

QUARTERS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _fixed(name: str, function: Callable[[Any], PILImage]) -> Op:
    """Make an op that draws nothing."""
    return Op(name, lambda image, rng: (function(image), None))


def _filter(name: str) -> Image.Resampling:
    if name not in FILTERS:
        raise Refusal(f"no filter {name!r}; there is {', '.join(FILTERS)}.")
    return FILTERS[name]


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of `224` or `(224, 192)`."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise Refusal(f"a size is a whole number above 0 or (height, width), not {size!r}.")
    decoding.check_size(pair[1], pair[0], "a view")
    return pair


def resizer(filter: str, fast: bool = False) -> Resize:
    """Make `resize(image, (height, width)) -> image`, antialiased.

    Args:
      filter: one of `FILTERS`.
      fast: resize with cykooz.resizer (extra `fast`) in a quarter of the time; bilinear alone.
        Its coefficients have fewer bits than Pillow's: one level in six or so is one off, hardly
        any is two off.
    """
    how = _filter(filter)
    if not fast:
        return lambda image, size: image.resize(size[::-1], how)
    if cykooz_resizer is None:
        raise Refusal(
            "fast=True resizes with cykooz.resizer, which is not installed; "
            'pip install "jaxequi[fast]", or leave fast=True out.'
        )
    if filter != "bilinear":  # the others overshoot, and are clipped between the passes elsewhere
        raise Refusal(f"fast=True is for the filter 'bilinear', not for {filter!r}.")
    bilinear = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
    options = cykooz_resizer.ResizeOptions(bilinear)

    def resize(image: PILImage, size: tuple[int, int]) -> PILImage:
        out = Image.new("RGB", size[::-1])
        cykooz_resizer.Resizer().resize_pil(image, out, options)  # one is for one thread only
        return out

    return resize


def decode() -> Op:
    """Make the RGB image of an encoded file or an array, as Pillow's `convert("RGB")`."""
    return _fixed("decode", decoding.decode)


def resize(size: int | Sequence[int], filter: str = "bilinear", fast: bool = False) -> Op:
    """Resize with antialiasing: `(h, w)` to exactly that, a number to that shorter side.

    The longer side becomes `int(size * longer / shorter)`, as torchvision's `Resize` has it.
    `fast`: see `resizer`.
    """
    pair, resized = _size(size), resizer(filter, fast)

    def apply(image: PILImage) -> PILImage:
        if not isinstance(size, int):
            return resized(image, pair)
        width, height = image.size
        if height <= width:
            target = (size, int(size * width / height))
        else:
            target = (int(size * height / width), size)
        decoding.check_size(target[1], target[0], f"{width} x {height} pixels, resized,")
        return resized(image, target)

    return _fixed("resize", apply)


def center_crop(size: int | Sequence[int]) -> Op:
    """Cut out the middle; an image that is too small is first padded with black.

    Offsets are rounded half to even, as torchvision's `center_crop`.
    """
    height, width = _size(size)

    def offset(old: int, new: int) -> int:
        missing = max(new - old, 0)
        return round((old + missing - new) / 2) - missing // 2

    def apply(image: PILImage) -> PILImage:
        left, top = offset(image.width, width), offset(image.height, height)
        return image.crop((left, top, left + width, top + height))

    return _fixed("center_crop", apply)


def flip(p: float = 0.5) -> Op:
    """Mirror left and right with probability `p`; draws (flipped,)."""
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise Refusal(f"p is a probability, 0 to 1, not {p!r}.")

    def apply(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, Drawn]:
        flipped = rng.random() < p
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image, (float(flipped),)

    return Op("flip", apply, draws=1)


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    attempts: int,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) by the rule of torchvision's `RandomResizedCrop`.

    Area uniform in `scale` of the image's, logarithm of width over height uniform in `ratio`;
    after so many attempts that do not fit, the largest middle box whose shape is allowed.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(attempts):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def clipped_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) as MAE's linear probe: one draw, sides cut to the image."""
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w = max(1, min(round(math.sqrt(area * aspect)), width))
    h = max(1, min(round(math.sqrt(area / aspect)), height))
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def random_resized_crop(
    size: int | Sequence[int],
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    filter: str = "bilinear",
    attempts: int = 10,
    fast: bool = False,
) -> Op:
    """Cut a random box and resize it; draws (top, left, height, width) as parts of the image.

    With `attempts=0` the box is drawn once and cut to the image (`clipped_box`). `fast`: see
    `resizer`.
    """
    pair, resized = _size(size), resizer(filter, fast)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise Refusal(f"scale must be 0 < low <= high <= 1, not {scale}.")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise Refusal(f"ratio must be 0 < low <= high, not {ratio}.")
    scale, ratio = (scale[0], scale[1]), (ratio[0], ratio[1])

    def apply(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, Drawn]:
        width, height = image.size
        if attempts:
            top, left, h, w = crop_box(height, width, scale, ratio, attempts, rng)
        else:
            top, left, h, w = clipped_box(height, width, scale, ratio, rng)
        cut = image.crop((left, top, left + w, top + h))
        return resized(cut, pair), (top / height, left / width, h / height, w / width)

    return Op("random_resized_crop", apply, draws=4)


def pad_crop(padding: int = 4) -> Op:
    """Pad with black and cut the old size out at random; draws (down, right) in pixels."""
    if padding < 1:
        raise Refusal(f"padding is 1 or more pixels, not {padding}.")

    def apply(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, Drawn]:
        down, right = (int(x) for x in rng.integers(2 * padding + 1, size=2))
        left, top = right - padding, down - padding  # outside of an image is black
        return image.crop((left, top, left + image.width, top + image.height)), (down, right)

    return Op("pad_crop", apply, draws=2)


def rotate90() -> Op:
    """Turn a square image by 0 to 3 quarters counter-clockwise; draws (quarters,)."""

    def apply(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, Drawn]:
        quarters = int(rng.integers(4))
        if image.width != image.height:
            raise Refusal(f"rotate90 is for square images, not {image.width}x{image.height}.")
        turn = QUARTERS[quarters]
        return (image if turn is None else image.transpose(turn)), (quarters,)

    return Op("rotate90", apply, draws=1)


def rotated(
    image: PILImage, degrees: float, how: Image.Resampling = Image.Resampling.BILINEAR
) -> PILImage:
    """Turn an image counter-clockwise about its middle, same size, black outside."""
    return image.rotate(degrees, how)


def rotate(degrees: Sequence[float] = (-180.0, 180.0), filter: str = "bilinear") -> Op:
    """Turn an image by a uniform angle, black outside; draws (degrees,)."""
    how = _filter(filter)
    if len(degrees) != 2 or degrees[0] > degrees[1]:
        raise Refusal(f"degrees must be (low, high), not {degrees}.")

    def apply(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, Drawn]:
        angle = float(rng.uniform(degrees[0], degrees[1]))
        return rotated(image, angle, how), (angle,)

    return Op("rotate", apply, draws=1)


OPS: dict[str, Callable[..., Op]] = {
    function.__name__: function
    for function in (
        decode,
        resize,
        center_crop,
        flip,
        random_resized_crop,
        pad_crop,
        rotate90,
        rotate,
        rand_augment_mae,
        rand_augment_eqinv,
    )
}


def parse(pipe: str) -> list[Op]:
    """Read a pipe such as `"decode|random_resized_crop(224, scale=(0.08, 1))|flip"`.

    Raises:
      ValueError: an op that does not exist, arguments that are no literals or not its own, or a
        pipe that does not begin with `decode`, or has it again.
    """
    ops = pipes.parse(pipe, OPS, "host transform")
    if [op.name == "decode" for op in ops] != [place == 0 for place in range(len(ops))]:
        raise Refusal(f"a pipe begins with `decode`, which stands nowhere else, not {pipe!r}.")
    return ops


def _named(ops: Sequence[Op]) -> list[tuple[str, Op]]:
    """Pair the ops of a pipe with their keys in `aug`; the second `flip` is `flip_2`."""
    seen: collections.Counter[str] = collections.Counter()
    named = []
    for op in ops:
        seen[op.name] += 1
        named.append((op.name if seen[op.name] == 1 else f"{op.name}_{seen[op.name]}", op))
    return named


def _shared(pipes_of_views: Sequence[str], chains: Sequence[Sequence[Op]]) -> int:
    """Count the leading ops that all pipes spell alike and that draw nothing."""
    texts = [pipes.split(pipe) for pipe in pipes_of_views]
    count = 0
    for step in zip(*(zip(text, chain) for text, chain in zip(texts, chains))):
        if len({text for text, _ in step}) > 1 or step[0][1].draws:
            break
        count += 1
    return count


def stored(record: Record, rng: np.random.Generator) -> Record:
    """Take what is stored for a view: features f32[R], not an image that a pipe would cut."""
    del rng
    kept = {name: value for name, value in record.items() if name != "image"}
    return {**kept, "views": np.stack(record["image"]), "aug": {}}


def make(pipes_of_views: Sequence[str]) -> Transform:
    """Compose one pipe a view into `transform(record, rng) -> record`.

    Of a record with one image, every pipe makes a view, and the steps that the pipes share
    before the first random one are done once: an image that feeds two views is decoded once. Of
    a record with several images, pipe i makes view i from image i, or the only pipe all views.

    The result has `views` u8[V, H, W, 3] and `aug`, a dict of f32[V, k] with what the ops drew
    (zeros for a view whose pipe has no such op), and keeps all else of the record but `image`.

    Raises:
      ValueError: a pipe that cannot be read; while running, views of unequal sizes, or a number
        of images that fits no reading above.
    """
    if not pipes_of_views:
        raise Refusal("there must be a pipe for at least one view.")
    chains = [parse(pipe) for pipe in pipes_of_views]
    shared = _shared(pipes_of_views, chains)
    tails = [_named(ops)[shared:] for ops in chains]
    widths = {name: op.draws for tail in tails for name, op in tail if op.draws}

    def prepare(image: Any, rng: np.random.Generator) -> PILImage:
        for op in chains[0][:shared]:
            image, _ = op.apply(image, rng)
        return image

    def transform(record: Record, rng: np.random.Generator) -> Record:
        images = [prepare(image, rng) for image in record["image"]]
        count = max(len(images), len(tails))
        if {len(images), len(tails)} - {1, count}:
            raise Refusal(f"{len(images)} images and {len(tails)} pipes do not pair up.")
        aug = {name: np.zeros((count, k), np.float32) for name, k in widths.items()}
        views = []
        for view in range(count):
            image = images[view % len(images)]
            for name, op in tails[view % len(tails)]:
                image, drawn = op.apply(image, rng)
                if drawn is not None:
                    aug[name][view] = drawn
            views.append(image)
        if len({image.size for image in views}) > 1:
            sizes = [(image.height, image.width) for image in views]
            raise Refusal(
                f"the views have unequal sizes {sizes}; "
                "end every pipe with a crop or a resize to one size."
            )
        rest = {key: value for key, value in record.items() if key != "image"}
        return {**rest, "views": np.stack([np.asarray(image) for image in views]), "aug": aug}

    return transform
