"""Data sets with random access; each file has `make(...) -> Source`."""
