"""Encoded images to RGB images: simplejpeg where it can, Pillow for the rest, equal pixels.

simplejpeg (extra `fast`) reads the bytes in place and is a quarter faster. Colour types that it
does not convert as Pillow does (CMYK, YCCK) and every other format go to Pillow, whatever the
file is called: ImageNet has a PNG named .JPEG. Like the references' loaders, neither turns a
image by its EXIF orientation.

Formats are those of `FORMATS` alone, as one of Pillow's others starts a program (EPS: Ghostscript).
An image that is cut short is an error, never a grey half.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from jaxequi.data.errors import DataError, shown

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# A header that claims more is taken for a broken or hostile file; Pillow warns of as many, too.
MAX_PIXELS = 89_478_485
# A progressive JPEG has ten or so; each costs a pass over all pixels, however few bytes it takes.
MAX_SCANS = 100


def check_size(width: int, height: int, what: str = "the header") -> None:
    """Raise `DataError` for no pixel, or more of them than an image may have."""
    if not width * height:
        raise DataError(f"{what} claims {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise DataError(f"{what} claims {width} x {height} pixels, more than {MAX_PIXELS:,}")


def _has_endless_scans(jpeg: bytes) -> bool:
    """Whether a JPEG that is progressive has over `MAX_SCANS`; others have one for each colour."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and at + 4 <= len(jpeg):
        kind = jpeg[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame, not its tables
            if kind not in (0xC2, 0xC6, 0xCA, 0xCE):
                return False
            break
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg.count(b"\xff\xda") > MAX_SCANS


def open_image(data: bytes) -> Image.Image:
    """Open an encoded file in one of `FORMATS` with Pillow; its pixels are still to be loaded.

    Raises:
      DataError: it is in none of them, claims too many pixels, or is a PNG whose checksums are
        wrong or missing.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packages switch it on, for the whole process
    if data[:2] == b"\xff\xd8" and _has_endless_scans(data):
        raise DataError(f"a JPEG of more than {MAX_SCANS} scans")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size)
        if isinstance(image, PngImagePlugin.PngImageFile):
            image.verify()  # of its checksums; then the image has to be opened again
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        return image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"the header claims too much: {error}") from error
    except Exception as error:  # Pillow's plugins raise many types on broken files
        raise _undecodable(data, error) from error


def _undecodable(data: bytes, error: Exception) -> DataError:
    return DataError(
        f"cannot decode {len(data)} bytes that start with {data[:8]!r}: {shown(error)}. Images "
        f"are {', '.join(FORMATS)}, whole."
    )


def _from_array(image: np.ndarray) -> Image.Image:
    """Make RGB of u8[H, W], u8[H, W, 1], u8[H, W, 3] or u8[H, W, 4] (alpha is dropped)."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise DataError(f"an image must be u8[H, W] or u8[H, W, C], not {image.dtype}{image.shape}")
    if image.ndim == 2:
        image = image[..., None]
    check_size(image.shape[1], image.shape[0], "an array")
    if image.shape[-1] not in (1, 3, 4):
        raise DataError(f"an image has 1, 3 or 4 channels, not {image.shape[-1]}")
    if image.shape[-1] == 1:
        return Image.fromarray(image[..., 0]).convert("RGB")
    return Image.fromarray(image[..., :3])


def _simplejpeg(data: bytes) -> Image.Image | None:
    """Decode with simplejpeg, or return None where Pillow must judge."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or height * width > MAX_PIXELS:
            return None
        if _has_endless_scans(data):
            return None
        # with the fourth byte that Pillow keeps for itself, its copy is half as dear
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGBX")
        return Image.frombytes("RGB", (width, height), pixels, "raw", "RGBX")
    except (ValueError, MemoryError):
        return None


def _pillow(data: bytes) -> Image.Image:
    """Decode with Pillow; 16-bit grey keeps its high byte, where Pillow would clip at 255."""
    with open_image(data) as image:
        try:
            if image.mode.startswith("I;16"):
                return _from_array((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")
        except Exception as error:  # as above
            raise _undecodable(data, error) from error


def decode(encoded: bytes | np.ndarray) -> Image.Image:
    """Decode an encoded file to an RGB image; an array u8[H, W] or u8[H, W, C] becomes one too.

    Raises:
      DataError: an empty, truncated or unreadable file, in none of `FORMATS`, or too large.
    """
    if isinstance(encoded, np.ndarray):
        return _from_array(encoded)
    if not encoded:
        raise DataError("the file is empty (0 bytes)")
    if simplejpeg is not None and encoded[:2] == b"\xff\xd8":
        image = _simplejpeg(encoded)
        if image is not None:
            return image
    return _pillow(encoded)
