"""Unit quaternions: the rotations of rendered objects, and the relative pose of two views.

A quaternion is an array `[..., 4]` in the order (x, y, z, w), as in scipy. Its sign carries
meaning: q and -q are one rotation but two inputs to a predictor, so no function flips it.
Angles are radians. Every function takes numpy or JAX arrays and answers in kind: float64 numpy
stays float64, traced float32 stays traced float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxequi.errors import Refusal

Array = Any  # np.ndarray | jax.Array

FORMS = ("quaternion", "euler")


def _namespace(*arrays: Array) -> Any:
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def multiply(p: Array, q: Array) -> Array:
    """Hamilton product: the rotation q, then p.

    Args:
      p, q: `[..., 4]`; leading axes broadcast.

    Returns:
      `[..., 4]`.
    """
    xp = _namespace(p, q)
    p, q = xp.asarray(p), xp.asarray(q)
    px, py, pz, pw = (p[..., i] for i in range(4))
    qx, qy, qz, qw = (q[..., i] for i in range(4))
    return xp.stack(
        [
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy + py * qw + pz * qx - px * qz,
            pw * qz + pz * qw + px * qy - py * qx,
            pw * qw - px * qx - py * qy - pz * qz,
        ],
        axis=-1,
    )


def conjugate(q: Array) -> Array:
    """The inverse rotation of unit quaternions `[..., 4]`: x, y, z negated, w kept."""
    xp = _namespace(q)
    q = xp.asarray(q)
    return xp.concatenate([-q[..., :3], q[..., 3:]], axis=-1)


def relative(q1: Array, q2: Array) -> Array:
    """The rotation from q1 to q2 in the frame of the body, R1^-1 R2: `[..., 4]`.

    >>> turned = np.array([0.6, 0.0, 0.0, 0.8])
    >>> relative(turned, turned).round(6) + 0.0
    array([0., 0., 0., 1.])
    """
    return multiply(conjugate(q1), q2)


def from_euler_xyz(angles: Array) -> Array:
    """Quaternion of the extrinsic angles x, y, z: R = Rz(z) Ry(y) Rx(x).

    >>> from_euler_xyz(np.array([0.0, 0.0, np.pi])).round(6) + 0.0
    array([0., 0., 1., 0.])

    The product q_z q_y q_x of the half angles. It has w >= 0 where every angle lies in
    [-pi/2, pi/2], which is the sign that `scipy.spatial.transform.Rotation` gives.

    Args:
      angles: `[..., 3]` radians.

    Returns:
      `[..., 4]`.
    """
    xp = _namespace(angles)
    half = xp.asarray(angles) / 2
    (cx, cy, cz), (sx, sy, sz) = (
        (values[..., 0], values[..., 1], values[..., 2]) for values in (xp.cos(half), xp.sin(half))
    )
    return xp.stack(
        [
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
            cx * cy * cz + sx * sy * sz,
        ],
        axis=-1,
    )


def to_euler_xyz(q: Array) -> Array:
    """Extrinsic angles x, z in [-pi, pi] and y in [-pi/2, pi/2] of unit quaternions.

    Half the sum and half the difference of x and z are the arguments of two planar vectors, and y
    follows from their lengths (Bernardes and Viollet 2022, doi 10.1371/journal.pone.0276302); so
    no accuracy is lost towards y = +-pi/2, as it is with an arcsine. At y = +-pi/2 itself (to
    within the rounding of q) only one of the two arguments is defined and the other is taken to
    be 0; so is the gradient of what is not defined there.

    Args:
      q: `[..., 4]`.

    Returns:
      `[..., 3]` radians.
    """
    xp = _namespace(q)
    q = xp.asarray(q)
    x, y, z, w = (q[..., i] for i in range(4))
    rounding = 2 * xp.finfo(xp.result_type(q, xp.float32)).eps

    def polar(a: Array, b: Array) -> tuple[Array, Array]:
        """Length and argument of (a, b); where there is none, another vector's, to be left out."""
        none = xp.maximum(abs(a), abs(b)) <= rounding
        a, b = xp.where(none, 1, a), xp.where(none, 0, b)
        return xp.where(none, 0, xp.hypot(a, b)), xp.arctan2(b, a)

    low, half_sum = polar(w - y, x + z)
    high, half_difference = polar(w + y, z - x)
    pitch = 2 * xp.arctan2(high, low) - np.pi / 2

    def wrap(angle: Array) -> Array:
        return angle - 2 * np.pi * xp.round(angle / (2 * np.pi))

    return xp.stack(
        [wrap(half_sum - half_difference), pitch, wrap(half_sum + half_difference)], axis=-1
    )


def to_matrix(q: Array) -> Array:
    """Rotation matrices `[..., 3, 3]`, acting on column vectors, of unit quaternions `[..., 4]`."""
    xp = _namespace(q)
    q = xp.asarray(q)
    x, y, z, w = (q[..., i] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def relative_pose(latent1: Array, latent2: Array, form: str = "quaternion") -> Array:
    """The rotation that carries view 1 of an object to view 2, in the body's frame.

    The target of SIE's pose tasks (facebookresearch/SIE, `src/dataset.py`). As there, latents are
    rounded to float32 before anything else; numpy then computes in float64. w < 0 in 4.4 % of
    random pairs of 3DIEBench.

    Args:
      latent1, latent2: `[..., L]`, L >= 3, that begin with the extrinsic angles x, y, z.
      form: "quaternion" or "euler".

    Returns:
      f32[..., 4] (x, y, z, w), or f32[..., 3] angles x, y, z.

    Raises:
      ValueError: unknown form, or latents without three angles.
    """
    if form not in FORMS:
        raise Refusal(f"unknown form {form!r} of a relative pose; there is: {', '.join(FORMS)}")
    xp = _namespace(latent1, latent2)
    for latent in (latent1, latent2):
        if np.ndim(latent) < 1 or np.shape(latent)[-1] < 3:
            raise Refusal(
                f"latents must be [..., L] with L >= 3 (rotation x, y, z first), "
                f"got shape {np.shape(latent)}"
            )
    angles = [xp.asarray(latent)[..., :3].astype(xp.float32) for latent in (latent1, latent2)]
    if xp is np:
        angles = [a.astype(np.float64) for a in angles]
    z = relative(from_euler_xyz(angles[0]), from_euler_xyz(angles[1]))
    return (z if form == "quaternion" else to_euler_xyz(z)).astype(xp.float32)
