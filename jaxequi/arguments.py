"""Arguments that come from a config or a text: of the type that a function says it takes.

A function's annotations are what is allowed: the check is made where a value enters, in one place
for all functions, before anything is done with it.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxequi.errors import Refusal

LONGEST = 100  # characters of a value in a message


def shown(value: Any) -> str:
    """Write a value for a message; a long one is cut."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation; what says nothing of a plain value fits all."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    if origin is Mapping or kind is Mapping:
        known = not parts or parts[1] is Any
        return hasattr(value, "items") and (
            known or all(fits(one, parts[1]) for one in value.values())
        )
    if origin in (Sequence, tuple, list):
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and parts[-1:] != (...,):
            return len(value) == len(parts) and all(map(fits, value, parts))
        return all(fits(one, parts[0]) for one in value)
    if inspect.isclass(kind) and origin is None and not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    return True


def told(kind: Any) -> str:
    """Say an annotation in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is None or kind is types.NoneType:
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(told, parts))
    if origin is Mapping or kind is Mapping:
        return "a dict"
    if origin is tuple and parts[-1:] != (...,):
        return f"({', '.join(map(told, parts))})"
    if origin in (Sequence, tuple, list):
        return f"a tuple, each {told(parts[0])}"
    words = {int: "an integer", float: "a number", str: "a text", bool: "True or False"}
    return words.get(kind) or str(getattr(kind, "__name__", kind))


def check(what: str, value: Any, kind: Any) -> None:
    """Raise `ValueError` unless a value is of an annotation.

    Args:
      what: the value's name in the message.
    """
    if not fits(value, kind):
        raise Refusal(f"{what}={shown(value)}: it must be {told(kind)}")


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters, as far as they can be evaluated."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # of a type checker's imports, or of no function
        return {}


def call(what: str, function: Callable[..., Any], given: Mapping[str, Any], **facts: Any) -> Any:
    """Call a function with arguments of a config.

    Args:
      what: the function's name in a message.
      given: the arguments; `facts` are our own, and are not checked.

    Raises:
      ValueError: an argument is of another type than the function says, is missing, or is refused
        by the function.
    """
    kinds = kinds_of(function)
    for name, value in given.items():
        if name in kinds:
            check(f"{what}: {name}", value, kinds[name])
    try:
        return function(**{**facts, **given})
    except Refusal:
        raise
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise Refusal(f"{what}: {error}") from error


def check_plain(what: str, value: Any) -> None:
    """Raise `ValueError` unless a config's value can be written down and read again: JSON.

    Numbers are finite and fit 64 bits, texts hold no null character.
    """
    if hasattr(value, "items"):
        for name, one in value.items():
            check_plain(f"{what}.{name}" if what else str(name), one)
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            check_plain(f"{what}[{place}]", one)
    elif not (
        value is None
        or isinstance(value, bool)
        or (isinstance(value, str) and "\0" not in value)
        or (isinstance(value, int) and -(2**63) <= value < 2**63)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        raise Refusal(
            f"{what}={shown(value)}: a config holds texts, finite numbers, True, False, None, and "
            "tuples and dicts of them"
        )
