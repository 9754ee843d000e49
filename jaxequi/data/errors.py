"""What is wrong with a record or a data set on disk, said so that it can be repaired."""

from __future__ import annotations

import os

from jaxequi.errors import Refusal

LONGEST = 200  # characters of foreign text in a message


class DataError(Refusal):
    """A data set or one of its records cannot be used; the message names file and record."""


def shown(name: object) -> str:
    """Write a name that comes from data: as it is, or as a literal where it would break a line.

    Control characters, and bytes of a file name that are no UTF-8, become escapes; what is longer
    than 200 characters is cut in the middle.
    """
    text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
    return text if text.isprintable() else repr(text)
