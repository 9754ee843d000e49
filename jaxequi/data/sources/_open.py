"""Sources as configs and command lines name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxequi import names, pipes
from jaxequi.errors import Refusal
from jaxequi.types import Source


def open_source(text: str) -> Source:
    """Open the source that a text such as `"folder(root='train')"` describes.

    Raises:
      ValueError: no such source, or arguments that are not its own.
    """
    name = text.partition("(")[0].strip()
    found = pipes.parse(text, {name: names.find("data.sources", name)}, "source")
    if len(found) != 1:
        raise Refusal(f"a source is one, such as folder(root='train'), not {text!r}")
    return found[0]


def make_source(given: Mapping[str, Any] | str) -> Source:
    """Make a source of a dict with a `name`, or of a text such as "folder(root='train')".

    Raises:
      ValueError: no such source, or arguments that are not its own.
    """
    if isinstance(given, str):
        return open_source(given)
    return names.made("data.sources", given)
