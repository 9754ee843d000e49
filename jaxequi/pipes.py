"""A sequence of operations written as a string: `"decode|random_resized_crop(224)|flip"`.

Arguments are Python literals and nothing else, so that a config can be read without running it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxequi import names
from jaxequi.errors import Refusal

T = TypeVar("T")
LONGEST = 4096  # characters of a pipe
DEEPEST = 16  # brackets in brackets


def _part(text: str) -> str:
    """Show a text, and of a long one its beginning."""
    return repr(text) if len(text) <= 200 else f"{text[:100]!r}..."


def split(pipe: str) -> list[str]:
    """Cut a pipe at its bars, save those inside quotes or brackets.

    >>> split("decode|random_resized_crop(224, scale=(0.2, 1))|flip")
    ['decode', 'random_resized_crop(224, scale=(0.2, 1))', 'flip']

    Raises:
      ValueError: over 4096 characters, or over 16 brackets in brackets.
    """
    if len(pipe) > LONGEST:
        raise Refusal(
            f"a pipe of {len(pipe)} characters, {_part(pipe)}; it may have {LONGEST} of them."
        )
    parts, depth, quote, start = [], 0, "", 0
    for at, char in enumerate(pipe):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
            if depth > DEEPEST:
                raise Refusal(f"over {DEEPEST} brackets in brackets in the pipe {_part(pipe)}")
        elif char in ")]}":
            depth -= 1
        elif char == "|" and depth == 0:
            parts.append(pipe[start:at].strip())
            start = at + 1
    return [*parts, pipe[start:].strip()]


def _call(text: str, pipe: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Read `name` or `name(literal, key=literal)`; a name may have dots."""
    try:
        node = ast.parse(text, mode="eval").body
        name = _name(node.func if isinstance(node, ast.Call) else node)
        if name and not isinstance(node, ast.Call):
            return name, [], {}
        if name and isinstance(node, ast.Call):
            arguments = [ast.literal_eval(value) for value in node.args]
            keywords = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            if all(k.arg for k in node.keywords) and len(keywords) == len(node.keywords):
                return name, arguments, keywords
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass  # a chain of operators is as deep as it is long; TypeError: a set or a key of lists
    raise Refusal(
        f"cannot read {_part(text)} in the pipe {_part(pipe)}; a step is written name or "
        "name(1, key=(0.1, 2)), with numbers, strings, tuples, None, True and False only."
    )


def _name(node: ast.expr) -> str:
    """`a` or `a.b.c`, and "" of whatever else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def parse(pipe: str, ops: Mapping[str, Callable[..., T]], kind: str) -> list[T]:
    """Make the ops of a pipe, in order; an empty string is no op.

    Raises:
      ValueError: an op that does not exist, or arguments that are no literals or not its own.
    """
    made = []
    for text in split(pipe) if pipe.strip() else []:
        name, arguments, keywords = _call(text, pipe)
        if name not in ops:
            raise names.unknown(kind, name, ops)
        signature = inspect.signature(ops[name])
        try:
            signature.bind(*arguments, **keywords)
        except TypeError as error:
            plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
            usage = inspect.Signature(plain)
            raise Refusal(f"{_part(text)} in a pipe: {error}; it takes {name}{usage}.") from None
        try:
            made.append(ops[name](*arguments, **keywords))
        except (TypeError, ValueError, OverflowError) as error:
            raise Refusal(f"{_part(text)} in a pipe: {error}") from error
    return made
