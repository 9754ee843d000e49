"""Host transforms: geometry by hand numbers and laws, sampling by statistics."""

import math

import numpy as np
import pytest
from PIL import Image

from jaxequi.data import transforms


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def run(pipe, image, rng):
    result = transforms.make([f"decode|{pipe}"])({"image": [image], "label": 0}, rng)
    return result["views"][0], {name: drawn[0] for name, drawn in result["aug"].items()}


def test_resize_to_the_shorter_side(image, rng):
    assert run("resize(15)", image, rng)[0].shape == (15, 20, 3)
    assert run("resize(15)", image.swapaxes(0, 1), rng)[0].shape == (20, 15, 3)
    assert run("resize((15, 10))", image, rng)[0].shape == (15, 10, 3)


def test_no_view_takes_more_memory_than_a_image_may(rng):
    with pytest.raises(ValueError, match="a view claims 100000 x 100000 pixels"):
        transforms.make(["decode|random_resized_crop(100000)"])
    thin = np.zeros((1, 60_000, 3), np.uint8)
    with pytest.raises(ValueError, match="60000 x 1 pixels, resized, claims 13440000 x 224"):
        run("resize(224)|center_crop(224)", thin, rng)


def test_resize_antialiases():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    small, _ = run("resize((8, 8))", stripes, None)
    assert abs(small.astype(int) - 127).max() <= 16


@pytest.mark.parametrize("size", [(13, 21), (47, 33)])
def test_a_fast_resize_is_at_most_a_level_off(image, size):
    pillow = Image.fromarray(image)
    exact = np.asarray(transforms.resizer("bilinear")(pillow, size)).astype(int)
    difference = np.abs(np.asarray(transforms.resizer("bilinear", fast=True)(pillow, size)) - exact)
    assert difference.max() == 1
    assert difference.mean() < 0.3


def test_a_fast_resize_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr(transforms, "cykooz_resizer", None)
    with pytest.raises(ValueError, match=r"jaxequi\[fast\]"):
        transforms.make(["decode|random_resized_crop(8, fast=True)"])


def test_center_crop_takes_the_middle_and_pads(image, rng):
    np.testing.assert_array_equal(run("center_crop(10)", image, rng)[0], image[10:20, 15:25])
    padded, _ = run("center_crop((34, 40))", image, rng)
    np.testing.assert_array_equal(padded[2:32], image)
    assert padded[:2].max() == padded[32:].max() == 0


def test_flip_mirrors_half_the_time(image):
    flips = 0
    for seed in range(400):
        view, drawn = run("flip", image, np.random.default_rng(seed))
        flipped = bool(drawn["flip"][0])
        np.testing.assert_array_equal(view, image[:, ::-1] if flipped else image)
        flips += flipped
    assert abs(flips - 200) < 50


def test_pad_crop_moves_by_up_to_the_padding(image):
    places = set()
    for seed in range(300):
        view, drawn = run("pad_crop(1)", image, np.random.default_rng(seed))
        down, right = (int(x) for x in drawn["pad_crop"])
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        np.testing.assert_array_equal(view, padded[down : down + 30, right : right + 40])
        places.add((down, right))
    assert len(places) == 9


def test_rotate90_is_counter_clockwise(rng):
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    view, drawn = run("rotate90", square, rng)
    np.testing.assert_array_equal(view, np.rot90(square, int(drawn["rotate90"][0])))


def test_rotate_by_a_right_angle_is_counter_clockwise(image):
    square = image[:, :30]
    turned = transforms.rotated(Image.fromarray(square), 90.0)
    np.testing.assert_array_equal(turned, np.rot90(square))


def test_rotate_keeps_its_range(image):
    angles = [
        run("rotate((-30, 60))", image, np.random.default_rng(s))[1]["rotate"][0]
        for s in range(300)
    ]
    assert min(angles) >= -30
    assert max(angles) <= 60
    assert abs(np.mean(angles) - 15) < 6


