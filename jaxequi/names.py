"""Names are modules: `find("methods", "simclr")` is `jaxequi.methods.simclr.make`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

from jaxequi.errors import Refusal


def choices(folder: str) -> list[str]:
    """Names that `find` accepts in a folder: its files, save those with a leading underscore."""
    package = importlib.import_module(f"jaxequi.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def unknown(kind: str, given: str, allowed: Iterable[str]) -> Refusal:
    """The error for a name that does not exist: what was given, what exists, the nearest."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return Refusal(f"unknown {kind} {given!r}.{hint} There is: {', '.join(allowed)}.")


def find(folder: str, name: str, attribute: str = "make") -> Callable[..., Any]:
    """Import `jaxequi.<folder>.<name>` and return its `make` (or `evaluate`, ...).

    Raises:
      ValueError: no such file; the message lists the folder's names.
    """
    allowed = choices(folder)
    if name not in allowed:
        raise unknown(f"name in {folder.replace('/', '.')}", name, allowed)
    return getattr(importlib.import_module(f"jaxequi.{folder}.{name}"), attribute)
