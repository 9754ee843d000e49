"""Opening files that others wrote: regular files alone, sizes checked before memory is taken."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

from jaxequi.data.errors import DataError, shown
from jaxequi.errors import Refusal

MAX_FILE = 1 << 30  # bytes of a file that is read whole: an image, latents, a list
MAX_ARRAY = 4 << 30  # bytes of an array in memory, unless more is asked for
MAX_CLASSES = 1_000_000
_HEADER = 16 << 10  # of a .npy file; numpy itself takes no longer one than 10,000 bytes
_CHUNK = 1 << 20
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe (FIFO)",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def refuse_unless_regular(path: epath.PathLike, mode: int) -> None:
    """Raise `DataError` for what is no regular file: reading it might never end."""
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS.items() if test(mode)), "a link to nowhere")
        raise DataError(
            f"{shown(path)} is {kind}; only regular files, and links to such, are read."
        )


def is_regular(path: epath.PathLike) -> bool:
    """Whether a path is a regular file or a link to one; what is in a bucket is."""
    return "://" in os.fspath(path) or pathlib.Path(path).is_file()


def _number(path: epath.PathLike) -> tuple[int, int]:
    """Open a regular file of this machine: its descriptor and its bytes."""
    # Opening a pipe would wait for its writer.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(number)
        refuse_unless_regular(path, found.st_mode)
    except BaseException:
        os.close(number)
        raise
    return number, found.st_size


def _unreadable(path: epath.PathLike, error: Exception) -> DataError:
    return DataError(f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}")


@contextlib.contextmanager
def open_file(path: epath.PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, or a link to one: (file, bytes).

    Raises:
      DataError: it cannot be read, or is a folder, a pipe, a socket or a device.
    """
    try:
        if "://" in os.fspath(path):  # a bucket, which holds nothing but files
            file, size = epath.Path(path).open("rb"), epath.Path(path).stat().length
        else:
            number, size = _number(path)
            file = os.fdopen(number, "rb")
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise _unreadable(path, error) from error
    with file:
        try:
            yield file, size
        except OSError as error:
            raise _unreadable(path, error) from error


def read_file(path: epath.PathLike, limit: int = MAX_FILE) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
      DataError: it cannot be read, is no regular file, or is larger.
    """
    if "://" in os.fspath(path):
        with open_file(path) as (file, size):
            _check_file(path, size, limit)
            return file.read()
    try:  # without the file objects of `open_file`, which take as long as a small file
        number, size = _number(path)
        try:
            _check_file(path, size, limit)
            data = os.read(number, size)
            while len(data) < size and (more := os.read(number, size - len(data))):
                data += more  # the system gives at most 2 GiB at once
            return data
        finally:
            os.close(number)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _check_file(path: epath.PathLike, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(f"{shown(path)} has {size} bytes; at most {limit} are read at once.")


def read_text(path: epath.PathLike) -> str:
    """Read a text file.

    Raises:
      DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)} is no UTF-8 text: {error}; save it as UTF-8.") from error


def check_size(size: int, limit: int, where: str) -> None:
    """Raise `DataError` if more bytes are declared than may be read into memory."""
    if size > limit:
        raise DataError(
            f"{where} declares {size:,} bytes, more than the {limit / (1 << 30):g} GiB that are "
            "read into memory. If it is no damaged or hostile file, raise max_gigabytes, or pack "
            "its images into files."
        )


