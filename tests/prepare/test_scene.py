"""Meshes of the embedded objects, and the refusal where Blender is missing."""

import sys

import numpy as np
import pytest

from jaxequi.data import objects, raycast
from jaxequi.data.raycast import Parts
from jaxequi.groups import quaternions
from jaxequi.prepare import scene


def test_meshes_lie_on_their_parts_and_face_outward():
    parts = objects.build(seed=0, number=9)
    seen = []
    for slot in np.flatnonzero(parts.half.any(-1)):
        part = Parts(*(field[slot] for field in parts))
        vertices, faces = scene.part_mesh(part, slot)
        seen.append(vertices)
        turn = quaternions.to_matrix(part.rotation.astype(np.float64))
        unit = (vertices - part.center) @ turn / part.half
        is_ball = slot < raycast.ELLIPSOIDS
        radius = np.linalg.norm(unit, axis=-1) if is_ball else np.abs(unit)
        np.testing.assert_allclose(radius, 1, atol=1e-5)
        volume = sum(
            np.linalg.det(vertices[[face[0], face[i], face[i + 1]]] - part.center) / 6
            for face in faces
            for i in range(1, len(face) - 1)
        )
        whole = (4 / 3 * np.pi if is_ball else 8) * part.half.prod()
        assert whole * 0.98 < volume <= whole * 1.001
    points = np.concatenate(seen)
    size = np.linalg.norm(points.max(0) - points.min(0))
    np.testing.assert_allclose(size, objects.DIAGONAL, rtol=2e-3)


def test_without_blender_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bpy", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[render\]"'):
        scene.Scene(32)
