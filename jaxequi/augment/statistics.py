"""From 8-bit levels to what a network sees."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxequi import names
from jaxequi.augment.op import Array, Op, fixed
from jaxequi.errors import Refusal

# Mean and standard deviation a channel of images scaled to [0, 1].
STATISTICS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Both CIFARs, and STL-10 in IP-IRM.
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "threedie": ((0.5016, 0.5037, 0.5060), (0.1030, 0.0999, 0.0969)),
    # Published for the scale [-1, 1]: (0.3949, 0.0696, 0.3760) and (0.4721, 0.5571, 0.4291).
    "pcam": ((0.69745, 0.5348, 0.6880), (0.23605, 0.27855, 0.21455)),
    # The deviation is that of the images' means, not of their pixels: white becomes 19.99.
    "rotmnist": ((0.13083715981299926,) * 3, (0.043476788322023646,) * 3),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalise(mean: str | Sequence[float], std: Sequence[float] | None = None) -> Op:
    """Map level x of a channel to (x / 255 - mean) / std.

    Args:
      mean: three numbers, or the name of a data set in `STATISTICS`, without `std` then.
      std: three numbers above 0.
    """
    mean, std = numbers(mean, std)
    centre = jnp.asarray(mean, jnp.float32)[:, None, None]
    scale = jnp.asarray(std, jnp.float32)[:, None, None]

    def apply(planes: Array) -> Array:
        return (planes / 255 - centre) / scale

    return fixed("normalise", apply)


def numbers(
    mean: str | Sequence[float], std: Sequence[float] | None = None
) -> tuple[Sequence[float], Sequence[float]]:
    """Look up or check what `normalise` takes: three means and three deviations.

    Raises:
      ValueError: a name that is not in `STATISTICS`, or other numbers.
    """
    if isinstance(mean, str):
        if mean not in STATISTICS:
            raise names.unknown("statistics", mean, STATISTICS)
        if std is not None:
            raise Refusal(f"the statistics {mean!r} bring their deviations; give no std")
        mean, std = STATISTICS[mean]
    if std is None or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise Refusal(f"normalise takes three means and three deviations, not {mean}, {std}")
    return mean, std
