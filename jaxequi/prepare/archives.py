"""Reading archives member by member, without writing anything to disk."""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Self

from etils import epath

from jaxequi.data.errors import DataError, shown
from jaxequi.data.sources._files import open_file

MAX_MEMBER = 4 << 30  # bytes of a file in an archive; the largest in use has 2.8e9
MAX_NAME = 1 << 20  # bytes of a name, or of a header's extension
MAX_UNPACKED = 16 << 30  # bytes of an unpacked gzip file; the largest in use has 7.2e9
MAX_RATIO = 100  # of them to the packed ones; zeros have 1000, images 2 or so
_CHUNK = 1 << 20
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)


class _Header(tarfile.TarInfo):
    """A header that claims no more than memory holds, and that is the end only if it is one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end of the archive
            # tarfile takes any other broken header for the end, too
            raise tarfile.ReadError(f"it ends or breaks off in a header: {error}") from error
        limit = MAX_MEMBER if header.type in _FILES else MAX_NAME
        if header.size > limit:
            raise DataError(f"the member {shown(header.name)} claims {header.size} bytes")
        return header


def members(archive: epath.PathLike | io.BytesIO, name: str = "") -> Iterator[tuple[str, bytes]]:
    """Iterate over the files of a tar, gzipped or not: (path inside it, content).

    Raises:
      DataError: a member whose path leads out of the archive, a link, one of over 4 GiB, or a
        broken archive.
    """
    if isinstance(archive, io.BytesIO):
        yield from _members(archive, name)
        return
    with open_file(archive) as (file, _):
        yield from _members(file, name or shown(archive))


def _members(file: BinaryIO, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as tar:
            for member in tar:
                path = posixpath.normpath(member.name)
                if path.startswith(("/", "..")):
                    raise DataError(f"the member {member.name!r} points out of the archive")
                if member.isdir():
                    continue
                plain = member.type in _FILES and not member.issparse()
                content = tar.extractfile(member) if plain else None
                if content is None:
                    raise DataError(f"the member {shown(member.name)} is no plain file")
                if member.size > MAX_MEMBER:  # by an extension of its header
                    raise DataError(f"the member {shown(member.name)} claims {member.size} bytes")
                yield path, content.read()
    except GeneratorExit:
        raise
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # tarfile and the decompressors raise many types
        raise DataError(f"{name} is no whole tar archive: {shown(error)}") from error


def gunzip(path: epath.PathLike) -> bytes:
    """Return the content of a gzip file; a file that is none is returned as it is.

    Raises:
      DataError: a broken file, or one that unpacks to over 100 times its size or 16 GiB.
    """
    with open_file(path) as (file, size):
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return file.read()
        file.seek(0)
        limit = min(MAX_UNPACKED, MAX_RATIO * size + _CHUNK)
        unpacked = bytearray()
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                while part := stream.read(_CHUNK):
                    unpacked += part
                    if len(unpacked) > limit:
                        raise DataError(
                            f"{shown(path)} unpacks to over {limit:,} bytes from {size:,}; no "
                            "images do."
                        )
        except (OSError, EOFError, MemoryError, zlib.error) as error:
            raise DataError(f"{shown(path)} is a broken gzip file: {error}") from error
        return bytes(unpacked)
