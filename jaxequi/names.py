"""Names are modules: `find("methods", "simclr")` is `jaxequi.methods.simclr.make`.

A name with a dot is a module of the user's own: "my_project.my_method".
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxequi import arguments
from jaxequi.errors import Refusal


def opened(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` of a package whose files are imported when they are named.

    >>> import jaxequi
    >>> jaxequi.groups.planar.cyclic(4).order
    4

    Args:
      package: its `__name__`.
    """

    def get(name: str) -> Any:
        if name[0] == "_" or name not in choices(package.partition(".")[2]):
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        return importlib.import_module(f"{package}.{name}")

    def listed() -> list[str]:
        own = [name for name in vars(sys.modules[package]) if name[0] != "_"]
        return sorted({*own, *choices(package.partition(".")[2])})

    return get, listed


def choices(folder: str) -> list[str]:
    """Names that `find` accepts in a folder: its files, save those with a leading underscore.

    >>> choices("objectives")[:3]
    ['classification', 'collapse', 'contrastive']
    """
    package = importlib.import_module(f"jaxequi.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def unknown(kind: str, given: Any, allowed: Iterable[str]) -> Refusal:
    """The error for a name that does not exist: what was given, what exists, the nearest.

    >>> print(unknown("method", "simclrr", ["simclr", "vicreg"]))
    unknown method 'simclrr'. Did you mean 'simclr'? There is: simclr, vicreg.
    """
    allowed = sorted(allowed)
    if not isinstance(given, str):
        return Refusal(
            f"{kind} {arguments.shown(given)} is no name. There is: {', '.join(allowed)}."
        )
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return Refusal(
        f"unknown {kind} {arguments.shown(given)}.{hint} There is: {', '.join(allowed)}."
    )


def module(folder: str, name: str, kind: str = "") -> types.ModuleType:
    """Import `jaxequi.<folder>.<name>`; a name with a dot is a module of one's own.

    Args:
      kind: what to call it in an error.

    Raises:
      ValueError: no such file or module; the message lists the folder's names.
    """
    if isinstance(name, str) and all(map(str.isidentifier, name.split("."))) and "." in name:
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


def made(folder: str, field: Mapping[str, Any], **more: Any) -> Any:
    """Call `make` of the file that a field names, with the rest of the field as arguments.

    Args:
      more: arguments that the config does not give; those that this `make` takes.

    Raises:
      ValueError: a name that does not exist, or an argument that is not its own or is missing.
    """
    given = dict(field)
    if "name" not in given:
        raise Refusal(
            f"a part of {folder} is made by its `name`, and {arguments.shown(given)} has none"
        )
    name = given.pop("name")
    make = find(folder, name)
    allowed = inspect.signature(make).parameters
    for argument in given:
        if argument not in allowed:
            own = [other for other in allowed if other not in more]
            raise unknown(f"argument of {folder} {name!r} in this config:", argument, own)
    more = {argument: value for argument, value in more.items() if argument in allowed}
    return arguments.call(f"{folder} {name!r}", make, given, **more)
