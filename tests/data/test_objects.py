"""Objects keep the promises of their classes: size, variety, and no rotational symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxequi.data import objects
from jaxequi.data.raycast import BOXES, ELLIPSOIDS, Parts, render

COUNT = len(objects.CLASS_NAMES)


def surface_points(parts):
    """Corners of the boxes and a dense set of points of the ellipsoids, f64[K, 3]."""
    corners = np.stack(np.meshgrid(*[(-1, 1)] * 3), -1).reshape(-1, 3)
    sphere = np.random.default_rng(0).normal(size=(4000, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    points = []
    for slot in np.flatnonzero(parts.half[:, 0]):
        unit = sphere if slot < ELLIPSOIDS else corners
        turned = Rotation.from_quat(parts.rotation[slot]).apply(unit * parts.half[slot])
        points.append(turned + parts.center[slot])
    return np.concatenate(points)


@pytest.mark.parametrize("number", range(2 * COUNT))
def test_an_object_is_centred_and_scaled_by_its_bounding_box(number):
    parts = objects.build(1, number)
    assert isinstance(parts, Parts)
    assert all(a.dtype == np.float32 and len(a) == ELLIPSOIDS + BOXES for a in parts)
    points = surface_points(parts)
    low, high = points.min(0), points.max(0)
    np.testing.assert_allclose(low + high, 0, atol=0.01)
    assert np.linalg.norm(high - low) == pytest.approx(objects.DIAGONAL, abs=0.01)
    # Whatever its rotation, it floats above the floor at -1 and keeps inside the image.
    radius = np.linalg.norm(points, axis=1).max()
    assert radius < 0.8
    assert np.tan(np.arcsin(radius / 2.5)) < np.tan(0.691111 / 2)
    used = parts.half[:, 0] > 0
    assert used.sum() >= 5
    assert np.all((parts.albedo[used] >= 0.02) & (parts.albedo[used] <= 1))


def test_an_object_is_a_function_of_seed_and_number():
    for number in (0, 7, 31):
        once, again = objects.build(5, number), objects.build(5, number)
        for a, b in zip(once, again):
            np.testing.assert_array_equal(a, b)
    same_class, other_seed = objects.build(5, 7 + COUNT), objects.build(6, 7)
    for other in (same_class, other_seed):
        for name in ("center", "half", "albedo"):
            difference = getattr(other, name) - getattr(objects.build(5, 7), name)
            assert np.abs(difference).max() > 0.01


def turned(rotations):
    """Latents that show an object in two poses, each after every one of the rotations."""
    poses = [Rotation.from_euler("xyz", a) for a in ([0.3, 0.2, 0.4], [-0.9, 0.5, -0.6])]
    return np.array(
        [[*(p * r).as_euler("xyz"), 0.6, 0.2, 1.0, 0.15] for p in poses for r in rotations]
    )


def least_change(parts):
    """The mean change of a pixel, in grey levels, under the rotation that changes least."""
    cube = Rotation.create_group("O")
    cube = cube[np.argsort(cube.magnitude())]
    images = render(parts, turned(cube), 32).astype(float).reshape(2, 24, -1)
    return np.abs(images[:, 1:] - images[:, :1]).mean(-1).max(0).min()


@pytest.mark.parametrize("label", range(COUNT))
def test_no_rotation_of_the_cube_leaves_a_class_the_same(label):
    assert least_change(objects.build(0, label)) > 1.5
    assert least_change(objects.build(0, label + COUNT)) > 1.5


def test_a_bare_box_would_fail_that_test():
    parts = Parts(*(np.zeros_like(a) for a in objects.build(0, 0)))
    parts.half[ELLIPSOIDS] = 0.3, 0.2, 0.4
    parts.rotation[:, 3] = 1
    parts.albedo[:] = 0.5
    assert least_change(parts) < 0.05


def test_classes_take_turns():
    labels = [objects.label(n) for n in range(3 * COUNT)]
    assert np.bincount(labels).tolist() == [3] * COUNT
    assert COUNT >= 10
    assert list(objects.CLASS_NAMES) == sorted(objects.CLASS_NAMES)
