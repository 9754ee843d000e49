"""Names are modules: `find("methods", "simclr")` is `jaxequi.methods.simclr.make`.

A name with a dot is a module of the user's own: "my_project.my_method".
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import types
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


def module(folder: str, name: str, kind: str = "") -> types.ModuleType:
    """Import `jaxequi.<folder>.<name>`; a name with a dot is a module of one's own.

    Args:
      kind: what to call it in an error.

    Raises:
      ValueError: no such file or module; the message lists the folder's names.
    """
    if "." in name:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise Refusal(
                f"{name!r} in {folder.replace('/', '.')} is a module of your own (it has a dot), "
                f"and it cannot be imported: {error}. Run from the folder where it lies, or "
                "install it"
            ) from error
    allowed = choices(folder)
    if name not in allowed:
        raise unknown(kind or f"name in {folder.replace('/', '.')}", name, allowed)
    return importlib.import_module(f"jaxequi.{folder}.{name}")


def find(folder: str, name: str, attribute: str = "make") -> Callable[..., Any]:
    """Import `jaxequi.<folder>.<name>` and return its `make` (or `run`, ...); see `module`.

    Raises:
      ValueError: no such file, or a module of one's own without it.
    """
    found = module(folder, name)
    if not hasattr(found, attribute):
        raise Refusal(f"{name!r} has no function {attribute!r}, by which {folder} are made")
    return getattr(found, attribute)