def fill(file: BinaryIO, size: int, where: str, head: bytes = b"") -> np.ndarray:
    """Read exactly so many bytes, u8[size]; memory is touched only as far as there are bytes.

    Args:
      file: the rest of the bytes.
      size: of them all.
      where: what they are, for the error.
      head: the first of them, read before.

    Raises:
      DataError: there are fewer, or they do not fit into memory.
    """
    try:
        data = np.empty(size, np.uint8)
    except MemoryError as error:
        raise DataError(f"{where}: {size:,} bytes do not fit into memory.") from error
    at = 0
    part = head[:size] or file.read(min(_CHUNK, size))
    while part:
        data[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
        part = file.read(min(_CHUNK, size - at)) if at < size else b""
    if at < size:
        raise DataError(f"{where} ends after {at:,} of {size:,} bytes.")
    return data


def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read the header of a .npy file: shape, order, dtype, and where the data begins."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise Refusal(f"version {version} of the format is for fields with names")
    if dtype.hasobject:
        raise Refusal("it holds pickled objects, which would run code")
    if any(length < 0 for length in shape) or not dtype.itemsize:
        raise Refusal(f"it claims {dtype} of shape {shape}")
    return shape, fortran, dtype, stream.tell()


def read_npy(file: BinaryIO, size: int, where: str, limit: int = MAX_ARRAY) -> np.ndarray:
    """Read the .npy array that fills `size` bytes; pickled objects are refused, not run.

    Raises:
      DataError: another format, or a header that claims more than `limit` or than there is.
    """
    head = file.read(min(size, _HEADER))
    try:
        shape, fortran, dtype, start = _header(head)
        declared = math.prod(shape) * dtype.itemsize
        check_size(declared, limit, where)
        if declared != size - start:
            raise Refusal(
                f"it holds {size - start:,} bytes, not the {declared:,} of {dtype}{list(shape)}"
            )
        data = fill(file, declared, where, head[start:])
        return data.view(dtype).reshape(shape, order="F" if fortran else "C")
    except DataError:
        raise
    except Exception as error:  # numpy evaluates the header as a literal, which raises many types
        raise DataError(f"{where} is no plain .npy array: {shown(error)}") from error


def load_array(path: epath.PathLike, limit: int = MAX_ARRAY) -> np.ndarray:
    """Load a .npy file; pickled objects are refused, not run.

    Raises:
      DataError: it cannot be read, is none, or claims more than `limit` bytes.
    """
    with open_file(path) as (file, size):
        return read_npy(file, size, shown(path), limit)


def texts(array: np.ndarray, where: str) -> list[str]:
    """Return an array of strings as a list of them.

    Raises:
      DataError: something else than strings, or some that are no Unicode text.
    """
    if array.dtype.kind != "U" or array.ndim != 1:
        raise DataError(f"{where} is {array.dtype}{list(array.shape)}, not a list of strings.")
    codes = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
    broken = (codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))
    if broken.any():  # numpy makes strings of code points that do not exist
        raise DataError(f"{where} holds a string that is no Unicode text.")
    return array.tolist()


def number_names(count: int, where: str) -> tuple[str, ...]:
    """Name `count` classes by their numbers.

    Raises:
      DataError: more than a million, or fewer than none: labels that are broken, not classes.
    """
    if not 0 <= count <= MAX_CLASSES:
        raise DataError(
            f"{where} asks for {count:,} classes; there may be {MAX_CLASSES:,}. Number the classes "
            "from 0 without gaps, or give class_names."
        )
    return tuple(map(str, range(count)))


def _mode(entry: os.DirEntry[str]) -> int:
    """The mode of what an entry of a folder is or links to; 0 of a link that leads nowhere."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return entry.stat().st_mode
    except OSError:
        return 0


def walk(root: epath.PathLike, suffixes: Iterable[str]) -> Iterator[str]:
    """Find the files with a suffix below a folder: paths relative to it, sorted, files first.

    Links are followed, to files and to folders. What has no such suffix is passed over.

    Raises:
      DataError: a folder that cannot be listed or that links lead to twice, which might be walked
        for ever; a pipe, a socket, a device or a broken link with such a suffix.
    """
    base, endings = os.fspath(root), tuple(suffixes)
    seen: dict[tuple[int, int], str] = {}
    stack = [""]
    while stack:
        inside = stack.pop()
        folder = os.path.join(base, inside) if inside else base
        try:
            here = os.stat(folder)
            with os.scandir(folder) as entries:
                found = sorted((entry.name, _mode(entry)) for entry in entries)
        except OSError as error:
            raise DataError(
                f"cannot list {shown(error.filename or folder)}: {error.strerror}"
            ) from error
        first = seen.setdefault((here.st_dev, here.st_ino), folder)
        if first != folder:
            raise DataError(
                f"{shown(folder)} is the folder {shown(first)} once more, by a link; its images "
                "would count twice, or without end. Remove the link."
            )
        for name, mode in found:
            if name.lower().endswith(endings) and not stat.S_ISDIR(mode):
                refuse_unless_regular(os.path.join(folder, name), mode)
                yield os.path.join(inside, name)
        stack += [os.path.join(inside, n) for n, mode in reversed(found) if stat.S_ISDIR(mode)]
