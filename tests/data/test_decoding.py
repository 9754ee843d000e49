"""Decoding: every colour type equals Pillow's pixels; broken files are named as such."""

import io
import pathlib
import struct

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from jaxequi.data import decoding
from jaxequi.data.errors import DataError

FILES = pathlib.Path(__file__).parent / "files"
NAMES = sorted(f.name for f in FILES.iterdir() if f.suffix in (".jpg", ".png", ".JPEG"))


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request, monkeypatch):
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg", reason="simplejpeg is of the extra fast")
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
    with pytest.raises(ValueError, match="an image"):
        decoding.decode(image)


def test_large_jpegs_are_equal_too(decoder):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for subsampling in (0, 1, 2):
        buffer = io.BytesIO()
        small.resize((333, 251)).save(buffer, "JPEG", quality=80, subsampling=subsampling)
        expected = np.asarray(Image.open(buffer).convert("RGB"))
        np.testing.assert_array_equal(decoding.decode(buffer.getvalue()), expected)


FORMATS = {"JPEG": {}, "PNG": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}}
FORMATS |= {"WEBP": {"lossless": True}, "PPM": {}}


def encoded(name, size=(13, 9), **more):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, name, **FORMATS[name], **more)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow says before what it then refuses
@pytest.mark.parametrize("name", FORMATS)
def test_half_a_image_is_an_error_whatever_pillow_was_told(decoder, monkeypatch, name):
    data = encoded(name)
    assert decoding.decode(data).size == (13, 9)
    for kept in (len(data) // 2, len(data) * 9 // 10):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with pytest.raises(DataError, match=r"cannot decode \d+ bytes .* whole\."):
            decoding.decode(data[:kept])


def test_a_flipped_bit_in_a_png_is_found():
    data = encoded("PNG", size=(5, 4))
    rng = np.random.default_rng(0)
    for at in range(len(data) - 12):  # the last twelve say that this is the end
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(DataError, match=r"cannot decode|claims"):
            decoding.decode(bytes(spoilt))


def test_no_other_program_is_started(monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n%%EOF\n"
    with pytest.raises(DataError, match=r"cannot decode .*%!PS-Ado.*Images are JPEG, PNG"):
        decoding.decode(eps)
    assert not started


@pytest.mark.filterwarnings("ignore")  # Pillow says before what it then refuses
@pytest.mark.parametrize("side", [12_000, 40_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    """Few bytes of a bitmap that claims 144 million pixels, or more than Pillow itself takes."""
    data = bytearray(encoded("BMP"))
    data[18:26] = struct.pack("<ii", side, side)
    with pytest.raises(DataError, match=r"header claims|exceeds limit"):
        decoding.decode(bytes(data))


def test_a_image_without_pixels_is_refused():
    with pytest.raises(DataError, match="claims 0 x 9 pixels"):
        decoding.check_size(0, 9)
    with pytest.raises(DataError):
        decoding.decode(b"P6 0 9 255\n")
    with pytest.raises(DataError):
        decoding.decode(np.zeros((0, 9, 3), np.uint8))


def test_a_jpeg_of_endless_scans_is_refused(decoder):
    data = encoded("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(DataError, match="more than 100 scans"):
        decoding.decode(data[:last] + data[last:-2] * 101 + data[-2:])
