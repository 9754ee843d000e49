"""Reading archives member by member, without writing anything to disk."""

from __future__ import annotations

import gzip
import os
import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO

from etils import epath

from jaxequi.data.errors import DataError


def members(archive: epath.PathLike | IO[bytes], name: str = "") -> Iterator[tuple[str, bytes]]:
    """Iterate over the files of a tar, gzipped or not: (path inside it, content).

    Raises:
      DataError: a member whose path leads out of the archive, a link, or a broken archive.
    """
    name = name or os.fspath(archive)  # type: ignore[arg-type]
    opened = epath.Path(archive).open("rb") if isinstance(archive, str | os.PathLike) else archive
    try:
        with opened as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                path = posixpath.normpath(member.name)
                if path.startswith(("/", "..")):
                    raise DataError(f"{name}: the member {member.name!r} points out of the archive")
                if member.isdir():
                    continue
                content = tar.extractfile(member) if member.isfile() else None
                if content is None:
                    raise DataError(f"{name}: the member {member.name!r} is no plain file")
                yield path, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{name} is no whole tar archive: {error}") from error


def gunzip(path: epath.PathLike) -> bytes:
    """Return the content of a gzip file; a file that is none is returned as it is."""
    data = epath.Path(path).read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is a broken gzip file: {error}") from error
