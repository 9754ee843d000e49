"""RandAugment's operations by hand numbers."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxequi.data import randaugment

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
RAMP = Image.fromarray(np.repeat(LEVELS[..., None], 3, axis=-1))


def mae(name, m, sign=1.0):
    return np.asarray(randaugment._mae(name, RAMP, m, sign))[..., 0]


def eqinv(name, place, sign=1.0, seed=0):
    image = randaugment._eqinv(name, RAMP, place, sign, np.random.default_rng(seed))
    return np.asarray(image)


@pytest.mark.parametrize(("m", "bits"), [(0.0, 4), (5.0, 2), (9.0, 1), (10.0, 0)])
def test_mae_keeps_fewer_bits_as_magnitude_grows(m, bits):
    step = 2 ** (8 - bits)
    np.testing.assert_array_equal(mae("PosterizeIncreasing", m), LEVELS.astype(int) // step * step)


def test_mae_solarizes_from_a_lower_threshold_as_magnitude_grows():
    threshold = 256 - int(256 * 0.9)
    expected = np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS)
    np.testing.assert_array_equal(mae("SolarizeIncreasing", 9.0), expected)
    np.testing.assert_array_equal(mae("SolarizeIncreasing", 0.0), LEVELS)


def test_mae_adds_to_the_dark_half():
    expected = np.where(LEVELS < 128, np.minimum(LEVELS.astype(int) + 99, 255), LEVELS)
    np.testing.assert_array_equal(mae("SolarizeAdd", 9.0), expected)


def test_mae_translates_by_a_part_of_the_width_and_fills_with_the_mean():
    moved = np.asarray(randaugment._mae("TranslateXRel", RAMP, 10 / 0.45 / 4, 1.0))
    np.testing.assert_array_equal(moved[:, :12, 0], LEVELS[:, 4:])
    assert (moved[:, 13:] == randaugment.IMAGENET_MEAN).all()


def test_mae_has_no_effect_at_magnitude_zero():
    for name in ("Rotate", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"):
        np.testing.assert_array_equal(mae(name, 0.0), LEVELS, err_msg=name)


def test_eqinv_posterizes_from_eight_to_four_bits():
    for place, bits in ((0, 8), (1, 8), (2, 7), (4, 6), (9, 4)):
        step = 2 ** (8 - bits)
        np.testing.assert_array_equal(
            eqinv("posterize", place)[..., 0], LEVELS.astype(int) // step * step
        )


def test_eqinv_solarizes_above_its_threshold():
    np.testing.assert_array_equal(eqinv("solarize", 0)[..., 0], LEVELS)
    np.testing.assert_array_equal(eqinv("solarize", 9)[..., 0], 255 - LEVELS)
    threshold = 256 * (1 - 4 / 9)
    expected = np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS)
    np.testing.assert_array_equal(eqinv("solarize", 4)[..., 0], expected)


def test_eqinv_fills_with_grey():
    moved = eqinv("translateX", 9)
    shift = int(np.floor(16 * 150 / 331))
    assert (moved[:, 16 - shift :] == 128).all()
    turned = eqinv("rotate", 9)
    assert (turned[0, 0] == turned[0, -1]).all()
    assert abs(int(turned[0, 0, 0]) - 128) <= 1


def test_eqinv_turns_counter_clockwise_always():
    for sign in (-1.0, 1.0):
        turned = eqinv("rotate", 9, sign)[4:12, 4:12, 0]
        expected = np.asarray(RAMP.rotate(30))[4:12, 4:12, 0]
        np.testing.assert_array_equal(turned, expected)


def test_eqinv_cuts_out_a_square():
    whole = 0
    for seed in range(20):
        cut = eqinv("cutout", 3, seed=seed)  # 20 * 3 / 9 is 7 pixels, halved 3
        hole = (cut == randaugment.CUTOUT_COLOUR).all(axis=-1)
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert len(rows) <= 6
        assert len(columns) <= 6
        assert hole.sum() == len(rows) * len(columns)
        whole += len(rows) == len(columns) == 6
    assert whole > 2


def test_both_share_what_pillow_does():
    for ours, name in ((mae("Invert", 3.0), "invert"), (mae("Equalize", 3.0), "equalize")):
        np.testing.assert_array_equal(ours, eqinv(name, 3)[..., 0])
        np.testing.assert_array_equal(ours, np.asarray(getattr(ImageOps, name)(RAMP))[..., 0])


def test_there_are_fifteen_of_each():
    assert len(set(randaugment.MAE_OPS)) == len(set(randaugment.EQINV_OPS)) == 15
