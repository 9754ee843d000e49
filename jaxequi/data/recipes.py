"""What each published system does to its images, as pipes.

A recipe is the host pipe of each view (`data/transforms.py`), the device pipe of each view
(`jaxequi/augment`) and how examples are mixed. Flips and crops come first, on the host; they
commute with all that follows them here, so that the order of a reference's list is kept in effect
where its flip comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

JITTER = "color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)"
BYOL_JITTER = "color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8)"
IMAGENET = "normalise('imagenet')"
MAE_MIX = "mixing(mixup=0.8, cutmix=1.0, smoothing=0.1)"


class Recipe(NamedTuple):
    """Host pipes and device pipes, one a view (or one for all), and the mixing of examples."""

    views: tuple[str, ...]
    augment: tuple[str, ...]
    mix: str = ""


def _crop(size: int, low: float = 0.08, more: str = "") -> str:
    return f"decode|random_resized_crop({size}, scale=({low}, 1){more})|flip"


def _middle(size: int, shorter: int = 256, more: str = "") -> str:
    return f"decode|resize({shorter}{more})|center_crop({size})"


def imagenet(size: int = 224) -> Recipe:
    """Supervised training and linear evaluation: crop (0.08, 1), flip."""
    return Recipe((_crop(size),), (IMAGENET,))


def imagenet_eval(size: int = 224) -> Recipe:
    """Shorter side 256, centre crop."""
    return Recipe((_middle(size),), (IMAGENET,))


def imagenet_gcnn(size: int = 224) -> Recipe:
    """ImageNet of the group-equivariant networks: area (0.1, 1), aspect (4/5, 5/4), as DALI."""
    crop = f"random_resized_crop({size}, scale=(0.1, 1), ratio=(0.8, 1.25), attempts=100)"
    return Recipe((f"decode|{crop}|flip",), (IMAGENET,))


def imagenet_rotated(size: int = 224) -> Recipe:
    """The steerable networks' `--rot_data`: any angle after crop and flip."""
    return Recipe((f"{_crop(size)}|rotate((-180, 180))",), (IMAGENET,))


def imagenet_rotated_eval(size: int = 224) -> Recipe:
    """The same for validation: any angle, drawn anew each time, after the centre crop."""
    return Recipe((f"{_middle(size)}|rotate((-180, 180))",), (IMAGENET,))


def moco_v1(size: int = 224) -> Recipe:
    """Two views: crop (0.2, 1), grey 0.2, jitter of all by 0.4 always, flip."""
    device = f"grayscale(0.2)|color_jitter(0.4, 0.4, 0.4, 0.4)|{IMAGENET}"
    return Recipe((_crop(size, 0.2),) * 2, (device,))


def moco_v2(size: int = 224) -> Recipe:
    """Two views of `aug_plus`: crop (0.2, 1), jitter 0.8, grey 0.2, blur 0.5, flip; SimSiam too."""
    device = f"{JITTER}|grayscale(0.2)|gaussian_blur(0.5)|{IMAGENET}"
    return Recipe((_crop(size, 0.2),) * 2, (device,))


def byol(size: int = 224) -> Recipe:
    """Two unlike views: blur always in the first; blur 0.1 and solarize 0.2 in the second."""
    first = f"{BYOL_JITTER}|gaussian_blur(1.0)|grayscale(0.2)|{IMAGENET}"
    second = f"{BYOL_JITTER}|gaussian_blur(0.1)|grayscale(0.2)|solarize(0.2)|{IMAGENET}"
    return Recipe((_crop(size),) * 2, (first, second))


def byol_symmetric(size: int = 224) -> Recipe:
    """Two views: jitter 0.8, grey 0.2, blur 0.5, solarize 0.2."""
    device = f"{BYOL_JITTER}|grayscale(0.2)|gaussian_blur(0.5)|solarize(0.2)|{IMAGENET}"
    return Recipe((_crop(size),) * 2, (device,))


def mae_pretrain(size: int = 224) -> Recipe:
    """Bicubic crop (0.2, 1), flip."""
    return Recipe((_crop(size, 0.2, ", filter='bicubic'"),), (IMAGENET,))


def mae_finetune(size: int = 224) -> Recipe:
    """Bicubic crop, flip, RandAugment, erasing 0.25, mixup 0.8 or cutmix 1, smoothing 0.1."""
    host = _crop(size, more=", filter='bicubic'") + "|rand_augment_mae"
    return Recipe((host,), (f"{IMAGENET}|random_erasing(0.25)",), MAE_MIX)


