"""The composition: shapes, parameters, pairing of pipes and views, mixing, and its laws."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi import augment
from jaxequi.augment import geometry, mixture
from jaxequi.train import mesh as meshes

BATCH = {
    "views": np.random.default_rng(0).integers(0, 256, (4, 2, 9, 9, 3), dtype=np.uint8),
    "label": np.array([0, 1, 2, 0]),
    "aug": {"flip": np.ones((4, 2, 1), np.float32)},
}
FULL = (
    "color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)|grayscale(0.2)|gaussian_blur(0.5)|normalise('cifar')"
)


def test_normalise_is_the_arithmetic_of_torchvision(keys):
    out = augment.make(["normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))"])(next(keys), BATCH)
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.3, 0.4])
    expected = (BATCH["views"].astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(out["views"], expected, rtol=1e-6, atol=1e-6)
    assert out["views"].dtype == jnp.float32
    np.testing.assert_array_equal(out["label"], BATCH["label"])


def test_what_was_drawn_is_returned_beside_what_the_host_drew(keys):
    out = jax.eval_shape(augment.make([FULL]), next(keys), BATCH)
    shapes = {name: x.shape for name, x in out["aug"].items()}
    assert shapes == {
        "flip": (4, 2, 1),
        "color_jitter": (4, 2, 6),
        "grayscale": (4, 2, 1),
        "gaussian_blur": (4, 2, 2),
    }


def test_each_view_can_have_its_own_pipe(keys):
    out = augment.make(["solarize(1.0)|normalise('unit')", "normalise('unit')"])(next(keys), BATCH)
    levels = BATCH["views"].astype(int)
    inverted = np.where(levels >= 128, 255 - levels, levels)
    np.testing.assert_allclose(out["views"][:, 0] * 255, inverted[:, 0], atol=1e-3)
    np.testing.assert_allclose(out["views"][:, 1] * 255, levels[:, 1], atol=1e-3)
    np.testing.assert_array_equal(out["aug"]["solarize"][:, :, 0], [[1, 0]] * 4)


def test_draws_depend_on_the_key_alone(keys):
    run = jax.jit(augment.make([FULL, FULL]))
    key = next(keys)
    first, again, other = run(key, BATCH), run(key, BATCH), run(next(keys), BATCH)
    np.testing.assert_array_equal(first["views"], again["views"])
    assert (first["views"] != other["views"]).any()
    jitter = first["aug"]["color_jitter"][..., 5]
    assert len(np.unique(jitter)) > 1


@pytest.mark.parametrize("pipes", [[FULL], [FULL, "normalise('unit')"]])
def test_each_of_eight_devices_augments_its_own_images_as_one_would(pipes, keys):
    batch = {"views": np.tile(BATCH["views"], (4, 1, 1, 1, 1))}
    mesh = meshes.make_mesh(4, 2)
    whole = meshes.replicated(mesh)
    run = augment.make(pipes)
    key = next(keys)
    alone = jax.jit(run)(key, batch)
    with meshes.known(mesh):
        program = jax.jit(run, in_shardings=(whole, meshes.over_batch(mesh))).lower(key, batch)
    many = (program := program.compile())(key, meshes.to_global(mesh, batch, len(batch["views"])))
    np.testing.assert_allclose(many["views"], alone["views"], atol=1e-5)
    for name, drawn in alone["aug"].items():
        np.testing.assert_array_equal(many["aug"][name], drawn)
    assert many["views"].sharding.shard_shape(many["views"].shape)[0] == len(batch["views"]) // 8
    text, side = program.as_text(), batch["views"].shape[2]
    found = {int(n) for n in re.findall(rf"\w\[(\d+),(?:\d,)?{side},{side},3\]", text)}
    images = math.prod(batch["views"].shape[:2])
    assert found
    assert max(found) <= images // 8  # no device holds more


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: augment.make(["color_jiter(0.4)|normalise('cifar')"]), "'color_jitter'"),
        (lambda: augment.make(["grayscale(0.2)"]), "must hold `normalise` once"),
        (lambda: augment.make(["normalise('imagnet')"]), "Did you mean 'imagenet'"),
        (lambda: augment.make(["normalise((0, 0, 0), (1, 1, 0))"]), "three means"),
        (lambda: augment.make([]), "at least one view"),
        (
            lambda: augment.make(["normalise('unit')"], "mixing()")(jax.random.key(0), BATCH),
            "mixing of None classes",
        ),
        (
            lambda: augment.make(["normalise('unit')"], "mixing(3)", 4)(jax.random.key(0), BATCH),
            "mixing of 3 classes, and the data have 4",
        ),
        (lambda: augment.make(["normalise('unit')"], "mixing(3)|mixing(3)"), "mixed once"),
        (
            lambda: augment.make(["normalise('unit')"] * 3)(jax.random.key(0), BATCH),
            "2 views and 3",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_rotated_batch_is_turned_counter_clockwise():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 7)), jnp.float32)
    turned = geometry.rotate_batch().apply(x, jnp.array([90.0]))
    np.testing.assert_allclose(turned, jnp.rot90(x, 1, (1, 2)), atol=1e-5)


def test_one_angle_turns_the_whole_batch(keys):
    op = geometry.rotate_batch(45.0, 20.0)
    angles = np.array([np.unique(op.sample(next(keys), 5)) for _ in range(400)])
    assert angles.shape == (400, 1)
    assert abs(angles.mean() - 45) < 4
    assert abs(angles.std() - 20) < 3


def test_circle_crop_keeps_the_disc():
    out = geometry.circle_crop().apply(jnp.ones((3, 5, 5)), jnp.zeros(0))
    corners = np.array(
        [[0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1] * 5, [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]]
    )
    np.testing.assert_array_equal(out[0], corners)


def test_shift_repeats_the_edge(keys):
    op = geometry.shift(1)
    places = np.asarray(op.sample(next(keys), 500))
    assert len({tuple(p) for p in places}) == 9
    x = jnp.arange(9.0).reshape(1, 3, 3)
    np.testing.assert_array_equal(
        op.apply(x, jnp.array([0.0, 2.0]))[0], [[1, 2, 2], [1, 2, 2], [4, 5, 5]]
    )


def test_random_erasing_follows_its_rule(keys):
    op = geometry.random_erasing(0.25)
    drawn = np.asarray(jax.jit(op.sample, static_argnums=1)(next(keys), 20_000))
    assert abs(drawn[:, 0].mean() - 0.25) < 0.015
    area, aspect = drawn[:, 3] * drawn[:, 4], drawn[:, 3] / drawn[:, 4]
    assert area.min() >= 0.02
    assert area.max() <= 1 / 3
    assert abs(np.log(aspect).mean()) < 0.02
    assert drawn[:, 3:5].max() < 1
    x = jnp.zeros((3, 40, 40))
    out = np.asarray(op.apply(x, jnp.array([1, 0.5, 0.0, 0.25, 0.5, 7], jnp.float32)))
    box = out[:, 15:25, :20]
    assert (out != 0).sum() == (box != 0).sum() == 600
    assert abs(box.mean()) < 0.15
    assert abs(box.std() - 1) < 0.1
    np.testing.assert_array_equal(op.apply(x, jnp.zeros(6)), x)


def test_mixup_weighs_images_and_labels_alike(keys):
    mixed = jax.jit(mixture.mixing(3, mixup=0.8, smoothing=0.1))
    views = jnp.asarray(BATCH["views"], jnp.float32)
    out, target, share = mixed(next(keys), views, jnp.asarray(BATCH["label"]))
    np.testing.assert_allclose(out, share * views + (1 - share) * views[::-1], rtol=1e-5)
    np.testing.assert_allclose(target.sum(axis=1), 1, rtol=1e-6)
    hot = np.eye(3)[BATCH["label"]]
    expected = (share * hot + (1 - share) * hot[::-1]) * 0.9 + 0.1 / 3
    np.testing.assert_allclose(target, expected, rtol=1e-5)


def test_cutmix_pastes_a_box_whose_area_is_the_share(keys):
    mixed = jax.jit(mixture.mixing(3, cutmix=1.0))
    views = jnp.arange(4.0)[:, None, None, None, None] * jnp.ones((4, 1, 20, 16, 3))
    for _ in range(5):
        out, target, share = mixed(next(keys), views, jnp.asarray(BATCH["label"]))
        own = (out == views).mean(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(own, share, atol=1e-6)
        np.testing.assert_allclose(target[1, 1], share, atol=1e-6)


def test_mixing_switches_by_its_chances(keys):
    views = jnp.broadcast_to(jnp.arange(2.0)[:, None, None, None, None], (2, 1, 8, 8, 3))
    run = jax.jit(mixture.mixing(2, mixup=0.8, cutmix=1.0, switch=0.3, p=0.5))
    outs = [np.asarray(run(next(keys), views, jnp.arange(2))[0][0]) for _ in range(600)]
    mixed_up = np.mean([((x > 0) & (x < 1)).any() for x in outs])
    untouched = np.mean([(x == 0).all() for x in outs])
    assert abs(mixed_up - 0.35) < 0.07
    assert 0.5 - 0.07 < untouched < 0.5 + 0.07 + 0.05


def test_the_pipe_gives_targets(keys):
    run = augment.make(["normalise('unit')"], "mixing(3, mixup=1.0, partner='permuted')")
    out = run(next(keys), BATCH)
    assert out["target"].shape == (4, 3)
    assert out["aug"]["mixing"].shape == (4, 2, 1)
