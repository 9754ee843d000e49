"""A stored case, and the comparison that its README's tolerances are written in."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np


class Case:
    """Arrays of one `.npz` under their stored keys (`in/x`), with `kind` and decoded `meta`."""

    def __init__(self, file: pathlib.Path):
        with np.load(file, allow_pickle=False) as stored:
            self.arrays = {k: stored[k] for k in stored.files if k not in ("kind", "meta")}
            self.kind = str(stored["kind"])
            self.meta: dict[str, Any] = json.loads(str(stored["meta"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays below `prefix/`, under the rest of their key."""
        start = prefix.rstrip("/") + "/"
        return {k[len(start) :]: v for k, v in self.arrays.items() if k.startswith(start)}


def close(actual, expected, *, rtol: float, atol_of_max: float = 0.0, atol: float = 0.0, name=""):
    """Assert |actual - expected| <= rtol |expected| + atol + atol_of_max * max|expected|."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    scale = np.abs(expected).max() if expected.size else 0.0
    np.testing.assert_allclose(
        actual, expected, rtol=rtol, atol=atol + atol_of_max * scale, err_msg=name
    )
