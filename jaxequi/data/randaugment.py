"""RandAugment as the references have it: timm's for MAE, the package `randaugment` for EqInv.

Both draw two operations with replacement and apply each with probability a half; they differ in
the operations, in how a magnitude is drawn and read, and in what fills the corners.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxequi.data.op import Drawn, Op

PILImage = Image.Image
LAYERS = 2
GREY = (128, 128, 128)
CUTOUT_COLOUR = (125, 122, 113)
IMAGENET_MEAN = (124, 116, 104)


def _affine(
    image: PILImage, matrix: tuple[float, ...], how: Image.Resampling, fill: tuple[int, int, int]
) -> PILImage:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=how, fillcolor=fill)


def _solarize_add(image: PILImage, added: int, threshold: int = 128) -> PILImage:
    """Add to the levels below the threshold."""
    table = [min(255, level + added) if level < threshold else level for level in range(256)]
    return image.point(table * 3)


def _posterize(image: PILImage, bits: int) -> PILImage:
    """Keep the highest bits of every level; none makes the image black, as Pillow once did."""
    return image.point([level & (256 - 2 ** (8 - bits)) for level in range(256)] * 3)


def _mae(name: str, image: PILImage, m: float, sign: float) -> PILImage:
    """Apply an operation of `rand-m9-mstd0.5-inc1` (timm 0.3.2) with magnitude `m` of 10."""
    part, width, height = m / 10, image.width, image.height
    how, fill = Image.Resampling.BICUBIC, IMAGENET_MEAN
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Rotate":
            return image.rotate(sign * 30 * part, resample=how, fillcolor=fill)
        case "PosterizeIncreasing":
            return _posterize(image, 4 - int(4 * part))
        case "SolarizeIncreasing":
            return ImageOps.solarize(image, 256 - int(256 * part))
        case "SolarizeAdd":
            return _solarize_add(image, int(110 * part))
        case "Color":
            return ImageEnhance.Color(image).enhance(1 + sign * 0.9 * part)
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(1 + sign * 0.9 * part)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(1 + sign * 0.9 * part)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(1 + sign * 0.9 * part)
        case "ShearX":
            return _affine(image, (1, sign * 0.3 * part, 0, 0, 1, 0), how, fill)
        case "ShearY":
            return _affine(image, (1, 0, 0, sign * 0.3 * part, 1, 0), how, fill)
        case "TranslateXRel":
            return _affine(image, (1, 0, sign * 0.45 * part * width, 0, 1, 0), how, fill)
        case _:  # TranslateYRel
            return _affine(image, (1, 0, 0, 0, 1, sign * 0.45 * part * height), how, fill)


MAE_OPS = [
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
]


def _eqinv(
    name: str, image: PILImage, index: int, sign: float, rng: np.random.Generator
) -> PILImage:
    """Apply an operation of the package `randaugment` 1.0.2 at a place, 0 to 9, of its range."""
    part, width, height = index / 9, image.width, image.height
    bicubic, nearest = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
    far = 150 / 331
    match name:
        case "shearX":
            return _affine(image, (1, 0.3 * part * sign, 0, 0, 1, 0), bicubic, GREY)
        case "shearY":
            return _affine(image, (1, 0, 0, 0.3 * part * sign, 1, 0), bicubic, GREY)
        case "translateX":
            return _affine(image, (1, 0, far * part * width * sign, 0, 1, 0), nearest, GREY)
        case "translateY":
            return _affine(image, (1, 0, 0, 0, 1, far * part * height * sign), nearest, GREY)
        case "rotate":
            turned = image.convert("RGBA").rotate(30 * part)
            grey = Image.new("RGBA", image.size, (*GREY, 128))
            return Image.composite(turned, grey, turned).convert("RGB")
        case "color":
            return ImageEnhance.Color(image).enhance(1 + 0.9 * part * sign)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(1 + 0.9 * part * sign)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * part * sign)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(1 + 0.9 * part * sign)
        case "posterize":
            return _posterize(image, round(8 - 4 * part))
        case "solarize":
            # A threshold between levels cuts above it.
            return image.point([x if x < 256 * (1 - part) else 255 - x for x in range(256)] * 3)
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "invert":
            return ImageOps.invert(image)
        case _:  # cutout
            half = round(20 * part) // 2
            y, x = int(rng.integers(height)), int(rng.integers(width))
            pixels = np.array(image)
            pixels[max(0, y - half) : y + half, max(0, x - half) : x + half] = CUTOUT_COLOUR
            return Image.fromarray(pixels)


EQINV_OPS = [
    "shearX",
    "shearY",
    "translateX",
    "translateY",
    "rotate",
    "color",
    "contrast",
    "sharpness",
    "brightness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "invert",
    "cutout",
]


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _layers(
    name: str, step: Callable[[PILImage, np.random.Generator], tuple[PILImage, list[float]]]
) -> Op:
    """Make an op of two layers; each draws (applied, operation, magnitude, sign)."""

    def apply(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, Drawn]:
        drawn = []
        for _ in range(LAYERS):
            image, numbers = step(image, rng)
            drawn += numbers
        return image, drawn

    return Op(name, apply, draws=4 * LAYERS)


def rand_augment_mae(magnitude: float = 9.0, std: float = 0.5) -> Op:
    """Apply timm's `rand-m9-mstd0.5-inc1` (0.3.2), MAE's fine-tuning.

    Magnitudes are normal, cut to [0, 10]. Draws, for each of two layers, (applied, index into
    `MAE_OPS`, magnitude, sign).
    """

    def step(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, list[float]]:
        which, applied = int(rng.integers(len(MAE_OPS))), bool(rng.random() < 0.5)
        m = float(np.clip(rng.normal(magnitude, std), 0, 10))
        sign = _sign(rng)
        if applied:
            image = _mae(MAE_OPS[which], image, m, sign)
        return image, [float(applied), float(which), m, sign]

    return _layers("rand_augment_mae", step)


def rand_augment_eqinv() -> Op:
    """Apply the package `randaugment` 1.0.2, EqInv's hard views.

    Magnitudes are the places 1 to 9 of ten over each range. Draws, for each of two layers,
    (applied, index into `EQINV_OPS`, place, sign).
    """

    def step(image: PILImage, rng: np.random.Generator) -> tuple[PILImage, list[float]]:
        which, place = int(rng.integers(len(EQINV_OPS))), int(rng.integers(1, 10))
        applied, sign = bool(rng.random() < 0.5), _sign(rng)
        if applied:
            image = _eqinv(EQINV_OPS[which], image, place, sign, rng)
        return image, [float(applied), float(which), float(place), sign]

    return _layers("rand_augment_eqinv", step)
