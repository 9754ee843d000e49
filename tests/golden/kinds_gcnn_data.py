"""Cases of `gcnn` about images: RotMNIST's and PatchCamelyon's preparation, tensor resizing."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close

from jaxequi import augment
from jaxequi.augment import geometry
from jaxequi.data import decoding, recipes, transforms


def _prepared(recipe, images, mean, std):
    """Run a recipe without random steps on images; return f32[N, C, H, W].

    Its statistics are those of its data set; here they are `mean` and `std`.
    """
    statistics = f"normalise({tuple(mean)}, {tuple(std)})"
    device = [re.sub(r"normalise\([^)]*\)", statistics, pipe) for pipe in recipe.augment]
    transform = transforms.make(recipe.views)
    views = np.stack([transform({"image": [x]}, np.random.default_rng(0))["views"] for x in images])
    out = augment.make(device)(jax.random.key(0), {"views": views})
    return jnp.moveaxis(out["views"][:, 0], -1, 1)


def sizes(case: Case, prefix: str) -> list[int]:
    """Numbers behind a prefix of the case's outputs."""
    found = (re.fullmatch(rf"{prefix}(\d+)", name) for name in case.under("out"))
    return [int(match[1]) for match in found if match]


def mnist_pipeline(case: Case):
    """Resize and normalise at three sizes, and Pillow's rotation before them."""
    mean, std = case.meta["mean"], case.meta["std"]
    for size in sizes(case, "x"):
        actual = _prepared(recipes.rotmnist(size), case["in/images"], 3 * [mean], 3 * [std])
        # a size of its own is not resized; elsewhere rounding may differ by a grey level
        native = size == case["in/images"].shape[1]
        tolerance = 1e-5 if native else 1.01 / 255 / std
        close(actual[:, 0], case[f"out/x{size}"], rtol=1e-5, atol=tolerance, name=f"x{size}")
    for image, degrees, expected in zip(
        case["in/images"], case.meta["pil_angles"], case["out/pil_rotated_uint8"]
    ):
        turned = np.asarray(transforms.rotated(decoding.decode(image), degrees))[..., 0]
        assert np.abs(turned.astype(int) - expected).max() <= 1


def pcam_preprocess(case: Case):
    """Scale, normalise, cut the disc."""
    images = np.moveaxis(case["in/uint8_nchw"], 1, -1)
    size = images.shape[1]
    # the case has them for the scale [-1, 1]
    mean, std = (np.array(case.meta["mean"]) + 1) / 2, np.array(case.meta["std"]) / 2
    mean, std = mean.tolist(), std.tolist()
    for circle, name in ((False, "normalized"), (True, "normalized_circlecrop")):
        actual = _prepared(recipes.pcam(size, circle=circle), images, mean, std)
        close(actual, case[f"out/{name}"], rtol=2e-6, atol=2e-6, name=name)


def resize_bilinear(case: Case):
    """Bilinear resizing of floats, with and without antialiasing."""
    x = jnp.asarray(case["in/x"])
    for size in sizes(case, "noaa"):
        for name, antialias in (("noaa", False), ("aa", True)):
            op = geometry.resize(size, antialias)
            actual = jax.vmap(lambda planes, op=op: op.apply(planes, jnp.zeros(0)))(x)
            close(actual, case[f"out/{name}{size}"], rtol=1e-5, atol=1e-5, name=f"{name}{size}")


KINDS = {
    "mnist_pipeline": mnist_pipeline,
    "pcam_preprocess": pcam_preprocess,
    "resize_bilinear": resize_bilinear,
}
