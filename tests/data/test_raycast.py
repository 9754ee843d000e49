"""Images agree with geometry and light worked out by hand or ray by ray in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxequi.data import objects, raycast
from jaxequi.data.raycast import BOXES, ELLIPSOIDS, Parts, render

SIZE = 32
HALF_SCREEN = np.tan(0.691111 / 2)
PAINT = ("albedo", "fade")
CAMERA = 2.5 * np.array([0, np.sqrt(0.5), np.sqrt(0.5)])


def object_of(balls=(), boxes=(), albedo=0.0):
    """An object of (center, half) parts with axes along the world's."""
    parts = Parts(*(np.zeros((ELLIPSOIDS + BOXES, k), np.float32) for k in (3, 3, 4, 3, 1)))
    parts.rotation[:, 3] = 1
    parts.albedo[:] = albedo
    for start, given in ((0, balls), (ELLIPSOIDS, boxes)):
        for slot, (center, half) in enumerate(given, start):
            parts.center[slot], parts.half[slot] = center, half
    return parts


def latent(rotation=(0, 0, 0), floor=0.6, theta=0.0, phi=0.0, hue=0.1):
    return np.array([[*rotation, floor, theta, phi, hue]], np.float32)


def random_latents(count, seed=0):
    rng = np.random.default_rng(seed)
    high = [np.pi / 2] * 3 + [1, np.pi / 4, 2 * np.pi, 1]
    return rng.uniform([-np.pi / 2] * 3 + [0] * 4, high, (count, 7)).astype(np.float32)


def pixel_of(point):
    """Row and column, in units of the image, of a point of the world."""
    offset = np.asarray(point, float) - CAMERA
    depth = offset @ [0, -np.sqrt(0.5), -np.sqrt(0.5)]
    across, up = -offset[0], offset @ [0, -np.sqrt(0.5), np.sqrt(0.5)]
    return np.array([-up, across]) / (depth * HALF_SCREEN) / 2 + 0.5


def center_of_black(image):
    row, column = np.nonzero((image == 0).all(-1))
    assert len(row) > 3
    return np.array([row.mean() + 0.5, column.mean() + 0.5]) / len(image)


def covered(parts, angles):
    """Pixels all of whose rays meet the object, by plain float64 geometry."""
    turn = Rotation.from_euler("xyz", np.asarray(angles, np.float64))
    count = SIZE * raycast.SAMPLES
    screen = ((np.arange(count) + 0.5) / count * 2 - 1) * HALF_SCREEN
    across, down = np.meshgrid(screen, screen)
    half = np.sqrt(0.5)
    rays = np.stack([-across, -half + down * half, -half - down * half], -1).reshape(-1, 3)
    hit = np.zeros(len(rays), bool)
    for slot in np.flatnonzero(parts.half[:, 0]):
        to_part = (turn * Rotation.from_quat(parts.rotation[slot])).inv()
        origin = to_part.apply(CAMERA - turn.apply(parts.center[slot])) / parts.half[slot]
        along = to_part.apply(rays) / parts.half[slot]
        if slot < ELLIPSOIDS:
            closest = origin - along * (along @ origin / (along**2).sum(-1))[:, None]
            hit |= (closest**2).sum(-1) < 1
        else:
            with np.errstate(divide="ignore"):
                ends = np.stack([(-1 - origin) / along, (1 - origin) / along])
            hit |= ends.min(0).max(-1) < ends.max(0).min(-1)
    blocks = hit.reshape(SIZE, raycast.SAMPLES, SIZE, raycast.SAMPLES)
    return blocks.all((1, 3))


