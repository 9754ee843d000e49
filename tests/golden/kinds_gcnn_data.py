"""Cases of `gcnn` about pictures: RotMNIST's and PatchCamelyon's preparation, tensor resizing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close

from jaxequi import augment
from jaxequi.augment import geometry
from jaxequi.data import decoding, recipes, transforms


def _prepared(recipe, pictures):
    """Run a recipe without random steps on pictures; return f32[N, C, H, W]."""
    transform = transforms.make(recipe.views)
    views = np.stack(
        [transform({"image": [x]}, np.random.default_rng(0))["views"] for x in pictures]
    )
    out = augment.make(recipe.augment)(jax.random.key(0), {"views": views})
    return jnp.moveaxis(out["views"][:, 0], -1, 1)


def mnist_pipeline(case: Case):
    """Resize and normalise at three sizes, and Pillow's rotation before them."""
    for size in (27, 28, 29):
        actual = _prepared(recipes.rotmnist(size), case["in/images"])
        level = 1 / 255 / 0.043476788322023646
        tolerance = 1e-5 if size == 28 else 1.01 * level
        close(actual[:, 0], case[f"out/x{size}"], rtol=1e-5, atol=tolerance, name=f"x{size}")
    for picture, degrees, expected in zip(
        case["in/images"], case.meta["pil_angles"], case["out/pil_rotated_uint8"]
    ):
        turned = np.asarray(transforms.rotated(decoding.decode(picture), degrees))[..., 0]
        assert np.abs(turned.astype(int) - expected).max() <= 1


def pcam_preprocess(case: Case):
    """Scale, normalise, cut the disc."""
    pictures = np.moveaxis(case["in/uint8_nchw"], 1, -1)
    size = pictures.shape[1]
    for circle, name in ((False, "normalized"), (True, "normalized_circlecrop")):
        actual = _prepared(recipes.pcam(size, circle=circle), pictures)
        close(actual, case[f"out/{name}"], rtol=2e-6, atol=2e-6, name=name)


def resize_bilinear(case: Case):
    """Bilinear resizing of floats, with and without antialiasing."""
    x = jnp.asarray(case["in/x"])
    for size in (31, 33, 35, 48):
        for name, antialias in (("noaa", False), ("aa", True)):
            op = geometry.resize(size, antialias)
            actual = jax.vmap(lambda planes, op=op: op.apply(planes, jnp.zeros(0)))(x)
            close(actual, case[f"out/{name}{size}"], rtol=1e-5, atol=1e-5, name=f"{name}{size}")


KINDS = {
    "mnist_pipeline": mnist_pipeline,
    "pcam_preprocess": pcam_preprocess,
    "resize_bilinear": resize_bilinear,
}
