"""Photometry on the device against Pillow, in 8-bit levels, and its samplers by statistics.

The bounds: grey, brightness, solarize and blur are exact; contrast and saturation differ by one
level in at most 2 % of the values of an image (single precision); hue in 0.1 % by one level.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxequi.augment import blur, colour

PHOTO = Image.open(pathlib.Path(__file__).parents[1] / "data" / "files" / "png_named.JPEG")
COLOURS = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3, indexing="ij"), -1)
IMAGES = {
    "photo": np.asarray(PHOTO.resize((96, 80), Image.Resampling.BICUBIC)),
    "noise": np.random.default_rng(0).integers(0, 256, (31, 44, 3), dtype=np.uint8),
    "every_colour": COLOURS.reshape(-1, 52, 3).astype(np.uint8),
}


@pytest.fixture(params=IMAGES)
def image(request):
    return IMAGES[request.param]


def planes(image):
    return jnp.moveaxis(jnp.asarray(image), -1, 0).astype(jnp.float32)


def assert_levels(actual, expected, largest, share):
    actual = np.asarray(jnp.moveaxis(actual, 0, -1))
    assert (actual == np.round(actual)).all()
    difference = np.abs(actual - np.asarray(expected, np.float32))
    assert difference.max() <= largest
    assert (difference > 0).mean() <= share


ENHANCE = [
    (colour.brightness, ImageEnhance.Brightness, 0, 0.0),
    (colour.contrast, ImageEnhance.Contrast, 1, 0.02),
    (colour.saturation, ImageEnhance.Color, 1, 0.02),
]


@pytest.mark.parametrize(("ours", "pillows", "largest", "share"), ENHANCE)
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.87, 1.0, 1.4, 1.9])
def test_enhancement_equals_pillow(image, ours, pillows, largest, share, factor):
    expected = pillows(Image.fromarray(image)).enhance(factor)
    assert_levels(jax.jit(ours)(planes(image), factor), expected, largest, share)


def pillow_hue(image, shift):
    """Shift the hue as torchvision does on Pillow images."""
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    shifted = np.array(hue) + np.array(shift * 255).astype(np.int32).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


@pytest.mark.parametrize("shift", [-0.5, -0.1, -0.003, 0.0, 0.07, 0.4])
def test_hue_equals_pillow(image, shift):
    actual = jax.jit(colour.shift_hue)(planes(image), jnp.float32(shift))
    assert_levels(actual, pillow_hue(image, shift), 1, 0.001)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.8, 1.37, 1.999, 2.0])
def test_blur_equals_pillow(image, sigma):
    expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
    actual = jax.jit(functools.partial(blur.box_blur, largest=2.0))(planes(image), sigma)
    assert_levels(actual, expected, 0, 0)


def test_a_wide_blur_equals_pillow():
    image = IMAGES["photo"]
    expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(5.3))
    assert_levels(blur.box_blur(planes(image), jnp.float32(5.3), 6.0), expected, 0, 0)


def test_blur_3x3_is_a_gaussian_with_mirrored_edges():
    row = jnp.zeros((3, 4, 5)).at[:, :, 2].set(90.0)
    side = np.exp(-0.5 / 0.7**2)
    line = np.round(90 * np.array([0, side, 1, side, 0]) / (1 + 2 * side))
    out = blur.blur_3x3(row, jnp.float32(0.7))
    np.testing.assert_allclose(out[0], np.tile(line, (4, 1)))
    edge = jnp.zeros((3, 4, 5)).at[:, :, 1].set(90.0)  # mirrored, pixel -1 is pixel 1
    first = np.round(90 * 2 * side / (1 + 2 * side))
    np.testing.assert_allclose(blur.blur_3x3(edge, jnp.float32(0.7))[0, :, 0], first)


def test_grey_and_solarize_equal_pillow(image):
    pillow = Image.fromarray(image)
    on = jnp.ones(1)
    assert_levels(
        colour.grayscale().apply(planes(image), on), pillow.convert("L").convert("RGB"), 0, 0
    )
    assert_levels(colour.solarize().apply(planes(image), on), ImageOps.solarize(pillow), 0, 0)
    off = colour.solarize().apply(planes(image), jnp.zeros(1))
    np.testing.assert_array_equal(off, planes(image))


@pytest.mark.parametrize("order", range(0, 24, 5))
def test_jitter_runs_its_parts_in_the_drawn_order(order):
    image = IMAGES["photo"]
    drawn = jnp.array([1, 0.7, 1.3, 0.8, 0.08, order], jnp.float32)
    expected = Image.fromarray(image)
    for part in colour.ORDERS[order]:
        if part == 3:
            expected = pillow_hue(np.asarray(expected), 0.08)
        else:
            expected = ENHANCE[part][1](expected).enhance(float(drawn[part + 1]))
    actual = jax.jit(colour.jitter)(planes(image), drawn)
    assert_levels(actual, expected, 6, 0.02)


def test_jitter_that_is_not_applied_changes_nothing():
    image = planes(IMAGES["noise"])
    drawn = jnp.array([0, 0.7, 1.3, 0.8, 0.08, 3], jnp.float32)
    np.testing.assert_array_equal(colour.jitter(image, drawn), image)


N = 20_000


def test_jitter_draws_uniform_factors_and_orders(keys):
    drawn = np.asarray(colour.color_jitter(0.4, 0.3, 1.5, 0.1, p=0.8).sample(next(keys), N))
    on = drawn[:, 0] == 1
    assert abs(on.mean() - 0.8) < 0.015
    np.testing.assert_array_equal(drawn[~on, 1:5], np.tile([1, 1, 1, 0], (sum(~on), 1)))
    for column, (low, high) in zip(
        drawn[on, 1:5].T, [(0.6, 1.4), (0.7, 1.3), (0, 2.5), (-0.1, 0.1)]
    ):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= high
        assert abs(column.mean() - (low + high) / 2) < 0.02 * (high - low)
    counts = np.bincount(drawn[:, 5].astype(int), minlength=24)
    assert abs(counts - N / 24).max() < 5 * np.sqrt(N / 24)


@pytest.mark.parametrize("op", [colour.grayscale(0.2), colour.solarize(0.2)])
def test_single_chances(op, keys):
    assert abs(float(op.sample(next(keys), N).mean()) - 0.2) < 0.015


def test_blur_draws_uniform_deviations(keys):
    drawn = np.asarray(blur.gaussian_blur(0.1, (0.1, 2.0)).sample(next(keys), N))
    assert abs(drawn[:, 0].mean() - 0.1) < 0.011
    assert 0.1 <= drawn[:, 1].min() < 0.11
    assert 1.99 < drawn[:, 1].max() <= 2.0
    assert abs(drawn[:, 1].mean() - 1.05) < 0.02


@pytest.mark.parametrize(
    "make",
    [
        lambda: colour.color_jitter(-0.1),
        lambda: colour.color_jitter(hue=0.6),
        lambda: colour.grayscale(1.5),
        lambda: blur.gaussian_blur(sigma=(2.0, 0.1)),
        lambda: blur.gaussian_blur(sigma=(0.0, 1.0)),
    ],
)
def test_impossible_options_are_refused(make):
    with pytest.raises(ValueError, match="not"):
        make()
