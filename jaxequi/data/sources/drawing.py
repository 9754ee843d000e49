"""Two images: a drawing without any symmetry, and the same turned by a quarter.

In place of the chess knight of `experiments/learning_unequivariance` ("Using and Abusing
Equivariance"): an outline that touches the borders, in grey levels 1 (ground) to 43 (line), which
are levels of the reference's palette and not of 255.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from jaxequi.data.errors import DataError
from jaxequi.data.sources.arrays import Arrays

GROUND, LINE = 1, 43
SIDE = 32  # of the drawing as it was drawn; other sizes are resampled
# a striped flag on a bent pole, x to the right and y down
OUTLINE = ((4, 31), (7, 12), (3, 0), (12, 3), (31, 2), (24, 9), (30, 17), (11, 15), (9, 31))
STRIPES = tuple(((x, 5), (x, 13)) for x in (13, 15, 17, 19))


def draw(size: int = SIDE) -> np.ndarray:
    """Draw the image: u8[size, size]."""
    canvas = Image.new("L", (SIDE, SIDE), GROUND)
    pen = ImageDraw.Draw(canvas)
    pen.line([*OUTLINE, OUTLINE[0]], fill=LINE, width=2)
    for stripe in STRIPES:
        pen.line(stripe, fill=LINE)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BILINEAR))


def make(split: str = "train", size: int = SIDE, copies: int = 1) -> Arrays:
    """Make the pair: label 0 as drawn, label 1 turned counter-clockwise by 90 degrees.

    Args:
      split: any; there is one set.
      size: side in pixels.
      copies: of the pair, so that a batch divides over devices; the mean loss is the same.

    Raises:
      ValueError: fewer than 8 pixels, or no copy.
    """
    del split
    if size < 8 or copies < 1:
        raise DataError(
            f"size={size}, copies={copies}: take 8 pixels or more, and one copy or more."
        )
    image = draw(size)
    pair = np.stack([image, np.rot90(image)])
    labels = np.tile(np.arange(2), copies)
    return Arrays(np.tile(pair, (copies, 1, 1)), labels, ("as drawn", "turned"))
