"""Kinds of `airl` about files: detectron2's names, and tensors with the norms of others."""

from __future__ import annotations

import numpy as np
import pytest
from case import Case, close

from jaxequi.interop import detectron2, norm_rescale


def d2_keys(case: Case) -> None:
    """Which keys are kept, and under which names."""
    found = detectron2.convert({k: k for k in case["in/torch_keys"].tolist()}, case.meta["mode"])
    kept = dict(zip(case["out/d2_keys"].tolist(), case["out/torch_keys_kept"].tolist()))
    assert found == kept
    assert len(found) == case.meta["n_out"]
    wrapper = detectron2.wrapped(found)
    assert wrapper.pop("model") == found
    assert wrapper == case.meta["wrapper"]


def rescaled(case: Case) -> None:
    """Every tensor as published, NaN for one of zeros included; and with what we add to it."""
    a, b, out = case.under("in/A"), case.under("in/B"), case.under("out")
    found = norm_rescale.rescale(a, b)
    assert set(found) == set(out)
    assert set(b) - set(found) == set(case.meta["dropped"])
    for name, expected in out.items():
        close(found[name], expected, rtol=1e-5, atol=1e-7, name=name)
    assert {k for k, v in found.items() if np.isnan(v).any()} == set(case.meta["nan_keys"])
    guarded = norm_rescale.rescale(a, b, skip_running_stats=True, keep_zeros=True)
    for name, array in guarded.items():
        if "running_" in name or name in case.meta["nan_keys"]:
            np.testing.assert_array_equal(array, b[name])
    first = next(iter(found))
    with pytest.raises(ValueError, match="1 of"):
        norm_rescale.rescale({k: v for k, v in a.items() if k != first}, b)


FILES = {"d2_keys": d2_keys, "norm_rescale": rescaled}