def mae_linear(size: int = 224) -> Recipe:
    """Bicubic crop drawn once and cut to the image, flip."""
    return Recipe((_crop(size, more=", filter='bicubic', attempts=0"),), (IMAGENET,))


def mae_eval(size: int = 224) -> Recipe:
    """Shorter side size / 0.875 (the size itself above 224), bicubic, centre crop."""
    shorter = int(size / (224 / 256)) if size <= 224 else size
    return Recipe((_middle(size, shorter, ", filter='bicubic'"),), (IMAGENET,))


def cifar(size: int = 32, rotate: bool = False) -> Recipe:
    """CIFAR of the equivariant networks: pad 4 and crop, flip, with `rotate` quarter turns."""
    turn = "|rotate90" if rotate else ""
    host = f"decode|resize(({size}, {size}))|pad_crop(4)|flip{turn}"
    return Recipe((host,), ("normalise('cifar')",))


def cifar_eval(size: int = 32) -> Recipe:
    """Resize alone."""
    return Recipe((f"decode|resize(({size}, {size}))",), ("normalise('cifar')",))


def flowers(size: int = 224) -> Recipe:
    """Flowers-102: crop (0.08, 1), flip."""
    return imagenet(size)


def flowers_eval(size: int = 224) -> Recipe:
    """Shorter side 256, centre crop."""
    return imagenet_eval(size)


def pcam(size: int = 97, circle: bool = False, centre: bool = False) -> Recipe:
    """PatchCamelyon: no augmentation; `centre` keeps the middle 32 pixels, `circle` the disc."""
    host = "decode|center_crop(32)" if centre else "decode"
    disc = "|circle_crop" if circle else ""
    return Recipe((host,), (f"normalise('pcam'){disc}|resize({size})",))


def rotmnist(size: int = 28, shift: bool = False, bias: float | None = None) -> Recipe:
    """RotMNIST: upright, or with `bias` one angle a batch, N(45, bias) degrees.

    The uniform regime turns every image once: that is the source `rotated`.
    """
    moved = "|shift(1)" if shift else ""
    turned = "" if bias is None else f"|rotate_batch(45.0, {bias})"
    return Recipe((f"decode|resize(({size}, {size}))",), (f"normalise('rotmnist'){moved}{turned}",))


def ipirm(size: int = 32) -> Recipe:
    """IP-IRM's two views: crop (0.08, 1), flip, jitter 0.8, grey 0.2, OpenCV blur 0.5."""
    device = f"{JITTER}|grayscale(0.2)|gaussian_blur_3x3(0.5)|normalise('cifar')"
    return Recipe((_crop(size),) * 2, (device,))


def ipirm_eval() -> Recipe:
    """Nothing: STL is evaluated at 96 pixels."""
    return Recipe(("decode",), ("normalise('cifar')",))


def eqinv(size: int = 224) -> Recipe:
    """EqInv's two simple views."""
    return Recipe((_crop(size),) * 2, (IMAGENET,))


def eqinv_random_aug(size: int = 224) -> Recipe:
    """Two simple views, then two hard ones with RandAugment."""
    simple, hard = _crop(size), f"{_crop(size)}|rand_augment_eqinv"
    return Recipe((simple, simple, hard, hard), (IMAGENET,))


def eqinv_strong(size: int = 224) -> Recipe:
    """The baseline's `--strong_aug`."""
    device = f"{JITTER}|grayscale(0.2)|gaussian_blur(0.5)|{IMAGENET}"
    return Recipe((_crop(size, 0.2),), (device,))


def eqinv_mixup(size: int = 224) -> Recipe:
    """The baseline's `--mixup`: one share a batch, partners by a permutation."""
    return Recipe((_crop(size),), (IMAGENET,), "mixing(mixup=1.0, partner='permuted')")


def threedie(size: int = 256) -> Recipe:
    """3DIEBench: no augmentation; the views are stored ones."""
    return Recipe((f"decode|resize(({size}, {size}))",), ("normalise('threedie')",))


RECIPES: dict[str, Callable[..., Recipe]] = {
    function.__name__: function
    for function in (
        imagenet,
        imagenet_eval,
        imagenet_gcnn,
        imagenet_rotated,
        imagenet_rotated_eval,
        moco_v1,
        moco_v2,
        byol,
        byol_symmetric,
        mae_pretrain,
        mae_finetune,
        mae_linear,
        mae_eval,
        cifar,
        cifar_eval,
        flowers,
        flowers_eval,
        pcam,
        rotmnist,
        ipirm,
        ipirm_eval,
        eqinv,
        eqinv_random_aug,
        eqinv_strong,
        eqinv_mixup,
        threedie,
    )
}
