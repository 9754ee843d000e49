"""Decoding: every colour type equals Pillow's pixels; broken files are named as such."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxequi.data import decoding

FILES = pathlib.Path(__file__).parent / "files"
NAMES = sorted(f.name for f in FILES.iterdir() if f.suffix in (".jpg", ".png", ".JPEG"))


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request, monkeypatch):
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decoding, "simplejpeg", None)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "grey16.png"])
def test_pixels_equal_pillows(decoder, name):
    image = np.asarray(decoding.decode((FILES / name).read_bytes()))
    assert image.shape == (40, 48, 3)
    expected = np.asarray(Image.open(FILES / name).convert("RGB"))
    np.testing.assert_array_equal(image, expected)


def test_16_bit_grey_keeps_the_high_byte(decoder):
    image = np.asarray(decoding.decode((FILES / "grey16.png").read_bytes()))
    expected = np.asarray(Image.open(FILES / "png_named.JPEG").convert("L"))
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=-1))


@pytest.mark.parametrize("kept", [0, 1, 3, 100, 1000, 1290])
def test_a_truncated_jpeg_is_an_error(decoder, kept):
    data = (FILES / "rgb.jpg").read_bytes()[:kept]
    with pytest.raises(ValueError, match=r"0 bytes|cannot decode"):
        decoding.decode(data)


def test_a_corrupt_png_is_an_error(decoder):
    data = bytearray((FILES / "palette.png").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    with pytest.raises(ValueError, match="cannot decode"):
        decoding.decode(bytes(data))


def test_a_header_that_claims_too_much_is_refused(decoder, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="claims 48 x 40 pixels"):
        decoding.decode((FILES / "rgb.jpg").read_bytes())


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays_become_rgb(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = np.asarray(decoding.decode(image))
    assert out.shape == (4, 5, 3)
    np.testing.assert_array_equal(out[..., 0], image if image.ndim == 2 else image[..., 0])


@pytest.mark.parametrize("image", [np.zeros((4, 5), np.float32), np.zeros((4, 5, 2), np.uint8)])
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="a picture"):
        decoding.decode(image)


def test_large_jpegs_are_equal_too(decoder):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for subsampling in (0, 1, 2):
        buffer = io.BytesIO()
        small.resize((333, 251)).save(buffer, "JPEG", quality=80, subsampling=subsampling)
        expected = np.asarray(Image.open(buffer).convert("RGB"))
        np.testing.assert_array_equal(decoding.decode(buffer.getvalue()), expected)
