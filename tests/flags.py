"""Options of XLA with which tests compile: what is compiled runs once, for a moment."""

from __future__ import annotations

import importlib.metadata

QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The emitters before those that go through MLIR take half the time; JAX 0.12 has none.
    QUICK += " --xla_cpu_use_fusion_emitters=false"
