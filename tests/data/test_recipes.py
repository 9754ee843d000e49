"""Recipes: the order of their steps, and their probabilities and ranges over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import augment, pipes
from jaxequi.data import recipes, transforms

N = 1500  # images drawn on the host
M = 8000  # parameters drawn on the device

# recipe -> host steps of each view, device steps of each view: names in order
ORDER = {
    "imagenet": (["decode random_resized_crop flip"], ["normalise"]),
    "imagenet_eval": (["decode resize center_crop"], ["normalise"]),
    "imagenet_gcnn": (["decode random_resized_crop flip"], ["normalise"]),
    "imagenet_rotated": (["decode random_resized_crop flip rotate"], ["normalise"]),
    "imagenet_rotated_eval": (["decode resize center_crop rotate"], ["normalise"]),
    "moco_v1": (["decode random_resized_crop flip"] * 2, ["grayscale color_jitter normalise"]),
    "moco_v2": (
        ["decode random_resized_crop flip"] * 2,
        ["color_jitter grayscale gaussian_blur normalise"],
    ),
    "byol": (
        ["decode random_resized_crop flip"] * 2,
        [
            "color_jitter gaussian_blur grayscale normalise",
            "color_jitter gaussian_blur grayscale solarize normalise",
        ],
    ),
    "byol_symmetric": (
        ["decode random_resized_crop flip"] * 2,
        ["color_jitter grayscale gaussian_blur solarize normalise"],
    ),
    "mae_pretrain": (["decode random_resized_crop flip"], ["normalise"]),
    "mae_finetune": (
        ["decode random_resized_crop flip rand_augment_mae"],
        ["normalise random_erasing"],
    ),
    "mae_linear": (["decode random_resized_crop flip"], ["normalise"]),
    "mae_eval": (["decode resize center_crop"], ["normalise"]),
    "cifar": (["decode resize pad_crop flip"], ["normalise"]),
    "cifar_eval": (["decode resize"], ["normalise"]),
    "flowers": (["decode random_resized_crop flip"], ["normalise"]),
    "flowers_eval": (["decode resize center_crop"], ["normalise"]),
    "pcam": (["decode"], ["normalise resize"]),
    "rotmnist": (["decode resize"], ["normalise"]),
    "ipirm": (
        ["decode random_resized_crop flip"] * 2,
        ["color_jitter grayscale gaussian_blur_3x3 normalise"],
    ),
    "ipirm_eval": (["decode"], ["normalise"]),
    "eqinv": (["decode random_resized_crop flip"] * 2, ["normalise"]),
    "eqinv_random_aug": (
        ["decode random_resized_crop flip"] * 2
        + ["decode random_resized_crop flip rand_augment_eqinv"] * 2,
        ["normalise"],
    ),
    "eqinv_strong": (
        ["decode random_resized_crop flip"],
        ["color_jitter grayscale gaussian_blur normalise"],
    ),
    "eqinv_mixup": (["decode random_resized_crop flip"], ["normalise"]),
    "threedie": (["decode resize"], ["normalise"]),
}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_steps_are_those_of_the_reference_in_order(name):
    recipe = recipes.RECIPES[name]()
    host = [" ".join(op.name for op in transforms.parse(pipe)) for pipe in recipe.views]
    device = [" ".join(op.name for op in augment.parse(pipe)) for pipe in recipe.augment]
    assert (host, device) == ORDER[name]
    assert bool(recipe.mix) == (name in ("mae_finetune", "eqinv_mixup"))


def host_draws(recipe, count=N, size=(60, 60)):
    """Return what the host drew for each view of `count` images, {op: [count, V, k]}."""
    transform = transforms.make(recipe.views)
    record = {"image": [np.zeros((*size, 3), np.uint8)]}
    drawn = [transform(record, np.random.default_rng(s))["aug"] for s in range(count)]
    return {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}


def device_draws(recipe, view=0):
    ops = augment.parse(recipe.augment[view % len(recipe.augment)])
    return {op.name: np.asarray(op.sample(jax.random.key(1), M)) for op in ops if op.draws}


def near(values, chance):
    """Assert that a share of 0s and 1s has its chance, to five deviations."""
    assert abs(values.mean() - chance) <= 5 * np.sqrt(chance * (1 - chance) / len(values)) + 1e-9


@pytest.mark.parametrize(
    ("name", "low"),
    [("imagenet", 0.08), ("moco_v1", 0.2), ("moco_v2", 0.2), ("byol", 0.08), ("eqinv_strong", 0.2)],
)
def test_crops_and_flips_of_every_view(name, low):
    drawn = host_draws(recipes.RECIPES[name](16))
    for view in range(drawn["flip"].shape[1]):
        near(drawn["flip"][:, view, 0], 0.5)
        area = drawn["random_resized_crop"][:, view, 2] * drawn["random_resized_crop"][:, view, 3]
        assert low - 0.02 < area.min() < low + 0.03
        assert area.max() <= 1
    if drawn["flip"].shape[1] > 1:  # views are drawn independently
        assert abs(np.corrcoef(drawn["flip"][:, :2, 0].T)[0, 1]) < 0.13


# recipe, view -> chances of (jitter, grey, blur, solarize); widths of the jitter
PHOTOMETRY = [
    ("moco_v1", 0, 1.0, 0.2, None, None, (0.4, 0.4, 0.4, 0.4)),
    ("moco_v2", 0, 0.8, 0.2, 0.5, None, (0.4, 0.4, 0.4, 0.1)),
    ("byol", 0, 0.8, 0.2, 1.0, None, (0.4, 0.4, 0.2, 0.1)),
    ("byol", 1, 0.8, 0.2, 0.1, 0.2, (0.4, 0.4, 0.2, 0.1)),
    ("byol_symmetric", 0, 0.8, 0.2, 0.5, 0.2, (0.4, 0.4, 0.2, 0.1)),
    ("ipirm", 0, 0.8, 0.2, 0.5, None, (0.4, 0.4, 0.4, 0.1)),
    ("eqinv_strong", 0, 0.8, 0.2, 0.5, None, (0.4, 0.4, 0.4, 0.1)),
]


@pytest.mark.parametrize(("name", "view", "jitter", "grey", "blur", "sun", "widths"), PHOTOMETRY)
def test_chances_and_ranges_of_photometry(name, view, jitter, grey, blur, sun, widths):
    drawn = device_draws(recipes.RECIPES[name](), view)
    on = drawn["color_jitter"][:, 0]
    near(on, jitter)
    near(drawn["grayscale"][:, 0], grey)
    blurred = drawn.get("gaussian_blur", drawn.get("gaussian_blur_3x3"))
    assert (blurred is None) == (blur is None)
    if blur is not None:
        near(blurred[:, 0], blur)
        assert 0.1 <= blurred[:, 1].min() < blurred[:, 1].max() <= 2.0
    assert ("solarize" in drawn) == (sun is not None)
    if sun is not None:
        near(drawn["solarize"][:, 0], sun)
    factors = drawn["color_jitter"][on > 0, 1:5]
    for column, centre, width in zip(factors.T, (1, 1, 1, 0), widths):
        assert abs(np.abs(column - centre).max() - width) < 0.01 * width


@pytest.mark.parametrize(
    ("name", "view", "ops"),
    [("mae_finetune", 0, 15), ("eqinv_random_aug", 2, 15), ("eqinv_random_aug", 3, 15)],
)
def test_rand_augment_draws_two_of_fifteen_each_with_a_half(name, view, ops):
    drawn = host_draws(recipes.RECIPES[name](16))
    [key] = [k for k in drawn if k.startswith("rand_augment")]
    layers = drawn[key][:, view].reshape(-1, 4)
    near(layers[:, 0], 0.5)
    near((layers[:, 3] + 1) / 2, 0.5)
    counts = np.bincount(layers[:, 1].astype(int), minlength=ops)
    assert len(counts) == ops
    assert abs(counts - len(layers) / ops).max() < 5 * np.sqrt(len(layers) / ops)
    if name == "mae_finetune":
        assert abs(layers[:, 2].mean() - 9) < 0.06
        assert abs(layers[:, 2].std() - 0.5) < 0.05
        assert layers[:, 2].max() <= 10
    else:
        assert set(layers[:, 2].astype(int)) == set(range(1, 10))
        assert not drawn[key][:, :2].any()  # the simple views have none


def test_erasing_of_mae():
    near(device_draws(recipes.mae_finetune())["random_erasing"][:, 0], 0.25)


def test_cifar_with_quarter_turns():
    drawn = host_draws(recipes.cifar(32, rotate=True), size=(32, 32))
    counts = np.bincount(drawn["rotate90"][:, 0, 0].astype(int))
    assert abs(counts - N / 4).max() < 5 * np.sqrt(N / 4)
    places = drawn["pad_crop"][:, 0]
    assert places.min() == 0
    assert places.max() == 8


def test_rotations_cover_the_circle():
    drawn = host_draws(recipes.imagenet_rotated(8), count=400)
    angles = drawn["rotate"][:, 0, 0]
    assert angles.min() < -170
    assert angles.max() > 170


def test_the_biased_regime_of_rotmnist():
    op = augment.parse(recipes.rotmnist(28, shift=True, bias=40).augment[0])[-1]
    assert op.name == "rotate_batch"
    angles = np.array([op.sample(jax.random.key(s), 3)[:, 0] for s in range(300)])
    assert (angles == angles[:, :1]).all()
    assert abs(angles[:, 0].mean() - 45) < 12
    assert abs(angles[:, 0].std() - 40) < 9


@pytest.mark.parametrize(
    "name", ["byol", "mae_finetune", "pcam", "rotmnist", "ipirm", "eqinv_random_aug", "eqinv_mixup"]
)
def test_recipes_of_every_make_run(name):
    """On an image of 96 pixels: as published for PatchCamelyon, at 32 elsewhere."""
    size = {"pcam": (97,)}.get(name, (32,))
    recipe = recipes.RECIPES[name](*size)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    records = [
        transforms.make(recipe.views)({"image": [image], "label": 3}, np.random.default_rng(s))
        for s in range(2)
    ]
    batch = {
        "views": np.stack([r["views"] for r in records]),
        "label": np.array([3, 3]),
        "aug": jax.tree.map(lambda *x: np.stack(x), *[r["aug"] for r in records]),
    }
    out = jax.jit(augment.make(recipe.augment, recipe.mix, classes=10))(jax.random.key(0), batch)
    side = 97 if name == "pcam" else 32
    assert out["views"].shape == (2, len(recipe.views), side, side, 3)
    assert out["views"].dtype == jnp.float32
    assert bool(jnp.isfinite(out["views"]).all())


def test_pipes_of_recipes_are_literals():
    for make in recipes.RECIPES.values():
        for pipe in make().views:
            assert pipes.split(pipe)[0] == "decode"
