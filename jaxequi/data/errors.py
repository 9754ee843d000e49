"""What is wrong with a record or a data set on disk, said so that it can be repaired."""

from __future__ import annotations


class DataError(ValueError):
    """A data set or one of its records cannot be used; the message names file and record."""
