"""Sources as command lines name them."""

from __future__ import annotations

from jaxequi import names, pipes
from jaxequi.types import Source


def open_source(text: str) -> Source:
    """Open the source that a text such as `"folder(root='train')"` describes.

    Raises:
      ValueError: no such source, or arguments that are not its own.
    """
    name = text.partition("(")[0].strip()
    [source] = pipes.parse(text, {name: names.find("data.sources", name)}, "source")
    return source