def test_a_crop_is_cut_out_before_it_is_resized(image, rng):
    view, drawn = run("random_resized_crop(16, filter='bicubic')", image, rng)
    top, left, h, w = (drawn["random_resized_crop"] * [30, 40, 30, 40]).round().astype(int)
    cut = Image.fromarray(image[top : top + h, left : left + w])
    expected = np.asarray(cut.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(view, expected)


def test_crop_boxes_follow_the_rule():
    """Area uniform and log aspect uniform where every draw fits."""
    rng = np.random.default_rng(0)
    boxes = np.array(
        [transforms.crop_box(1000, 1000, (0.1, 0.5), (3 / 4, 4 / 3), 10, rng) for _ in range(4000)]
    )
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    aspect = np.log(boxes[:, 3] / boxes[:, 2])
    assert abs(area.mean() - 0.3) < 0.006
    assert abs(area.std() - 0.4 / math.sqrt(12)) < 0.004
    assert abs(aspect.mean()) < 0.012
    assert abs(aspect.std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.006
    assert (boxes[:, 0] + boxes[:, 2] <= 1000).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 1000).all()


def test_a_crop_that_never_fits_falls_back_to_the_middle(rng):
    # A strip 10 times as wide as high: no box of nearly full area has an aspect up to 4/3.
    assert transforms.crop_box(100, 1000, (0.9, 1.0), (3 / 4, 4 / 3), 10, rng) == (0, 433, 100, 133)
    assert transforms.crop_box(1000, 100, (0.9, 1.0), (3 / 4, 4 / 3), 10, rng) == (433, 0, 133, 100)


def test_the_clipped_rule_draws_once(rng):
    top, left, h, w = transforms.clipped_box(100, 1000, (0.9, 1.0), (1.0, 1.0), rng)
    assert (top, h) == (0, 100)
    assert 300 <= w <= 316
    assert 0 <= left <= 1000 - w


def test_one_image_feeds_two_pipes_and_is_decoded_once(image, rng, monkeypatch):
    calls = []
    decode = transforms.decoding.decode
    monkeypatch.setattr(transforms.decoding, "decode", lambda x: calls.append(1) or decode(x))
    transform = transforms.make(["decode|center_crop(8)", "decode|resize((8, 8))|flip"])
    record = transform({"image": [image], "label": 1}, rng)
    assert len(calls) == 1
    assert record["views"].shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(record["views"][0], image[11:19, 16:24])
    assert record["aug"]["flip"].shape == (2, 1)
    assert record["aug"]["flip"][0] == 0  # the first pipe has no such op


def test_several_images_go_through_one_pipe_or_each_through_its_own(image, rng):
    pair = {"image": [image, image[::-1]], "label": 0}
    both = transforms.make(["decode|center_crop(4)"])(pair, rng)["views"]
    np.testing.assert_array_equal(both[0], image[13:17, 18:22])
    assert both.shape == (2, 4, 4, 3)
    own = transforms.make(["decode|center_crop(4)", "decode|resize((4, 4))"])(pair, rng)["views"]
    assert own.shape == (2, 4, 4, 3)
    with pytest.raises(ValueError, match="3 images and 2 pipes"):
        transforms.make(["decode"] * 2)({"image": [image] * 3, "label": 0}, rng)


def test_an_op_twice_in_a_pipe_has_two_keys(image, rng):
    record = transforms.make(["decode|flip|flip(1.0)"])({"image": [image]}, rng)
    assert list(record["aug"]) == ["flip", "flip_2"]
    assert record["aug"]["flip_2"] == 1


@pytest.mark.parametrize(
    ("pipe", "words"),
    [
        ("decode|random_resize_crop(8)", "Did you mean 'random_resized_crop'"),
        ("resize(8)|decode", "begins with `decode`"),
        ("decode|decode", "begins with `decode`"),
        ("resize(8, side=3)", "unexpected keyword argument 'side'"),
        ("resize(__import__('os'))", "cannot read"),
        ("resize(3", "cannot read"),
        ("decode||flip", "cannot read"),
        ("resize(0)", "above 0"),
        ("resize(8, filter='cubic')", "no filter 'cubic'"),
        ("resize(8, filter='bicubic', fast=True)", "not for 'bicubic'"),
        ("random_resized_crop(8, scale=(0, 1))", "0 < low"),
        ("random_resized_crop(8, ratio=(2, 1))", "0 < low"),
        ("flip(p='often')", "a probability"),
    ],
)
def test_a_pipe_that_cannot_be_read_is_refused(pipe, words):
    with pytest.raises(ValueError, match=words):
        transforms.make([pipe])


def test_views_of_unequal_sizes_are_refused(image, rng):
    with pytest.raises(ValueError, match="unequal sizes"):
        transforms.make(["decode", "decode|center_crop(3)"])({"image": [image]}, rng)
