"""Procedural objects of twelve classes, each a pure function of (seed, number).

An object is built of ellipsoids and boxes, as `raycast.Parts`. Instances of a class differ in
proportions, offsets and colours. They stand upright (z up) and face +y, and no class looks the
same after a rotation, so that the relative pose of two views is well defined. Like the models of
ShapeNet they are centred by their bounding box and scaled by its diagonal.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxequi.data.raycast import BOXES, ELLIPSOIDS, Parts
from jaxequi.groups import quaternions

DIAGONAL = 1.5  # of the bounding box; ShapeNet has 1, but here an image has fewer pixels
# Over a part's own paint an object is sprayed red from its right, green from its front and blue
# from above. The spray tells, whatever the class, which way it faces: what takes 3DIEBench days to
# learn from shape takes a small network minutes.
PAINT, SPRAY, FADE = 0.4, 0.24, 0.72  # albedo = PAINT * paint + SPRAY + FADE * position

Triple = Sequence[float] | np.ndarray

DARK = (0.03, 0.03, 0.035)
GLASS = (0.05, 0.09, 0.14)
WHITE = (0.8, 0.8, 0.78)
LIGHT = (0.9, 0.85, 0.5)
RED = (0.7, 0.03, 0.03)


class _Part(NamedTuple):
    is_box: bool
    center: Triple
    half: Triple
    albedo: Triple
    turn: Triple  # extrinsic angles x, y, z


def _ball(center: Triple, half: Triple, albedo: Triple, turn: Triple = (0, 0, 0)) -> _Part:
    return _Part(False, center, half, albedo, turn)


def _box(center: Triple, half: Triple, albedo: Triple, turn: Triple = (0, 0, 0)) -> _Part:
    return _Part(True, center, half, albedo, turn)


class _Draw:
    """The random choices of one object."""

    def __init__(self, rng: np.random.Generator, label: int):
        self._rng, self._label, self._paints = rng, label, 0

    def __call__(self, low: float, high: float) -> float:
        return float(self._rng.uniform(low, high))

    def paint(self) -> Triple:
        """The class's next colour, as this object has it.

        A part has much the same hue in all objects of a class, and its own among the parts.
        """
        self._paints += 1
        hue = 0.13 * self._label + 0.618 * self._paints  # golden steps keep the hues apart
        return colorsys.hsv_to_rgb((hue + self(-0.05, 0.05)) % 1, self(0.5, 0.9), self(0.4, 0.9))

    def wood(self) -> Triple:
        return colorsys.hsv_to_rgb(self(0.04, 0.12), self(0.5, 0.8), self(0.25, 0.75))


def _airplane(draw: _Draw) -> list[_Part]:
    body, trim = draw.paint(), draw.paint()
    radius, span, chord = draw(0.059, 0.1), draw(0.29, 0.48), draw(0.062, 0.12)
    sweep, wing_y, fin = draw(0.02, 0.58), draw(-0.044, 0.12), draw(0.088, 0.17)
    tail, engine = draw(0.12, 0.21), draw(0.032, 0.053)
    parts = [
        _ball((0, 0, 0), (radius, 0.5, radius), body),
        _ball((0, 0.33, 0.55 * radius), (0.6 * radius, 0.09, 0.6 * radius), GLASS),
        _box((0, -0.42, 0.3 * radius), (tail, 0.05, 0.015), trim),
        _box((0, -0.42, fin), (0.015, 0.06, fin), trim, (0.3, 0, 0)),
    ]
    for side in (-1, 1):
        x, y = side * span / 2, wing_y - np.tan(sweep) * span / 2
        parts += [
            _box(
                (x, y, -0.3 * radius),
                (span / 2 / np.cos(sweep), chord, 0.016),
                body,
                (0, 0, -side * sweep),
            ),
            _ball((x, y + 0.05, -0.3 * radius - engine), (engine, 0.1, engine), trim),
        ]
    return parts


def _bed(draw: _Draw) -> list[_Part]:
    frame, blanket = draw.wood(), draw.paint()
    width, height, cover = draw(0.18, 0.34), draw(0.052, 0.11), draw(0.19, 0.39)
    head, pillow, foot = draw(0.12, 0.26), draw(0.056, 0.084), draw(0, 0.072)
    top = height + 0.05
    parts = [
        _box((0, 0, 0), (width, 0.45, 0.05), frame),
        _box((0, 0.01, top - 0.02), (0.94 * width, 0.42, height - 0.03), WHITE),
        _box((0, 0.44 - cover, top), (0.97 * width, cover, height - 0.03), blanket),
        _box((0, -0.45, head), (width, 0.03, head + 0.05), frame),
        _box((0, 0.45, foot), (width, 0.025, foot + 0.08), frame),
    ]
    for side in (-1, 1):
        parts += [
            _ball(
                (side * 0.48 * width, -0.32, top + height - 0.03),
                (0.4 * width, 0.08, pillow),
                WHITE,
            ),
            _box((side * 0.85 * width, 0.4, -0.1), (0.035, 0.035, 0.07), frame),
        ]
    return parts


def _boat(draw: _Draw) -> list[_Part]:
    hull, sail, deck = draw.paint(), draw.paint(), draw.wood()
    beam, depth, mast = draw(0.098, 0.18), draw(0.08, 0.15), draw(0.26, 0.38)
    step, boom, cabin = draw(0, 0.14), draw(0.14, 0.21), draw(0.044, 0.086)
    foot = 2 * mast
    return [
        _ball((0, 0, 0), (beam, 0.45, depth), hull),
        _ball((0, -0.02, 0.5 * depth), (0.85 * beam, 0.4, 0.6 * depth), deck),
        _ball((0, step + 0.17, 0.36 * foot + depth), (0.012, 0.1, 0.3 * foot), WHITE, (0.35, 0, 0)),
        _box((0, step, mast + 0.5 * depth), (0.016, 0.016, mast), DARK),
        _box((0, step - boom, 0.42 * foot + depth), (0.014, 0.85 * boom, 0.3 * foot), sail),
        _box((0, step - boom, 0.1 * foot + depth), (0.016, boom, 0.016), DARK),
        _box((0, -0.24, depth + 0.4 * cabin), (0.6 * beam, 0.12, cabin), WHITE),
    ]


def _camera(draw: _Draw) -> list[_Part]:
    body, trim = draw.paint(), draw.paint()
    width, height, depth = draw(0.28, 0.4), draw(0.16, 0.25), draw(0.082, 0.14)
    lens, reach, x = draw(0.11, 0.17), draw(0.12, 0.26), draw(-0.08, 0.06)
    flash, grip = draw(0.062, 0.12), draw(0.046, 0.074)
    return [
        _box((0, 0, 0), (width, depth, height), body),
        _box((width - grip, depth, -0.1 * height), (grip, 0.06, 0.85 * height), DARK),
        _box((x, 0.02, height + 0.05), (flash, 0.07, 0.06), trim),
        _box((x, 0.095, height + 0.055), (0.75 * flash, 0.012, 0.035), LIGHT),
        _ball((x, depth, -0.02), (lens, reach, lens), trim),
        _ball((x, depth + 0.8 * reach, -0.02), (0.68 * lens, 0.25 * reach, 0.68 * lens), GLASS),
        _ball((0.78 * width, 0.03, height), (0.05, 0.05, 0.05), RED),
        _box((-0.7 * width, 0, height + 0.02), (0.06, 0.05, 0.03), DARK),
    ]


def _car(draw: _Draw) -> list[_Part]:
    paint = draw.paint()
    width, height, wheel = draw(0.18, 0.25), draw(0.064, 0.11), draw(0.075, 0.11)
    cabin, cabin_y, roof = draw(0.16, 0.25), draw(-0.156, -0.044), draw(0.048, 0.097)
    axle = draw(0.26, 0.33)
    parts = [
        _box((0, 0, 0), (width, 0.48, height), paint),
        _box((0, cabin_y, height + roof), (0.86 * width, cabin, roof), GLASS),
        _box((0, cabin_y - 0.03, height + 2 * roof), (0.88 * width, 0.82 * cabin, 0.022), paint),
        _box((0, 0.48, 0.3 * height), (0.9 * width, 0.02, 0.3 * height), LIGHT),
        _box((0, -0.48, 0.3 * height), (0.9 * width, 0.02, 0.3 * height), RED),
    ]
    for side in (-1, 1):
        for y in (-axle, axle):
            parts.append(_ball((side * width, y, -height), (0.05, wheel, wheel), DARK))
    return parts


def _chair(draw: _Draw) -> list[_Part]:
    frame, cushion = draw.wood(), draw.paint()
    width, depth, leg = draw(0.17, 0.25), draw(0.17, 0.25), draw(0.15, 0.27)
    back, lean, thick = draw(0.18, 0.32), draw(0, 0.35), draw(0.02, 0.034)
    parts = [
        _box((0, 0, 0), (width, depth, 0.03), frame),
        _ball((0, 0.01, 0.03), (0.9 * width, 0.9 * depth, 0.05), cushion),
        _box(
            (0, -depth - np.sin(lean) * back, np.cos(lean) * back),
            (width, 0.025, back),
            frame,
            (lean, 0, 0),
        ),
        _ball(
            (0, -depth - np.sin(lean) * back + 0.02, np.cos(lean) * back),
            (0.75 * width, 0.03, 0.7 * back),
            cushion,
            (lean, 0, 0),
        ),
    ]
    for side in (-1, 1):
        for y in (-1, 1):
            center = (side * (width - thick), y * (depth - thick), -leg)
            parts.append(_box(center, (thick, thick, leg), frame))
    return parts


def _desk(draw: _Draw) -> list[_Part]:
    wood, front = draw.wood(), draw.paint()
    width, depth, height = draw(0.36, 0.5), draw(0.17, 0.25), draw(0.14, 0.21)
    chest, thick = draw(0.09, 0.16), draw(0.018, 0.032)
    x = width - chest
    parts = [
        _box((0, 0, 0), (width, depth, 0.025), wood),
        _box((x, 0, -height), (chest, 0.92 * depth, height), wood),
        _box((x, 0.92 * depth, -height), (0.85 * chest, 0.015, 0.85 * height), front),
        _box(
            (-0.3 * chest, -0.85 * depth, -0.6 * height),
            (width - chest, 0.012, 0.55 * height),
            wood,
        ),
    ]
    for y in (-1, 1):
        center = (-width + thick, y * (depth - thick), -height)
        parts.append(_box(center, (thick, thick, height), wood))
    for z in (-0.5, -1, -1.5):
        parts.append(_ball((x, 0.92 * depth + 0.02, z * height), (0.025, 0.025, 0.025), DARK))
    parts.append(_ball((-0.5 * width, -0.3 * depth, 0.025), (0.09, 0.09, 0.09), LIGHT))
    return parts


def _dog(draw: _Draw) -> list[_Part]:
    coat, patch = draw.paint(), draw.paint()
    girth, length, leg = draw(0.092, 0.15), draw(0.22, 0.34), draw(0.098, 0.18)
    head, snout, rise = draw(0.084, 0.13), draw(0.062, 0.12), draw(0.084, 0.2)
    tail, ear, thick = draw(0.086, 0.18), draw(0.044, 0.086), draw(0.028, 0.042)
    y, z = length + 0.05, rise + 0.04
    parts = [
        _ball((0, 0, 0), (girth, length, girth), coat),
        _ball((0, y, z), (0.9 * head, head, 0.9 * head), coat),
        _ball((0, y + 0.8 * head + 0.4 * snout, z - 0.03), (0.045, snout, 0.045), DARK),
        _ball((0, -length - 0.5 * tail, 0.06 + 0.5 * tail), (0.03, 0.03, tail), patch, (0.7, 0, 0)),
        _box((0, length - 0.06, 0.5 * rise), (0.06, 0.05, 0.5 * rise + 0.03), patch, (-0.5, 0, 0)),
    ]
    for side in (-1, 1):
        parts.append(
            _ball((side * 0.75 * head, y - 0.02, z + 0.7 * head), (0.03, 0.04, ear), patch)
        )
        for end in (-0.7, 0.65):
            center = (side * (girth - thick), end * length, -0.5 * girth - leg)
            parts.append(_box(center, (thick, thick, leg), coat))
    return parts


def _guitar(draw: _Draw) -> list[_Part]:
    body, neck, plate = draw.wood(), draw.wood(), draw.paint()
    lower, upper, depth = draw(0.18, 0.25), draw(0.12, 0.18), draw(0.045, 0.08)
    length, head, side = draw(0.18, 0.25), draw(0.056, 0.084), draw(0.064, 0.11)
    shoulder = 0.17 + 0.5 * upper
    return [
        _ball((0, 0, 0), (lower, depth, 0.2), body),
        _ball((0, 0, shoulder), (upper, depth, 0.16), body),
        _ball((0, 0.9 * depth, 0.13), (0.065, 0.025, 0.065), DARK),
        _ball((side, 0.75 * depth, 0.05), (0.05, 0.03, 0.09), plate),
        _box((0, depth, -0.08), (0.09, 0.02, 0.02), DARK),
        _box((0, 0.7 * depth, shoulder + 0.08 + length), (0.028, 0.022, length), neck),
        _box(
            (0, 0.5 * depth, shoulder + 0.1 + 2 * length), (0.05, 0.022, head), plate, (0.25, 0, 0)
        ),
    ]


def _helicopter(draw: _Draw) -> list[_Part]:
    body, trim = draw.paint(), draw.paint()
    girth, length, boom = draw(0.11, 0.17), draw(0.18, 0.26), draw(0.15, 0.23)
    blade, turn, fin = draw(0.32, 0.48), draw(0.12, 1.38), draw(0.064, 0.11)
    top, end = girth + 0.05, -length - 2 * boom + 0.1
    parts = [
        _ball((0, 0, 0), (girth, length, girth), body),
        _ball((0, 0.45 * length, 0.15 * girth), (0.8 * girth, 0.6 * length, 0.75 * girth), GLASS),
        _box((0, 0.05 - length - boom, 0.04), (0.03, boom + 0.05, 0.035), body),
        _box((0, end, 0.04 + fin), (0.015, 0.05, fin), trim, (0.3, 0, 0)),
        _box((0.035, end, 0.05), (0.012, 0.018, 0.12), DARK, (0.6, 0, 0)),
        _box((0, 0, top), (0.022, 0.022, 0.07), DARK),
        _box((0, 0, top + 0.06), (blade, 0.024, 0.012), trim, (0, 0, turn)),
    ]
    for side in (-1, 1):
        parts.append(_box((side * girth, 0.02, -girth - 0.05), (0.02, 0.22, 0.02), DARK))
    return parts


def _lamp(draw: _Draw) -> list[_Part]:
    metal, shade = draw.paint(), draw.paint()
    base, lower, upper = draw(0.13, 0.2), draw(0.16, 0.24), draw(0.14, 0.22)
    back, forth, head = draw(0.14, 0.56), draw(0.72, 1.28), draw(0.092, 0.15)
    thick = draw(0.018, 0.03)
    elbow = np.array([0, -2 * lower * np.sin(back), 2 * lower * np.cos(back)])
    wrist = elbow + 2 * upper * np.array([0, np.sin(forth), np.cos(forth)])
    bulb = wrist + np.array([0, 0.2, -0.5]) * head
    return [
        _ball((0, 0.03, 0), (base, base, 0.05), metal),
        _ball((0.6 * base, 0.05, 0.035), (0.035, 0.035, 0.035), RED),
        _ball(elbow, (0.045, 0.045, 0.045), DARK),
        _ball(wrist, (1.1 * head, 1.1 * head, 0.7 * head), shade, (0.4, 0, 0)),
        _ball(bulb, (0.6 * head, 0.6 * head, 0.5 * head), LIGHT),
        _box(elbow / 2, (thick, thick, lower), metal, (back, 0, 0)),
        _box((elbow + wrist) / 2, (thick, thick, upper), metal, (-forth, 0, 0)),
    ]


def _teapot(draw: _Draw) -> list[_Part]:
    clay, trim = draw.paint(), draw.paint()
    radius, height, spout = draw(0.2, 0.27), draw(0.16, 0.24), draw(0.13, 0.2)
    tilt, loop, thick = draw(0.42, 0.98), draw(0.092, 0.15), draw(0.022, 0.036)
    reach = draw(0.09, 0.16)
    x = -radius - reach
    return [
        _ball((0, 0, 0), (radius, radius, height), clay),
        _ball((0, 0, 0.85 * height), (0.55 * radius, 0.55 * radius, 0.06), trim),
        _ball((0, 0, 0.85 * height + 0.08), (0.04, 0.04, 0.04), DARK),
        _ball((radius + 0.05, 0, 0.03), (0.05, 0.05, spout), clay, (0, tilt, 0)),
        _box((0, 0, -0.93 * height), (0.55 * radius, 0.55 * radius, 0.03), trim),
        _box((x, 0, 0), (thick, thick, loop + thick), trim),
        _box((x / 2 - 0.07, 0, loop), (reach / 2 + 0.07, thick, thick), trim),
        _box((x / 2 - 0.07, 0, -loop), (reach / 2 + 0.07, thick, thick), trim),
    ]


_BUILDERS: dict[str, Callable[[_Draw], list[_Part]]] = {
    "airplane": _airplane,
    "bed": _bed,
    "boat": _boat,
    "camera": _camera,
    "car": _car,
    "chair": _chair,
    "desk": _desk,
    "dog": _dog,
    "guitar": _guitar,
    "helicopter": _helicopter,
    "lamp": _lamp,
    "teapot": _teapot,
}
CLASS_NAMES = tuple(_BUILDERS)


def label(number: int) -> int:
    """Class of an object: the classes take turns."""
    return number % len(CLASS_NAMES)


def build(seed: int, number: int) -> Parts:
    """Object `number` of the world `seed`.

    Returns:
      Parts of f32[P, ...], with a bounding box that is centred at the origin and has the
      diagonal `DIAGONAL`.
    """
    builder = _BUILDERS[CLASS_NAMES[label(number)]]
    parts = builder(_Draw(np.random.default_rng((seed, number)), label(number)))
    balls = [p for p in parts if not p.is_box]
    boxes = [p for p in parts if p.is_box]
    slots = [*enumerate(balls), *enumerate(boxes, ELLIPSOIDS)]
    return _normalize(slots)


def _normalize(slots: list[tuple[int, _Part]]) -> Parts:
    index = [i for i, _ in slots]
    center, half, albedo, turn = (
        np.array([getattr(p, name) for _, p in slots], np.float64)
        for name in ("center", "half", "albedo", "turn")
    )
    rotation = quaternions.from_euler_xyz(turn)
    reach = np.abs(quaternions.to_matrix(rotation)) * half[:, None]
    is_box = np.array([p.is_box for _, p in slots])[:, None]
    reach = np.where(is_box, reach.sum(-1), np.sqrt((reach**2).sum(-1)))
    low, high = (center - reach).min(0), (center + reach).max(0)
    scale = DIAGONAL / np.linalg.norm(high - low)

    def spread(values: np.ndarray) -> np.ndarray:
        out = np.zeros((ELLIPSOIDS + BOXES, values.shape[-1]), np.float32)
        out[index] = values
        return out

    return Parts(
        spread((center - (low + high) / 2) * scale),
        spread(half * scale),
        spread(rotation),
        spread(PAINT * albedo + SPRAY),
        spread(np.full((len(index), 1), FADE)),
    )