@pytest.mark.parametrize("number", range(len(objects.CLASS_NAMES)))
def test_outlines_agree_with_float64_geometry(number):
    black = {name: np.zeros_like(getattr(objects.build(3, number), name)) for name in PAINT}
    parts = objects.build(3, number)._replace(**black)
    latents = random_latents(6, seed=number)
    images = render(parts, latents, SIZE)
    for image, given in zip(images, latents):
        mask = covered(parts, given[:3])
        assert mask.sum() > 10
        # A ray that grazes an edge may fall to either side in float32.
        assert ((image == 0).all(-1) != mask).sum() <= 2


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ((0, 0, 0), (0.4, 0, 0)),
        ((0, 0, np.pi / 2), (0, 0.4, 0)),
        ((0, np.pi / 2, 0), (0, 0, -0.4)),
        ((np.pi / 2, 0, np.pi / 2), (0, 0.4, 0)),
        ((0, -np.pi / 2, np.pi / 2), (0, 0, 0.4)),  # y is turned before z, about fixed axes
    ],
)
def test_a_point_of_the_object_is_turned_and_projected(angles, expected):
    parts = object_of(balls=[((0.4, 0, 0), (0.12, 0.12, 0.12))])
    image = render(parts, latent(angles), 64)[0]
    np.testing.assert_allclose(center_of_black(image), pixel_of(expected), atol=0.012)


