"""Encoded pictures to RGB images: simplejpeg where it can, Pillow for the rest, equal pixels.

simplejpeg (extra `fast`) reads the bytes in place and is a quarter faster. Colour types that it
does not convert as Pillow does (CMYK, YCCK) and every other format go to Pillow, whatever the
file is called: ImageNet has a PNG named .JPEG. Like the references' loaders, neither turns a
picture by its EXIF orientation.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from jaxequi.data.errors import DataError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_PIXELS = 1 << 28  # a header that claims more is taken for a broken or hostile file


def _from_array(image: np.ndarray) -> Image.Image:
    """Make RGB of u8[H, W], u8[H, W, 1], u8[H, W, 3] or u8[H, W, 4] (alpha is dropped)."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise DataError(
            f"a picture must be u8[H, W] or u8[H, W, C], not {image.dtype}{image.shape}"
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] not in (1, 3, 4):
        raise DataError(f"a picture has 1, 3 or 4 channels, not {image.shape[-1]}")
    if image.shape[-1] == 1:
        return Image.fromarray(image[..., 0]).convert("RGB")
    return Image.fromarray(image[..., :3])


def _simplejpeg(data: bytes) -> Image.Image | None:
    """Decode with simplejpeg, or return None where Pillow must judge."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or height * width > MAX_PIXELS:
            return None
        # with the fourth byte that Pillow keeps for itself, its copy is half as dear
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGBX")
        return Image.frombytes("RGB", (width, height), pixels, "raw", "RGBX")
    except ValueError:
        return None


def _pillow(data: bytes) -> Image.Image:
    """Decode with Pillow; 16-bit grey keeps its high byte, where Pillow would clip at 255."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"the header claims {image.width} x {image.height} pixels")
            if image.mode.startswith("I;16"):
                return _from_array((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert("RGB")


def decode(picture: bytes | np.ndarray) -> Image.Image:
    """Decode an encoded file to an RGB image; an array u8[H, W] or u8[H, W, C] becomes one too.

    Raises:
      DataError: an empty, truncated or unreadable file.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if not picture:
        raise DataError("the file is empty (0 bytes)")
    if simplejpeg is not None and picture[:2] == b"\xff\xd8":
        image = _simplejpeg(picture)
        if image is not None:
            return image
    try:
        return _pillow(picture)
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise many types on broken files
        raise DataError(
            f"cannot decode {len(picture)} bytes that start with {picture[:8]!r}: {error}"
        ) from error
