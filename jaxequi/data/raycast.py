"""Ray casting of small scenes in closed form, with the camera, floor and lights of 3DIEBench.

An object is a handful of ellipsoids and oriented boxes. It floats at the world origin over a
coloured floor, is turned by three angles, and is lit by a white sun and a coloured spot light:

    latent 0, 1, 2   rotation about the fixed axes x, y, z, in this order    [-pi/2, pi/2]
    latent 3         hue of the floor                                        [0, 1]
    latent 4, 5      polar angle and azimuth of the spot light               [0, pi/4], [0, 2 pi]
    latent 6         hue of the spot light                                   [0, 1]

Numbers are those of the data set's Blender script (facebookresearch/SIE, `data/main.py`). Light
is diffuse, bounces once off the floor, and throws shadows; what Blender integrates by sampling is
here a formula. The world has z up; the camera looks down from +y, so that +x is on its left.

What is the same for every ray is worked out in numpy; the rays are one jitted program.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal
from jaxequi.groups import quaternions

Array = jax.Array | np.ndarray
Vector = Sequence[Array] | Array  # components x, y, z: elementwise arithmetic, which XLA fuses

ELLIPSOIDS = 6  # the first slots of an object; the rest are boxes
BOXES = 8
NUM_LATENTS = 7
MIN_IMAGE_SIZE = 8

SAMPLES = 2  # rays a pixel along each side
MAX_CHUNK, MAX_CHUNK_RAYS = 16, 2**18  # of the images computed at once

CAMERA_DISTANCE, CAMERA_POLAR, FIELD_OF_VIEW = 2.5, np.pi / 4, 0.691111
FLOOR_HEIGHT, FLOOR_SATURATION, FLOOR_VALUE = -1.0, 0.6, 0.6
SUN_IRRADIANCE, SUN_HALF_ANGLE = 1.5, np.pi / 4
SPOT_DISTANCE, SPOT_WATTS, SPOT_SATURATION, SPOT_VALUE = 4.0, 500.0, 1.0, 0.8
SPOT_HALF_ANGLE, SPOT_BLEND = np.pi / 16, 0.15
SKY_RADIANCE = 0.05

_FLOOR = ELLIPSOIDS + 3 * BOXES  # surfaces: the ellipsoids, the boxes' pairs of faces, the floor
_TAG = 31  # bits that can number them, see _nearest
_FAR = np.float32(2**30)


class Parts(NamedTuple):
    """Objects made of parts: `ELLIPSOIDS` ellipsoids, then `BOXES` boxes, P in all.

    Leading axes `...` are objects. A slot whose `half` is zero is empty.
    """

    center: np.ndarray  # f32[..., P, 3]
    half: np.ndarray  # f32[..., P, 3], semi-axes of an ellipsoid, half the sides of a box
    rotation: np.ndarray  # f32[..., P, 4], quaternion (x, y, z, w) from the part's axes
    albedo: np.ndarray  # f32[..., P, 3], linear RGB in [0, 1], at the object's centre
    fade: np.ndarray  # f32[..., P, 1], what it gains a unit of length, red along the object's own
    #   x, green along its y and blue along its z; it stays in [0, 1]


_COMPONENTS = {"rotation": 4, "fade": 1}  # of the fields of `Parts`; the others have 3


def render(parts: Parts, latents: np.ndarray, image_size: int) -> np.ndarray:
    """Images of objects under given latents.

    The pixels of an image depend on its own object and latents alone, not on its neighbours.

    Args:
      parts: one object for all images, or N of them.
      latents: f32[N, 7].
      image_size: height and width in pixels.

    Returns:
      u8[N, image_size, image_size, 3], RGB.

    Raises:
      ValueError: latents or parts of another shape, or an image too small.
    """
    latents = np.asarray(latents, np.float32)
    if latents.ndim != 2 or latents.shape[1] != NUM_LATENTS:
        raise Refusal(f"latents must be [N, {NUM_LATENTS}], got shape {latents.shape}")
    if image_size < MIN_IMAGE_SIZE:
        raise Refusal(f"image_size must be at least {MIN_IMAGE_SIZE}, got {image_size}")
    count = len(latents)
    for name, array in parts._asdict().items():
        tail = (ELLIPSOIDS + BOXES, _COMPONENTS.get(name, 3))
        if np.shape(array) not in (tail, (count, *tail)):
            raise Refusal(
                f"parts.{name} must be {list(tail)} or {[count, *tail]}, got {np.shape(array)}"
            )
    if np.ndim(parts.center) == 2:
        parts = Parts(*(np.broadcast_to(a, (count, *np.shape(a))) for a in parts))

    device = jax.local_devices()[0]
    chunk = max(1, min(MAX_CHUNK, MAX_CHUNK_RAYS // (SAMPLES * image_size) ** 2))
    images = []
    for start in range(0, count, chunk):
        # A short last chunk is filled up by repeating its last image, so that one shape compiles.
        rows = np.minimum(np.arange(start, start + chunk), count - 1)
        scenes = jax.device_put(_pose(Parts(*(a[rows] for a in parts)), latents[rows]), device)
        images.append(_cast(*scenes, image_size))
    nothing = np.zeros((0, image_size, image_size, 3), np.uint8)
    return np.concatenate([nothing, *(np.asarray(image) for image in images)])[:count]


class _Posed(NamedTuple):
    """N objects in the world. Parts come first where they are scanned over."""

    to_unit: Array  # f32[P, N, 3, 3], takes a part to the unit ball or the cube [-1, 1]^3
    camera: Array  # f32[P, N, 3], where that map takes the camera
    light: Array  # f32[P, N, 3], where it takes the spot light
    center: Array  # f32[P, N, 3]
    outline: Array  # f32[P, N], area of the part seen from above, divided by pi
    own: Array  # f32[N, 3, 3], takes the world to the object's own axes
    surface: Array  # f32[N, surfaces, 13], upper triangle of a symmetric matrix, offset, albedo,
    #   fade: matrix @ point + offset is a normal, of any length, at a point of the surface


class _Lighting(NamedTuple):
    """What else differs from one of N images to the next."""

    floor: Array  # f32[N, 3], albedo
    spot: Array  # f32[N, 3], colour
    axis: Array  # f32[N, 3], unit vector from the origin to the spot light


def _pose(parts: Parts, latents: np.ndarray) -> tuple[_Posed, _Lighting]:
    latents = latents.astype(np.float64)
    theta, phi = latents[:, 4], latents[:, 5]
    axis = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    floor = _hsv_to_rgb(latents[:, 3], FLOOR_SATURATION, FLOOR_VALUE)
    spot = _hsv_to_rgb(latents[:, 6], SPOT_SATURATION, SPOT_VALUE)

    offset, half, rotation, albedo, fade = (np.swapaxes(a, 0, 1).astype(np.float64) for a in parts)
    paint = np.concatenate([albedo, fade], -1)
    turn = quaternions.from_euler_xyz(latents[:, :3])
    matrix = quaternions.to_matrix(turn)
    center = np.einsum("nij,pnj->pni", matrix, offset)
    axes = np.swapaxes(quaternions.to_matrix(quaternions.multiply(turn, rotation)), -1, -2)
    to_unit = axes / np.where(half > 0, half, np.inf)[..., None]
    camera = np.einsum("pnij,pnj->pni", to_unit, _camera()[0] - center)
    light = np.einsum("pnij,pnj->pni", to_unit, SPOT_DISTANCE * axis - center)
    faces = axes[..., 2] * half[..., [1, 2, 0]] * half[..., [2, 0, 1]]
    ellipse, hexagon = np.sqrt((faces**2).sum(-1)), 4 / np.pi * np.abs(faces).sum(-1)
    outline = np.concatenate([ellipse[:ELLIPSOIDS], hexagon[ELLIPSOIDS:]])

    surface = np.zeros((len(latents), _FLOOR + 1, 13))
    balls, boxes, plane = np.split(np.swapaxes(surface, 0, 1), [ELLIPSOIDS, _FLOOR])
    gradient = np.einsum("pnji,pnjk->pnik", to_unit[:ELLIPSOIDS], to_unit[:ELLIPSOIDS])
    balls[..., :6] = gradient[..., *np.triu_indices(3)]
    balls[..., 6:9] = -np.einsum("pnij,pnj->pni", gradient, center[:ELLIPSOIDS])
    balls[..., 9:] = paint[:ELLIPSOIDS]
    boxes[..., 6:9] = np.moveaxis(axes[ELLIPSOIDS:], 2, 1).reshape(-1, len(latents), 3)
    boxes[..., 9:] = np.repeat(paint[ELLIPSOIDS:], 3, axis=0)
    plane[..., 6:9] = [0, 0, 1]
    plane[..., 9:12] = floor

    posed = _Posed(to_unit, camera, light, center, outline, np.swapaxes(matrix, 1, 2), surface)
    return (
        _Posed(*(a.astype(np.float32) for a in posed)),
        _Lighting(*(a.astype(np.float32) for a in (floor, spot, axis))),
    )


def _hsv_to_rgb(hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
    ramp = np.mod(np.array([5, 3, 1]) + 6 * hue[..., None], 6)
    return value * (1 - saturation * np.clip(np.minimum(ramp, 4 - ramp), 0, 1))


def _camera() -> tuple[np.ndarray, np.ndarray]:
    """Position [3] of the camera, and rows [3, 3]: forward, right and up."""
    sine, cosine = np.sin(CAMERA_POLAR), np.cos(CAMERA_POLAR)
    position = CAMERA_DISTANCE * np.array([0, sine, cosine])
    return position, np.array([[0, -sine, -cosine], [-1, 0, 0], [0, -cosine, sine]])


def _rays(image_size: int) -> np.ndarray:
    """Directions f32[3, S] of all rays: one ray of each pixel, then the next of each."""
    forward, right, up = _camera()[1]
    count = image_size * SAMPLES
    screen = np.tan(FIELD_OF_VIEW / 2) * ((np.arange(count) + 0.5) / count * 2 - 1)
    across, down = np.meshgrid(screen, screen)
    rays = forward + across[..., None] * right - down[..., None] * up
    rays = rays.reshape(image_size, SAMPLES, image_size, SAMPLES, 3)
    return rays.transpose(4, 1, 3, 0, 2).reshape(3, -1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=2)
def _cast(posed: _Posed, lighting: _Lighting, image_size: int) -> Array:
    """Images u8[N, H, W, 3]; inside, S counts the rays of one image.

    Every pass over the parts is a scan: left to itself, XLA's CPU backend fuses a reduction over
    them into scalar code, which takes twenty times as long.
    """
    camera, direction = _camera()[0].astype(np.float32), _rays(image_size)

    # The floor lies behind every part.
    floor = _tagged((FLOOR_HEIGHT - camera[2]) / direction[2], _FLOOR)
    floor = jnp.broadcast_to(floor, (len(lighting.axis), direction.shape[1]))
    distance, surface = _nearest(posed, posed.camera, direction, floor)
    point = [c + distance * d for c, d in zip(camera, direction)]
    normal, albedo = _surface(posed, surface, point, direction)

    sun = SUN_IRRADIANCE * _sun(posed, point, normal) + np.pi * SKY_RADIANCE
    bounce = SUN_IRRADIANCE * (1 - normal[2]) / 2
    spot = SPOT_WATTS / (4 * np.pi) * _spot(posed, lighting.axis, point, normal)
    radiance = [
        a / np.pi * (sun + bounce * lighting.floor[:, i, None] + spot * lighting.spot[:, i, None])
        for i, a in enumerate(albedo)
    ]
    pixels = [r.reshape(-1, SAMPLES**2, image_size, image_size).mean(1) for r in radiance]
    return jnp.stack([jnp.round(255 * _tone(p)).astype(jnp.uint8) for p in pixels], axis=-1)


def _dot(a: Vector, b: Vector) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _smoothstep(x: Array) -> Array:
    x = jnp.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _meet_ball(start: Vector, along: Vector) -> tuple[Array, int]:
    """Where a ray from outside meets the unit ball, in lengths of `along`; else `_FAR`."""
    a = jnp.maximum(_dot(along, along), 1e-12)
    b = _dot(start, along)
    discriminant = b * b - a * (_dot(start, start) - 1)
    entry = (-b - jnp.sqrt(jnp.maximum(discriminant, 0))) / a
    return jnp.where((discriminant > 0) & (entry > 0), entry, _FAR), 0


def _meet_cube(start: Vector, along: Vector) -> tuple[Array, Array]:
    """Where a ray from outside meets the cube [-1, 1]^3, and the axis of that face."""
    inverse = [1 / jnp.where(jnp.abs(a) < 1e-6, 1e-6, a) for a in along]
    middle = [-s * i for s, i in zip(start, inverse)]
    reach = [jnp.abs(i) for i in inverse]
    enter = [m - r for m, r in zip(middle, reach)]
    leave = [m + r for m, r in zip(middle, reach)]
    entry = functools.reduce(jnp.maximum, enter)
    exists = (entry > 0) & (entry < functools.reduce(jnp.minimum, leave))
    last = jnp.where(enter[1] > enter[2], 1, 2)
    face = jnp.where(enter[0] > jnp.maximum(enter[1], enter[2]), 0, last)
    return jnp.where(exists, entry, _FAR), face


def _tagged(distance: Array, surface: Array | int) -> Array:
    """Distances whose lowest bits, worth 4e-6 of them, are the number of a surface."""
    bits = jax.lax.bitcast_convert_type(distance, jnp.int32) & ~_TAG
    return jax.lax.bitcast_convert_type(bits | surface, jnp.float32)


def _nearest(
    posed: _Posed, starts: Array, direction: Vector, nearest: Array
) -> tuple[Array, Array]:
    """What rays meet first: distances f32[N, S] and surfaces i32[N, S].

    Args:
      posed: the objects.
      starts: f32[P, N, 3]; the rays of an image leave from one point outside every part, and
        these are its images under `posed.to_unit`.
      direction: components f32[S] or f32[N, S], of any length; distances count it as 1.
      nearest: tagged distances f32[N, S] to what else there is. With the tag a scan carries one
        array, and a minimum of floats picks distance and surface at once.
    """

    def step(meet, nearest, part):
        first, to_unit, start = part
        along = [_dot([to_unit[:, i, j, None] for j in range(3)], direction) for i in range(3)]
        distance, face = meet([start[:, i, None] for i in range(3)], along)
        return jnp.minimum(nearest, _tagged(distance, first + face)), None

    balls = np.arange(ELLIPSOIDS, dtype=np.int32)
    boxes = np.arange(ELLIPSOIDS, _FLOOR, 3, dtype=np.int32)
    split = slice(ELLIPSOIDS), slice(ELLIPSOIDS, None)
    for meet, first, kind in zip((_meet_ball, _meet_cube), (balls, boxes), split):
        parts = first, posed.to_unit[kind], starts[kind]
        nearest, _ = jax.lax.scan(functools.partial(step, meet), nearest, parts, unroll=2)
    surface = jax.lax.bitcast_convert_type(nearest, jnp.int32) & _TAG
    return _tagged(nearest, 0), surface


def _surface(
    posed: _Posed, surface: Array, point: Vector, direction: Vector
) -> tuple[Vector, Vector]:
    """Unit normal, on the side of the viewer, and albedo at points of given surfaces."""
    rows = jnp.take_along_axis(posed.surface, surface[..., None], 1, mode="promise_in_bounds")
    xx, xy, xz, yy, yz, zz, x, y, z, *albedo, fade = (rows[..., i] for i in range(13))
    own = [_dot([posed.own[:, i, j, None] for j in range(3)], point) for i in range(3)]
    albedo = [jnp.clip(a + fade * along, 0, 1) for a, along in zip(albedo, own)]
    normal = [
        _dot([xx, xy, xz], point) + x,
        _dot([xy, yy, yz], point) + y,
        _dot([xz, yz, zz], point) + z,
    ]
    length = jnp.sqrt(jnp.maximum(_dot(normal, normal), 1e-12))
    scale = jnp.where(_dot(normal, direction) > 0, -1, 1) / length
    return [n * scale for n in normal], albedo


def _sun(posed: _Posed, point: Vector, normal: Vector) -> Array:
    """Share f32[N, S] of the sun's light: a round patch of sky overhead, less what parts hide."""
    sine = np.sin(SUN_HALF_ANGLE)

    def hide(hidden, part):
        # A part hides the solid angle of a disc as large as its outline from above.
        center, outline = part
        offset = [center[:, i, None] - p for i, p in enumerate(point)]
        square = jnp.maximum(_dot(offset, offset), 1e-6)
        inverse = jax.lax.rsqrt(square)
        facing = jnp.maximum(_dot(offset, normal) * inverse, 0)
        overhead = _smoothstep((offset[2] * inverse - 0.5) / 0.5)
        area = outline[:, None]
        return hidden + (area / (square + area) * facing * overhead) ** 2, None

    # Parts lie over each other, so that what two hide is more than one hides and less than both.
    parts = posed.center, posed.outline
    squares, _ = jax.lax.scan(hide, jnp.zeros_like(point[2]), parts, unroll=2)
    # The cosine law while the whole patch is over the horizon, a parabola while it sets.
    up = jnp.clip(normal[2], -sine, 1)
    seen = jnp.where(up > sine, up, (up + sine) ** 2 / (4 * sine))
    return jnp.maximum(seen - jnp.sqrt(squares) / sine**2, 0)


def _spot(posed: _Posed, axis: Array, point: Vector, normal: Vector) -> Array:
    """Light f32[N, S] of a spot of radiant intensity 1 that is aimed at the origin."""
    toward = [axis[:, i, None] for i in range(3)]
    ray = [p - SPOT_DISTANCE * a for p, a in zip(point, toward)]
    square = _dot(ray, ray)
    inverse = jax.lax.rsqrt(square)
    facing = jnp.maximum(-_dot(ray, normal) * inverse, 0)
    edge = np.cos(SPOT_HALF_ANGLE)
    cone = _smoothstep((-_dot(ray, toward) * inverse - edge) / ((1 - edge) * SPOT_BLEND))
    nearest, _ = _nearest(posed, posed.light, ray, jnp.full_like(square, _FAR))
    return jnp.where(nearest > 0.999, facing * cone / square, 0)  # the point itself is at 1


def _tone(radiance: Array) -> Array:
    """Film-like curve from linear light to display values in [0, 1]."""
    return jnp.clip(1.25 * radiance / (radiance + 0.3), 0, 1)
