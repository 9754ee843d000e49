"""Every stored number of the reference codes, reproduced through the public functions.

A case says by its `kind` what it holds; the module `kinds_<system>` of its folder has the
reproduction, `KINDS[kind](case)`. File names decide nothing. A kind without a reproduction fails.
"""

from __future__ import annotations

import importlib

from case import Case


def test_golden(golden_file):
    case = Case(golden_file)
    kinds = importlib.import_module(f"kinds_{golden_file.parent.name}").KINDS
    assert case.kind in kinds, f"no reproduction of kind {case.kind!r}; there is {sorted(kinds)}"
    kinds[case.kind](case)
