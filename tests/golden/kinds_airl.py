"""Cases of `airl` about images: Pillow's operations on the device, mixup and cutmix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from case import Case, close
from kinds_airl_files import FILES
from kinds_airl_mae import MAE
from kinds_airl_networks import NETWORKS
from kinds_airl_optimizers import OPTIMIZERS
from kinds_airl_steps import STEPS
from PIL import Image

from jaxequi.augment import blur, colour, mixture
from jaxequi.data import transforms


def _planes(image):
    return jnp.moveaxis(jnp.asarray(image), -1, 0).astype(jnp.float32)


def _levels(planes, expected, name, largest=2):
    actual = np.asarray(jnp.moveaxis(planes, 0, -1))
    difference = np.abs(actual - expected.astype(np.float32))
    assert difference.max() <= largest, f"{name}: {difference.max()} levels"


def pil_ops(case: Case):
    """Blur, solarize, luma, enhancement and hue within 2 levels; crops and resizes exactly."""
    image = case["in/img"]
    planes = _planes(image)
    for i, sigma in enumerate(case["in/sigma"]):
        largest = float(case["in/sigma"].max())
        _levels(blur.box_blur(planes, sigma, largest), case[f"out/blur_{i}"], f"blur {sigma}", 0)
    solarized = colour.solarize(1.0).apply(planes, jnp.ones(1))
    _levels(solarized, case["out/solarize"], "solarize", 0)
    np.testing.assert_array_equal(colour.luma(planes), case["out/gray"])
    for name in ("brightness", "contrast", "saturation"):
        for i, factor in enumerate(case["in/factor"]):
            changed = jax.jit(getattr(colour, name))(planes, factor)
            _levels(changed, case[f"out/{name}_{i}"], f"{name} {factor}", 1)
    for i, shift in enumerate(case["in/hue"]):
        changed = jax.jit(colour.shift_hue)(planes, shift)
        _levels(changed, case[f"out/hue_{i}"], f"hue {shift}")
    top, left, height, width = case["in/crop_ijhw"]
    cut = Image.fromarray(image).crop((left, top, left + width, top + height))
    for name in ("bilinear", "bicubic"):
        expected = case[f"out/crop_resize_{name}"]
        resized = transforms.resizer(name)(cut, expected.shape[:2])
        np.testing.assert_array_equal(resized, expected)


def mixup_losses(case: Case):
    """Mixed images and targets for drawn shares and boxes, and both losses on them."""
    classes = case.meta["num_classes"]
    for i, drawn in enumerate(case.meta["cases"]):
        views = jnp.moveaxis(jnp.asarray(case[f"in/x_{i}"]), 1, -1)
        label, logits = jnp.asarray(case[f"in/y_{i}"]), case[f"in/logits_{i}"]
        share = jnp.float32(drawn["drawn"]["lam0"])
        if drawn["drawn"]["cut"]:
            height, width = views.shape[1:3]
            top, bottom, left, right = drawn["drawn"]["bbox"]
            edges = jnp.array([top, bottom, left, right])
            mixed = mixture.paste(views, views[::-1], edges)
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            mixed = mixture.mix(views, views[::-1], share)
        target = mixture.targets(label, label[::-1], share, classes, drawn["ls"])
        close(jnp.moveaxis(mixed, -1, 1), case[f"out/x_{i}"], rtol=1e-5, atol=1e-6, name="x")
        close(target, case[f"out/target_{i}"], rtol=1e-5, atol=1e-6, name="target")
        smoothed = mixture.targets(label, label, jnp.float32(1), classes, drawn["ls"])
        for name, rows in (("soft_ce", target), ("ls_ce", smoothed)):

            def loss(x, rows=rows):
                return -jnp.mean(jnp.sum(rows * jax.nn.log_softmax(x), axis=-1))

            value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
            close(value, case[f"out/{name}_{i}"], rtol=1e-5, atol=1e-6, name=name)
            close(gradient, case[f"grad/{name}_{i}"], rtol=1e-5, atol=1e-6, name=name)


KINDS = {
    **FILES,
    **MAE,
    **NETWORKS,
    **OPTIMIZERS,
    **STEPS,
    "pil_ops": pil_ops,
    "mae_mixup_losses": mixup_losses,
}