def test_the_nearer_part_is_seen():
    black, white = np.zeros(3), np.ones(3)
    parts = object_of(boxes=[((0, 0.3, 0.3), (0.2, 0.05, 0.2)), ((0, 0, 0), (0.3, 0.05, 0.3))])
    parts.albedo[ELLIPSOIDS], parts.albedo[ELLIPSOIDS + 1] = black, white
    middle = (slice(SIZE // 2 - 1, SIZE // 2 + 1),) * 2
    assert render(parts, latent(), SIZE)[0][middle].max() == 0
    turned = latent((0, 0, np.pi / 2)) * [1, 1, -2, 1, 1, 1, 1]  # by -pi: the white one in front
    assert render(parts, turned, SIZE)[0][middle].min() > 100


def display(albedo, irradiance):
    """Grey level of a matt surface."""
    radiance = albedo / np.pi * irradiance
    return np.round(255 * 1.25 * radiance / (radiance + 0.3))


SKY = 1.5 + 0.05 * np.pi  # the sun, and a dim sky


@pytest.mark.parametrize(("hue", "rgb"), [(0, "rgg"), (1 / 3, "grg"), (2 / 3, "ggr")])
def test_the_floor_has_its_hue(hue, rgb):
    image = render(object_of(), latent(floor=hue), SIZE)[0]
    albedo = {"r": 0.6, "g": 0.24}
    expected = [display(albedo[c], SKY) for c in rgb]
    np.testing.assert_array_equal(image[0, 0], expected)  # this corner is outside the cone


@pytest.mark.parametrize(("phi", "toward"), [(0, (1, 0)), (np.pi / 2, (0, 1)), (np.pi, (-1, 0))])
def test_the_spot_comes_from_its_latents(phi, toward):
    theta = 0.3
    green = latent(floor=0, theta=theta, phi=phi, hue=1 / 3)
    # The axis of the cone goes through the origin and meets the floor beyond it.
    beyond = [*(-np.tan(theta) * np.array(toward)), -1]
    row, column = (64 * pixel_of(beyond)).astype(int)
    irradiance = 0.8 * 500 / (4 * np.pi) * np.cos(theta) / (4 + 1 / np.cos(theta)) ** 2
    expected = [display(0.6, SKY), display(0.24, SKY + irradiance), display(0.24, SKY)]
    np.testing.assert_allclose(render(object_of(), green, 64)[0][row, column], expected, atol=1)


def test_an_object_is_lit_on_one_side_and_throws_a_shadow_on_the_other():
    ball = object_of(balls=[((0, 0, 0), (0.3, 0.3, 0.3))], albedo=0.7)
    theta = 0.4
    image = render(ball, latent(floor=0, theta=theta, phi=0, hue=1 / 3), 64)[0].astype(int)
    left, right = image[28:36, 24:30, 1], image[28:36, 34:40, 1]
    assert left.mean() > right.mean() + 15  # +x, where the light is, is left
    row, column = (64 * pixel_of([-np.tan(theta), 0, -1])).astype(int)
    assert image[row, column, 1] <= display(0.24, SKY)


@pytest.mark.parametrize(
    ("angles", "left", "toward"),
    [((0, 0, 0), "r", "g"), ((0, 0, np.pi / 2), "G", "r"), ((0, np.pi / 2, 0), "b", "g")],
)
def test_paint_fades_along_the_axes_of_the_object(angles, left, toward):
    # +x of the world is on the left of the image, +y toward the camera. Capital: a colour fades.
    box = object_of(boxes=[((0, 0, 0), (0.4, 0.4, 0.4))], albedo=0.5)
    box.fade[:] = 1.0
    plain = object_of(boxes=[((0, 0, 0), (0.4, 0.4, 0.4))], albedo=0.5)
    lit = latent(angles, theta=np.pi / 4, phi=-np.pi / 2)  # from behind: only the sun is seen
    points = {"left": (0.3, 0, 0.4), "right": (-0.3, 0, 0.4), "front": (0, 0.3, 0.4)}
    at = {name: tuple((64 * pixel_of(p)).astype(int)) for name, p in points.items()}
    painted, same = render(box, lit, 64)[0].astype(int), render(plain, lit, 64)[0].astype(int)
    more = {name: (painted - same)[where] for name, where in at.items()}

    def grows(name, colour):
        return more[name]["rgb".index(colour.lower())] * (-1 if colour.isupper() else 1)

    assert grows("left", left) > 10
    assert grows("right", left) < -10
    assert grows("front", toward) > 10


def test_light_from_above():
    box = object_of(boxes=[((0, 0, 0), (0.3, 0.3, 0.3))], albedo=0.7)
    image = render(box, latent(theta=0.0), 64)[0].astype(int)
    top, front = (64 * pixel_of(p) for p in ((0, 0, 0.3), (0, 0.3, 0)))
    assert image[int(top[0]), 32].sum() > image[int(front[0]), 32].sum() + 60
    # The sun's shadow lies under the box, soft: it ends without a step.
    bare = render(object_of(), latent(theta=np.pi / 4, phi=np.pi / 2), 64)[0].astype(int)
    shaded = render(box, latent(theta=np.pi / 4, phi=np.pi / 2), 64)[0].astype(int)
    column = (bare - shaded)[-8:, 32].sum(-1)
    assert column.max() > 20
    assert np.abs(np.diff((bare - shaded)[-1].sum(-1))).max() < 30


def test_a_image_does_not_depend_on_its_neighbours():
    numbers = np.arange(37) % 24
    parts = Parts(*map(np.stack, zip(*(objects.build(0, n) for n in numbers))))
    latents = random_latents(37)
    together = render(parts, latents, SIZE)
    order = np.random.default_rng(1).permutation(37)
    shuffled = render(Parts(*(a[order] for a in parts)), latents[order], SIZE)
    np.testing.assert_array_equal(shuffled, together[order])
    for i in (0, 17, 36):
        alone = render(Parts(*(a[i] for a in parts)), latents[i : i + 1], SIZE)
        np.testing.assert_array_equal(alone[0], together[i])


def test_one_object_serves_all_latents():
    latents = random_latents(3)
    parts = objects.build(0, 5)
    images = render(parts, latents, SIZE)
    assert images.shape == (3, SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    repeated = Parts(*(np.repeat(a[None], 3, axis=0) for a in parts))
    np.testing.assert_array_equal(render(repeated, latents, SIZE), images)
    assert render(parts, latents[:0], SIZE).shape == (0, SIZE, SIZE, 3)


def test_bad_input_is_refused():
    parts, good = objects.build(0, 0), latent()
    with pytest.raises(ValueError, match=r"latents must be \[N, 7\], got shape \(1, 6\)"):
        render(parts, good[:, :6], SIZE)
    with pytest.raises(ValueError, match=r"latents must be \[N, 7\], got shape \(7,\)"):
        render(parts, good[0], SIZE)
    with pytest.raises(ValueError, match="image_size must be at least 8, got 4"):
        render(parts, good, 4)
    with pytest.raises(ValueError, match=r"parts.half must be \[14, 3\] or \[1, 14, 3\]"):
        render(parts._replace(half=parts.half[:5]), good, SIZE)
